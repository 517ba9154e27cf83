//! Each fault of the proxy, over real sockets: what both ends see.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::{Flow, Trap};
use sluice_testkit::proxy::way::Way;

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(5);
/// Long enough to see that nothing comes.
const NOTHING: Duration = Duration::from_millis(150);

/// A proxy before a listener whose connections the test holds.
struct World {
    proxy: Proxy,
    accepted: Receiver<TcpStream>,
}

/// Both ends of one connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("not IPv4") };
    address
}

fn listener() -> (SocketAddrV4, Receiver<TcpStream>) {
    let listener = TcpListener::bind(ANY).unwrap();
    let address = v4(listener.local_addr().unwrap());
    let (send, accepted) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if send.send(stream).is_err() {
                return;
            }
        }
    });
    (address, accepted)
}

impl World {
    fn new(protocol: Protocol) -> Self {
        let (address, accepted) = listener();
        Self { proxy: Proxy::start(ANY, address, protocol, 7).unwrap(), accepted }
    }

    fn connect(&self) -> Pair {
        let client = TcpStream::connect(self.proxy.address()).unwrap();
        let server = self.accepted.recv_timeout(SOON).unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(SOON)).unwrap();
        }
        let mut pair = Pair { client, server };
        pair.says("hello");
        pair.answers("well");
        pair
    }

    /// Sets a trap.
    fn set(&self, trap: &str) {
        self.proxy.set(trap.parse::<Trap>().unwrap());
    }
}

/// What is read until the end, and how it ended.
fn rest(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut bytes, mut some) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut some) {
            Ok(0) => return (bytes, None),
            Ok(count) => bytes.extend_from_slice(&some[..count]),
            Err(error) => return (bytes, Some(error.kind())),
        }
    }
}

fn expect(stream: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

fn expect_nothing(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(NOTHING)).unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    stream.set_read_timeout(Some(SOON)).unwrap();
}

impl Pair {
    fn says(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).unwrap();
        expect(&mut self.server, text);
    }

    fn answers(&mut self, text: &str) {
        self.server.write_all(text.as_bytes()).unwrap();
        expect(&mut self.client, text);
    }

    fn is_reset(&mut self) {
        for stream in [&mut self.client, &mut self.server] {
            assert_eq!(rest(stream), (Vec::new(), Some(ErrorKind::ConnectionReset)));
        }
    }
}

#[test]
fn bytes_and_closes_pass_both_ways() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    let much = vec![b'x'; 3_000_000];
    let copy = much.clone();
    let mut client = pair.client.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        client.write_all(&copy).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert_eq!(rest(&mut pair.server), (much, None));
    writer.join().unwrap();
    pair.answers("still");
    drop(pair.server);
    assert_eq!(rest(&mut pair.client), (Vec::new(), None));
}

#[test]
fn dropped_bytes_are_gone_and_their_connection_ends_with_the_fault() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.proxy.flow(Way::Up, Flow::Drop);
    pair.client.write_all(b"lost").unwrap();
    expect_nothing(&mut pair.server);
    pair.answers("the other way is open");
    world.proxy.flow(Way::Up, Flow::Pass);
    pair.is_reset();
    assert_eq!(world.proxy.status().swallowed, 4);
    world.connect();
}

#[test]
fn a_connection_that_lost_nothing_survives_a_partition() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.proxy.flow_both(Flow::Drop);
    world.proxy.heal();
    pair.says("still here");
}

#[test]
fn a_close_is_not_seen_through_a_partition() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.proxy.flow_both(Flow::Drop);
    pair.client.shutdown(std::net::Shutdown::Both).unwrap();
    expect_nothing(&mut pair.server);
    world.proxy.heal();
    assert_eq!(rest(&mut pair.server).1, Some(ErrorKind::ConnectionReset));
}

#[test]
fn held_bytes_come_later_in_their_order() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.proxy.flow(Way::Down, Flow::Hold);
    pair.server.write_all(b"one ").unwrap();
    pair.server.write_all(b"two").unwrap();
    pair.server.shutdown(std::net::Shutdown::Write).unwrap();
    expect_nothing(&mut pair.client);
    world.proxy.heal();
    assert_eq!(rest(&mut pair.client), (b"one two".to_vec(), None));
}

#[test]
fn what_is_held_is_bounded_and_the_rest_waits_at_its_sender() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.proxy.flow(Way::Up, Flow::Hold);
    pair.client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut sent, piece) = (0, vec![b'y'; 64 * 1024]);
    while let Ok(count) = pair.client.write(&piece) {
        sent += count;
        assert!(sent < 64 * 1024 * 1024, "nothing bounds what is held");
    }
    assert!(sent > 1024 * 1024);
    world.proxy.heal();
    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut pair.server).0.len(), sent);
}

#[test]
fn delay_and_throttle_take_their_time() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    let late = Duration::from_millis(200);
    world.proxy.flow(Way::Up, Flow::Delay(late, late * 2));
    let begun = Instant::now();
    pair.says("late");
    assert!(begun.elapsed() >= late);
    world.proxy.flow(Way::Up, Flow::Throttle(100_000));
    let begun = Instant::now();
    pair.says(&"z".repeat(40_000));
    assert!(begun.elapsed() >= Duration::from_millis(390), "{:?}", begun.elapsed());
}

