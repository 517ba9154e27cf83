//! More connections than there is room for.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::client::Connection;
use crate::harness::{Edge, Process, bearer, binary, configuration, directory, eventually};

/// A connection from an address of this machine.
fn open(to: SocketAddr, from: Ipv4Addr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(from, 0)).unwrap();
    connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

fn silent(edge: &Process, from: Ipv4Addr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| open(edge.public, from)).collect()
}

/// Whether the gate has closed it.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

fn open_now(edge: &Process) -> f64 {
    edge.metric("sluice_http_connections")
}

fn closed(edge: &Process, why: &str) -> f64 {
    edge.metric(&format!("sluice_http_connections_closed_total{{reason=\"{why}\"}}"))
}

/// A buyer who comes now, and how long he waits.
fn token(edge: &Process, from: Ipv4Addr) -> (Option<u16>, Duration) {
    let start = Instant::now();
    let mut connection = Connection::of(open(edge.public, from));
    connection.ask("POST", "/v1/sales/demo/token", &[("Authorization", &bearer("alice"))], "");
    (connection.answer().map(|answer| answer.status), start.elapsed())
}

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn the_longest_idle_one_makes_room_for_a_buyer() {
    let edge = Edge::selling(&[("limits.connections", "50")]);
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), r#"{"sku":"phone","quantity":1}"#);
    let mut stream = edge.connect();
    stream.ask("GET", bought.json()["events_url"].as_str().unwrap(), &[], "");
    assert_eq!(stream.head().unwrap().0, 200);
    eventually("nothing but the stream is open", || open_now(&edge) == 1.0);
    // Kept alive after a request, which makes it younger than those that were silent all along.
    let mut silent = silent(&edge, HERE, 20);
    eventually("they are taken in", || open_now(&edge) == 21.0);
    let mut kept = edge.connect();
    assert_eq!(kept.call("GET", "/v1/sales/demo", &[], "").status, 200);
    // Half a head is no request yet.
    for stream in &mut silent[..10] {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: ga").unwrap();
    }
    let mut more = self::silent(&edge, HERE, 40);
    eventually("they are taken in", || closed(&edge, "made_room") >= 12.0);
    let (status, took) = token(&edge, HERE);
    assert_eq!(status, Some(200));
    assert!(took < Duration::from_secs(1), "{took:?}");
    // In which order those came in that were opened at once is not told.
    eventually("the oldest have gone", || {
        silent.iter_mut().map(is_closed).filter(|gone| *gone).count() >= 12
    });
    assert!(!more.iter_mut().any(is_closed));
    assert_eq!(kept.call("GET", "/v1/sales/demo", &[], "").status, 200);
    assert!(stream.chunk().is_some(), "a stream is no idle connection");
    assert_eq!(edge.metric("sluice_http_connections_most"), 50.0);
    assert_eq!(closed(&edge, "full"), 0.0);
}

#[test]
fn an_address_has_so_many_connections_and_a_trusted_proxy_any_number() {
    let settings = [
        ("limits.connections", "200"),
        ("limits.connections_per_address", "20"),
        ("trusted_proxies.addresses", "[\"127.0.0.9\"]"),
    ];
    let edge = Edge::selling(&settings);
    let mut crowd = silent(&edge, Ipv4Addr::new(127, 0, 0, 2), 30);
    eventually("ten are too many", || closed(&edge, "address") == 10.0);
    eventually("they are told", || {
        crowd.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count() == 10
    });
    assert_eq!(token(&edge, Ipv4Addr::new(127, 0, 0, 2)).0, None);
    assert_eq!(token(&edge, Ipv4Addr::new(127, 0, 0, 3)).0, Some(200));
    let _proxied = silent(&edge, Ipv4Addr::new(127, 0, 0, 9), 60);
    eventually("all are taken in", || open_now(&edge) >= 80.0);
    crowd.truncate(0);
    eventually("the address has room again", || token(&edge, Ipv4Addr::new(127, 0, 0, 2)).0 == Some(200));
    assert_eq!(closed(&edge, "made_room"), 0.0);
}

/// Starts an edge under a limit of open files, and reads what it says until it listens or ends.
fn said_under(limit: &str, settings: &[(&str, &str)]) -> String {
    let directory = directory();
    let file = directory.join("edge.toml");
    std::fs::write(&file, configuration([1, 1], "redis://127.0.0.1:1", &directory, settings)).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]);
    let said = command.arg(binary().get_program()).arg("--config").arg(&file).output().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(!said.status.success());
    String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout)
}

/// An address that nobody may listen on ends each of these starts, once the limit was judged.
const NOWHERE: (&str, &str) = ("listen.public", "[\"192.0.2.1:1\"]");

#[test]
fn too_few_open_files_are_told_with_a_remedy() {
    let raised = said_under("-Sn 64", &[NOWHERE, ("limits.connections", "500")]);
    assert!(raised.contains("cannot listen") && !raised.contains("open files"), "{raised}");
    let fewer = said_under("-n 600", &[NOWHERE, ("limits.connections", "500")]);
    assert!(fewer.contains("fewer connections are taken") && fewer.contains("\"fit\":344"), "{fewer}");
    assert!(fewer.contains("cannot listen"), "{fewer}");
    let none = said_under("-n 260", &[NOWHERE]);
    assert!(none.contains("limits.connections") && none.contains("ulimit -Hn"), "{none}");
    assert!(!none.contains("cannot listen"), "{none}");
}
