//! An edge on a host of its own (a network namespace), whose way to the stores loses every packet: nothing
//! is refused or reset, as it is when a cable is pulled.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::{Duration, Instant};

use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;

use crate::harness::{Edge, binary, eventually};

/// A host, and two wires to it: one to the stores, one to the buyers.
struct Host {
    name: String,
    wires: [Wire; 2],
}

/// A pair of network interfaces, one of them on the host.
struct Wire {
    here: String,
    near: Ipv4Addr,
    far: Ipv4Addr,
}

/// Runs `ip`; root's rights over the network are needed.
fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip, of the package iproute2");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {why}");
}

impl Host {
    fn new() -> Self {
        let pid = std::process::id();
        let name = format!("sluice-{pid}");
        let [low, high] = [pid % 250, pid / 250 % 250].map(|part| u8::try_from(part).unwrap());
        let wire = |net: u8| Wire {
            here: format!("sl{pid}-{net}"),
            near: Ipv4Addr::new(10, 200 + net, high, low & !3 | 1),
            far: Ipv4Addr::new(10, 200 + net, high, low & !3 | 2),
        };
        let host = Self { name, wires: [wire(0), wire(1)] };
        ip(&format!("netns add {}", host.name));
        ip(&format!("-n {} link set lo up", host.name));
        for wire in &host.wires {
            let (name, there) = (&host.name, format!("{}x", wire.here));
            ip(&format!("link add {} type veth peer name {there} netns {name}", wire.here));
            ip(&format!("addr add {}/30 dev {}", wire.near, wire.here));
            ip(&format!("link set {} up", wire.here));
            ip(&format!("-n {name} addr add {}/30 dev {there}", wire.far));
            ip(&format!("-n {name} link set {there} up"));
        }
        host
    }

    fn command(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(binary().get_program());
        command
    }

    fn pull_cable(&self) {
        ip(&format!("link set {} down", self.wires[0].here));
    }

    fn plug_cable(&self) {
        ip(&format!("link set {} up", self.wires[0].here));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // With the namespace go the wires.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

#[test]
fn f23_an_edge_whose_cable_is_pulled_refuses_and_the_other_one_sells() {
    const PHONE: &str = r#"{"sku":"phone","quantity":1}"#;
    let (home, host) = (Edge::selling(&[]), Host::new());
    let redis = SocketAddrV4::new(Ipv4Addr::LOCALHOST, home.redis.port());
    let way = Proxy::start(SocketAddrV4::new(host.wires[0].near, 0), redis, Protocol::Redis, 1).unwrap();
    let url = format!("redis://{}", way.address());
    let away = home.elsewhere(host.command(), host.wires[1].far, &url, &[("redis.deadline_ms", "300")]);
    let first = away.token("demo", "ann");
    assert_eq!(away.buy("demo", "ann", &first, PHONE).status, 202);

    host.pull_cable();
    let (token, began) = (away.token("demo", "bob"), Instant::now());
    let answer = away.buy("demo", "bob", &token, PHONE);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // Also once it knows of no Redis any more, nobody is told "sold out".
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let answer = away.buy("demo", "bob", &token, PHONE);
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    let there = home.token("demo", "eve");
    assert_eq!(home.buy("demo", "eve", &there, PHONE).status, 202);

    host.plug_cable();
    eventually("it sells again", || away.buy("demo", "bob", &token, PHONE).status == 202);
    assert_eq!(away.buy("demo", "ann", &first, PHONE).status, 202, "the same order");
}