#[test]
fn a_reset_reaches_both_ends_and_the_next_connection_is_good() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.proxy.reset();
    pair.is_reset();
    assert_eq!(world.proxy.status().cut, 1);
    world.connect();
}

#[test]
fn a_half_closed_connection_still_carries_the_other_way() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.proxy.half_close(Way::Up);
    assert_eq!(rest(&mut pair.server), (Vec::new(), None));
    pair.answers("the last word");
}

#[test]
fn refused_connections_are_reset() {
    let world = World::new(Protocol::Plain);
    world.proxy.refuse(true);
    let mut client = TcpStream::connect(world.proxy.address()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(rest(&mut client).1, Some(ErrorKind::ConnectionReset));
    assert!(world.accepted.try_recv().is_err());
    world.proxy.heal();
    world.connect();
}

#[test]
fn a_new_target_takes_new_connections_and_old_ones_stay_until_they_are_cut() {
    let world = World::new(Protocol::Plain);
    let mut old = world.connect();
    let (address, accepted) = listener();
    world.proxy.aim(address);
    old.says("where I was");
    let mut client = TcpStream::connect(world.proxy.address()).unwrap();
    client.write_all(b"new").unwrap();
    expect(&mut accepted.recv_timeout(SOON).unwrap(), "new");
    world.proxy.reset();
    old.is_reset();
}

#[test]
fn a_connection_is_cut_after_so_many_bytes() {
    let world = World::new(Protocol::Plain);
    let mut pair = world.connect();
    world.set("up cut bytes 10");
    pair.says("123456");
    pair.client.write_all(b"789012").unwrap();
    assert_eq!(rest(&mut pair.server), (b"7890".to_vec(), None), "what was before is delivered");
    assert_eq!(rest(&mut pair.client).1, Some(ErrorKind::ConnectionReset));
    assert!(world.proxy.has_sprung());
    world.connect().says("more than ten bytes, once");
}

#[test]
fn a_connection_is_cut_on_a_text_before_or_after_it_is_delivered() {
    let world = World::new(Protocol::Plain);
    for (trap, seen) in [("up cut text COMMIT", "MMIT"), ("up lose text COMMIT", "")] {
        let mut pair = world.connect();
        world.set(trap);
        // The text begins in one piece and ends in the next.
        pair.says("a CO");
        pair.client.write_all(b"MMIT;").unwrap();
        assert_eq!(rest(&mut pair.server).0, seen.as_bytes(), "{trap}");
        assert_eq!(rest(&mut pair.client).1, Some(ErrorKind::ConnectionReset), "{trap}");
    }
}

#[test]
fn a_lost_confirm_never_reaches_the_publisher() {
    let world = World::new(Protocol::Amqp);
    let client = TcpStream::connect(world.proxy.address()).unwrap();
    let server = world.accepted.recv_timeout(SOON).unwrap();
    let mut pair = Pair { client, server };
    pair.says("AMQP\0\0\u{9}\u{1}");
    world.set("down lose frame confirm");
    let confirm = [&[1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80][..], &[0; 9], &[0xCE]].concat();
    let heartbeat = [8, 0, 0, 0, 0, 0, 0, 0xCE];
    pair.server.write_all(&[&heartbeat[..], &confirm].concat()).unwrap();
    let mut seen = [0; 8];
    pair.client.read_exact(&mut seen).unwrap();
    assert_eq!(seen, heartbeat);
    pair.is_reset();
}

#[test]
fn a_doubled_command_is_executed_twice_and_its_client_learns_nothing() {
    let world = World::new(Protocol::Redis);
    let client = TcpStream::connect(world.proxy.address()).unwrap();
    let mut server = world.accepted.recv_timeout(SOON).unwrap();
    let mut pair = Pair { client, server: server.try_clone().unwrap() };
    world.set("up twice frame script");
    let (ping, script) = ("*1\r\n$4\r\nPING\r\n", "*2\r\n$7\r\nEVALSHA\r\n$1\r\na\r\n");
    pair.says(ping);
    pair.client.write_all(script.as_bytes()).unwrap();
    assert_eq!(rest(&mut server), (format!("{script}{script}").into_bytes(), None));
    assert_eq!(rest(&mut pair.client).1, Some(ErrorKind::ConnectionReset));
}

#[test]
fn a_doubled_confirm_is_delivered_twice_and_the_connection_goes_on() {
    let world = World::new(Protocol::Amqp);
    let client = TcpStream::connect(world.proxy.address()).unwrap();
    let server = world.accepted.recv_timeout(SOON).unwrap();
    let mut pair = Pair { client, server };
    world.set("down twice frame confirm");
    let confirm = [&[1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80][..], &[0; 9], &[0xCE]].concat();
    pair.server.write_all(&confirm).unwrap();
    let mut seen = vec![0; confirm.len() * 2];
    pair.client.read_exact(&mut seen).unwrap();
    assert_eq!(seen, [&confirm[..], &confirm].concat());
    pair.says("AMQP\0\0\u{9}\u{1}");
}
