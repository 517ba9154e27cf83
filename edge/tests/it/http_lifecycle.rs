//! Starting, checking, watching and stopping an edge.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client::{Connection, Echo};
use crate::harness::{Edge, Sale, bearer, binary, directory, eventually};

#[test]
fn check_tells_every_problem_at_once() {
    let directory = directory();
    let file = directory.join("edge.toml");
    std::fs::write(&file, "[listen]\npublic = [\"8080\"]\n[redis]\nurll = \"x\"\n[rate.user]\nburst = 0\n")
        .unwrap();
    let check = || binary().arg("--config").arg(&file).arg("--check").output().unwrap();
    let told = check();
    let text = String::from_utf8(told.stderr).unwrap();
    assert_eq!(told.status.code(), Some(64), "{text}");
    for problem in [
        "listen.public: ",
        "redis.urll: there is no such key; did you mean url?",
        "rate.user.burst: ",
        "token.keys: ",
        "api.secret: ",
    ] {
        assert!(text.contains(problem), "{problem} in {text}");
    }
    let good = "[identity]\njwt_secret = \"0123456789abcdef\"\n[token]\nkeys = [\"a:0123456789abcdef\"]\n[api]\nsecret = \"0123456789abcdef\"\n";
    std::fs::write(&file, good).unwrap();
    let told = check();
    assert_eq!((told.status.code(), told.stdout.as_slice()), (Some(0), &b"configuration is good\n"[..]));
    let usage = binary().arg("--nonsense").output().unwrap();
    assert_eq!(usage.status.code(), Some(64));
    let help = binary().arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("--check"));
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_taken_port_is_told() {
    let edge = Edge::start(&[]);
    let directory = directory();
    let file = directory.join("edge.toml");
    let text = format!(
        "state_dir = {:?}\nlisten.public = [\"{}\"]\nidentity.jwt_secret = \"0123456789abcdef\"\n\
         token.keys = [\"a:0123456789abcdef\"]\napi.secret = \"0123456789abcdef\"\nlisten.admin = \"127.0.0.1:{}\"\n",
        directory.display().to_string(),
        edge.public,
        sluice_testkit::free_port()
    );
    std::fs::write(&file, text).unwrap();
    let told = binary().arg("--config").arg(&file).output().unwrap();
    assert_eq!(told.status.code(), Some(1));
    assert!(
        String::from_utf8(told.stderr)
            .unwrap()
            .contains(&format!("listen.public: cannot listen on {}", edge.public))
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn an_edge_that_knows_no_sales_yet_calls_none_unknown() {
    let directory = directory();
    let (file, ports) = (directory.join("edge.toml"), [0; 2].map(|_| sluice_testkit::free_port()));
    let text = format!(
        "state_dir = {:?}\nlisten.public = [\"127.0.0.1:{}\"]\nlisten.admin = \"127.0.0.1:{}\"\n\
         identity.jwt_secret = \"0123456789abcdef\"\ntoken.keys = [\"a:0123456789abcdef\"]\n\
         api.secret = \"0123456789abcdef\"\nredis.url = \"redis://127.0.0.1:1\"\n",
        directory.display().to_string(),
        ports[0],
        ports[1],
    );
    std::fs::write(&file, text).unwrap();
    let mut child = binary().arg("--config").arg(&file).stderr(std::process::Stdio::null()).spawn().unwrap();
    let public = std::net::SocketAddr::from(([127, 0, 0, 1], ports[0]));
    eventually("it listens", || std::net::TcpStream::connect(public).is_ok());
    for (method, path) in [("GET", "/v1/sales/demo"), ("POST", "/v1/sales/demo/orders")] {
        let answer = Connection::open(public).call(method, path, &[], "");
        assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"), "{method} {path}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn the_private_listener_tells_how_it_goes() {
    let edge = Edge::selling(&[]);
    let mut admin = Connection::open(edge.admin);
    assert_eq!(admin.call("GET", "/-/live", &[], "").status, 200);
    let ready = admin.call("GET", "/-/ready", &[], "");
    assert_eq!((ready.status, ready.json()["state"].as_str()), (200, Some("ready")));
    for reason in ["rabbitmq is away", "the back office does not answer"] {
        eventually(reason, || edge.ready().json()["reasons"].to_string().contains(reason));
    }
    assert_eq!(admin.call("POST", "/-/reload", &[], "").status, 200);
    assert_eq!(admin.call("GET", "/-/reload", &[], "").code(), "method_not_allowed");
    assert_eq!(admin.call("GET", "/-/nothing", &[], "").code(), "not_found");
    assert_eq!(admin.call("POST", "/metrics", &[], "").code(), "method_not_allowed");
    edge.connect().call("GET", "/v1/sales/none", &[], "");
    let counted = "sluice_http_refused_total{code=\"unknown_sale\"} ";
    let mut metrics = || {
        let metrics = admin.call("GET", "/metrics", &[], "");
        assert!(metrics.field("x-request-id").is_some());
        String::from_utf8(metrics.body).unwrap()
    };
    // Counted after the answer.
    eventually("the refusal is counted", || !metrics().contains(&format!("{counted}0")));
    let text = metrics();
    for line in [counted, "sluice_http_request_seconds_bucket", "sluice_relay_held"] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn ready_says_whether_the_workers_reach_their_books() {
    let office = Echo::start();
    let edge = Edge::selling(&[("api.address", &format!("\"{}\"", office.address))]);
    let reasons = || edge.ready().json()["reasons"].to_string();
    let well =
        || office.count() > 0 && !reasons().contains("back office") && !reasons().contains("postgresql");
    eventually("nothing is wrong with them", well);
    office.away.store(true, Ordering::Relaxed);
    eventually("the books are away", || reasons().contains("postgresql is away"));
    // Orders are accepted all the same.
    assert_eq!(edge.ready().status, 200);
    office.away.store(false, Ordering::Relaxed);
    eventually("they are back", well);
}

#[test]
fn an_idle_edge_leaves_at_once() {
    let mut edge = Edge::selling(&[]);
    let mut idle = edge.connect();
    assert_eq!(idle.call("GET", "/v1/sales/demo", &[], "").status, 200);
    let began = Instant::now();
    edge.signal("TERM");
    let status = edge.ended(Duration::from_secs(10)).expect("it ends");
    assert!(status.success() && began.elapsed() < Duration::from_secs(5), "{status}");
    assert!(idle.is_closed());
}

#[test]
fn a_draining_edge_says_so_first_and_serves_until_everybody_has_noticed() {
    let mut edge = Edge::selling(&[("shutdown.drain_ms", "2000")]);
    let (mut kept, mut idle) = (edge.connect(), edge.connect());
    for connection in [&mut kept, &mut idle] {
        let answer = connection.call("GET", "/v1/sales/demo", &[], "");
        assert_eq!(answer.field("connection"), Some("keep-alive"));
    }
    let stopped = Instant::now();
    edge.signal("TERM");
    eventually("it says that it drains", || edge.ready().status == 503);
    assert_eq!(edge.ready().json()["state"], "draining");
    // Short and long way, kept and new connections.
    for (mut connection, path) in
        [(kept, "/v1/sales/demo"), (edge.connect(), "/v1/sales/demo"), (edge.connect(), "/v1/nothing/./x")]
    {
        let answer = connection.call("GET", path, &[], "");
        assert_eq!(answer.field("connection"), Some("close"), "{path}");
        assert!(connection.is_closed());
    }
    assert!(stopped.elapsed() < Duration::from_millis(1900), "too slow to be a test");
    // Whom nobody asked to go is let go only after the drain.
    assert!(idle.is_closed());
    assert!(stopped.elapsed() >= Duration::from_millis(1900), "{:?}", stopped.elapsed());
    assert!(edge.ended(Duration::from_secs(5)).is_some_and(|status| status.success()));
}

#[test]
fn whoever_connected_before_the_close_is_served() {
    let mut edge = Edge::selling(&[("shutdown.drain_ms", "1000")]);
    edge.signal("TERM");
    eventually("it says that it drains", || edge.ready().status == 503);
    // Connects as long as somebody listens, and asks a little later, as over a network.
    let mut asked = 0;
    while let Ok(stream) = std::net::TcpStream::connect(edge.public) {
        std::thread::sleep(Duration::from_millis(20));
        let answer = Connection::of(stream).call("GET", "/v1/sales/demo", &[], "");
        assert_eq!(answer.status, 200);
        asked += 1;
    }
    assert!(asked > 2, "{asked}");
    assert!(edge.ended(Duration::from_secs(5)).is_some_and(|status| status.success()));
}

#[test]
fn a_request_that_has_begun_to_come_is_served() {
    let mut edge = Edge::selling(&[]);
    let mut slow = edge.connect();
    slow.send("GET /v1/sales/demo HTTP/1.1\r\nHost: ga");
    let mut other = edge.connect();
    assert_eq!(other.call("GET", "/v1/sales/demo", &[], "").status, 200);
    edge.signal("TERM");
    assert!(other.is_closed());
    slow.send("te\r\n\r\n");
    let answer = slow.answer().expect("an answer");
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert!(edge.ended(Duration::from_secs(5)).is_some_and(|status| status.success()));
}

#[test]
fn a_second_signal_ends_the_drain_and_a_third_one_cuts_off() {
    let shop = Echo::start();
    let mut edge = Edge::start(&[
        ("upstream.address", &format!("\"{}\"", shop.address)),
        ("shutdown.drain_ms", "20000"),
    ]);
    let mut under_way = edge.connect();
    under_way.ask("GET", "/slow", &[], "");
    eventually("the shop is asked", || shop.count() == 1);
    edge.signal("TERM");
    eventually("it drains", || edge.ready().status == 503);
    edge.signal("HUP");
    eventually("it reloads", || edge.log().contains("reloaded"));
    assert_eq!(edge.connect().call("GET", "/-/x", &[], "").status, 404);
    edge.signal("TERM");
    eventually("nobody listens", || std::net::TcpStream::connect(edge.public).is_err());
    assert!(edge.ended(Duration::from_millis(500)).is_none());
    edge.signal("TERM");
    assert!(edge.ended(Duration::from_secs(5)).is_some_and(|status| status.success()));
    assert!(under_way.answer().is_none());
}

#[test]
fn what_is_under_way_is_served_before_the_end() {
    let shop = Echo::start();
    let mut edge = Edge::start(&[
        ("upstream.address", &format!("\"{}\"", shop.address)),
        ("upstream.read_timeout_ms", "1500"),
    ]);
    let mut under_way = edge.connect();
    under_way.ask("GET", "/slow", &[], "");
    eventually("the shop is asked", || shop.count() == 1);
    edge.signal("QUIT");
    eventually("it says that it stops", || edge.ready().status == 503);
    assert_eq!(edge.ready().json()["state"], "draining");
    assert_eq!(under_way.answer().expect("an answer").code(), "gateway_timeout");
    assert!(edge.ended(Duration::from_secs(5)).is_some_and(|status| status.success()));
}

#[test]
fn an_open_stream_does_not_hold_up_the_end() {
    let mut edge = Edge::start(&[]);
    edge.put(&Sale::default());
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), r#"{"sku":"phone","quantity":1}"#);
    let mut events = edge.connect();
    events.ask(
        "GET",
        bought.json()["events_url"].as_str().unwrap(),
        &[("Authorization", &bearer("alice"))],
        "",
    );
    assert_eq!(events.head().unwrap().0, 200);
    assert!(events.chunk().is_some());
    edge.signal("TERM");
    let farewell = String::from_utf8(events.chunk().unwrap()).unwrap();
    assert!(farewell.starts_with(": ") && farewell.contains("\nretry: ") && farewell.ends_with("\n\n"));
    assert_eq!(events.chunk(), None);
    // The order is held for a broker that is not there: 5 s, then the journal has it.
    assert!(edge.ended(Duration::from_secs(12)).is_some_and(|status| status.success()));
}

#[test]
fn a_hangup_reloads_and_an_interrupt_ends_it() {
    let mut edge = Edge::start(&[]);
    edge.signal("HUP");
    eventually("it says so", || edge.log().contains("reloaded"));
    edge.edit("jwt_secret", "jwt_sekret");
    edge.signal("HUP");
    eventually("it says what is wrong", || edge.log().contains("did you mean jwt_secret?"));
    assert_eq!(edge.ready().status, 200);
    edge.signal("INT");
    assert!(edge.ended(Duration::from_secs(3)).is_some());
}
