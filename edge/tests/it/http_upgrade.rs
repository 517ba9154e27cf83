//! What a shop may answer beside plain HTTP/1.1, and to whom: WebSockets, old clients, its own hops.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Edge, eventually};

/// A shop that answers each connection with these bytes once it has a head, and then repeats what comes.
struct Shop {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Shop {
    fn start(answer: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let log = heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                std::thread::spawn(move || Self::serve(stream, answer, &log));
            }
        });
        Self { address, heads }
    }

    fn serve(mut stream: TcpStream, answer: &[&str], log: &Mutex<Vec<String>>) {
        while let Some(head) = read_head(&mut stream) {
            log.lock().unwrap().push(head);
            for (at, part) in answer.iter().enumerate() {
                // Apart, so that they are read apart.
                std::thread::sleep(Duration::from_millis(if at == 0 { 0 } else { 50 }));
                let _ = stream.write_all(part.as_bytes());
            }
            if answer[0].contains(" 101 ") {
                let mut bytes = [0; 65536];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..count]);
                }
            }
            if !answer.concat().contains("Content-Length") {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
        }
    }

    fn edge(&self, settings: &[(&str, &str)]) -> Edge {
        let address = format!("\"{}\"", self.address);
        let mut all = vec![("upstream.address", address.as_str())];
        all.extend_from_slice(settings);
        Edge::start(&all)
    }

    fn head(&self) -> String {
        self.heads.lock().unwrap().last().cloned().unwrap().to_ascii_lowercase()
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn open(edge: &Edge, behind: &str) -> TcpStream {
    let mut stream = TcpStream::connect(edge.public).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = "GET /ws HTTP/1.1\r\nHost: gate\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(format!("{head}{behind}").as_bytes()).unwrap();
    stream
}

fn expect(stream: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{error} before {text:?}"));
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_websocket_is_its_users_own_until_both_are_silent() {
    // The first frame stands in the same packet as the 101.
    let shop = Shop::start(&[
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
        "more",
    ]);
    let edge = shop.edge(&[
        ("limits.body_timeout_ms", "100"),
        ("limits.upstream_body_bytes", "1000"),
        ("upstream.read_timeout_ms", "100"),
        ("upstream.tunnel_idle_timeout_ms", "1500"),
    ]);
    let mut stream = open(&edge, "early");
    let head = read_head(&mut stream).unwrap();
    let told = head.to_ascii_lowercase();
    assert!(told.starts_with("http/1.1 101 ") && told.contains("upgrade: websocket"), "{head}");
    // What the client sent with its head, and the shop with its answer, in whatever order.
    let mut first = vec![0; "hellomoreearly".len()];
    stream.read_exact(&mut first).unwrap();
    let first = String::from_utf8(first).unwrap();
    assert!(["hello", "more", "early"].iter().all(|part| first.contains(part)), "{first}");
    // Far more than a body may have, and slower than a body may come.
    let frame = "x".repeat(5000);
    for _ in 0..10 {
        stream.write_all(frame.as_bytes()).unwrap();
        expect(&mut stream, &frame);
        std::thread::sleep(Duration::from_millis(200));
    }
    let began = Instant::now();
    assert_eq!(rest(stream), "", "bytes of ours");
    assert!(began.elapsed() > Duration::from_millis(500) && began.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_upgrade_is_asked_for_by_its_whole_handshake() {
    let shop = Shop::start(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]);
    let edge = shop.edge(&[]);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n";
    for (head, asked) in [
        (format!("GET / HTTP/1.1\r\nHost: gate\r\n{upgrade}\r\n"), true),
        (format!("GET / HTTP/1.0\r\nHost: gate\r\n{upgrade}\r\n"), false),
        (format!("GET / HTTP/1.1\r\nHost: gate\r\nContent-Length: 1\r\n{upgrade}\r\nx"), false),
        (
            "GET / HTTP/1.1\r\nHost: gate\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n".to_owned(),
            false,
        ),
        ("GET / HTTP/1.1\r\nHost: gate\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_owned(), false),
    ] {
        let mut connection = edge.connect();
        connection.send(&head);
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200), "{head}");
        assert_eq!(shop.head().contains("\r\nupgrade:"), asked, "{head}");
    }
}

#[test]
fn a_shop_that_does_not_answer_a_handshake_is_told_as_slow() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("\"{}\"", listener.local_addr().unwrap());
    let edge = Edge::start(&[("upstream.address", &address), ("upstream.read_timeout_ms", "300")]);
    let (stream, began) = (open(&edge, ""), Instant::now());
    let text = rest(stream);
    assert!(text.starts_with("HTTP/1.1 504 ") && began.elapsed() < Duration::from_secs(5), "{text}");
}

#[test]
fn an_old_client_gets_plain_bytes_and_the_end() {
    let hello = "hello";
    for answer in [
        &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", "3\r\nllo\r\n0\r\n\r\n"][..],
        &["HTTP/1.1 200 OK\r\n\r\nhe", "llo"],
        &[
            "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ],
    ] {
        let shop = Shop::start(answer);
        let edge = shop.edge(&[("limits.idle_timeout_ms", "1000")]);
        for fields in ["", "Connection: keep-alive\r\n"] {
            let mut connection = edge.connect();
            connection.send(format!("GET /x HTTP/1.0\r\n{fields}\r\n"));
            let text = connection.rest();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
            assert!(head.starts_with("HTTP/1.1 200 "), "{text}");
            assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{text}");
            assert_eq!(body, hello, "{text}");
            assert!(shop.head().contains(&format!("\r\nhost: {}\r\n", shop.address)), "{}", shop.head());
        }
    }
}

#[test]
fn what_concerns_one_hop_is_not_passed_on() {
    let shop = Shop::start(&[
        "HTTP/1.1 200 OK\r\nConnection: X-Secret, close\r\nX-Secret: a\r\nKeep-Alive: timeout=5\r\nTE: x\r\n\
         Upgrade: h2c\r\nX-Open: b\r\nContent-Length: 2\r\n\r\n{}",
    ]);
    let edge = shop.edge(&[]);
    let fields = [("Connection", "X-Mine"), ("X-Mine", "a"), ("Keep-Alive", "timeout=5"), ("X-Open", "b")];
    let answer = edge.connect().call("GET", "/", &fields, "");
    for gone in ["x-secret", "keep-alive", "te", "upgrade"] {
        assert_eq!(answer.field(gone), None, "{answer:?}");
    }
    assert_eq!((answer.field("x-open"), answer.field("connection")), (Some("b"), Some("keep-alive")));
    let head = shop.head();
    assert!(!head.contains("x-mine") && !head.contains("keep-alive") && head.contains("x-open: b"), "{head}");
}

#[test]
fn a_late_body_writes_nothing_into_an_answer_that_has_begun() {
    let shop = Shop::start(&["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun"]);
    let edge = shop.edge(&[("limits.body_timeout_ms", "300")]);
    let mut connection = edge.connect();
    connection.send("POST /x HTTP/1.1\r\nHost: gate\r\nContent-Length: 50\r\n\r\nhalf");
    let text = connection.rest();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\nbegun"), "{text}");
}

#[test]
fn who_is_not_trusted_speaks_for_nobody() {
    let shop = Shop::start(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]);
    let names = [
        "Forwarded",
        "X-Real-IP",
        "X_Real_IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Forwarded-User",
        "X-Remote-User",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Client-IP",
        "X-Original-URL",
    ];
    let fields = names.map(|name| (name, "made-up"));
    let edge = shop.edge(&[]);
    assert_eq!(edge.connect().call("GET", "/", &fields, "").status, 200);
    assert!(!shop.head().contains("made-up"), "{}", shop.head());
    let edge = shop.edge(&[("trusted_proxies.addresses", "[\"127.0.0.0/8\"]")]);
    assert_eq!(edge.connect().call("GET", "/", &fields, "").status, 200);
    eventually("all of them are passed on", || shop.head().matches("made-up").count() == names.len());
}
