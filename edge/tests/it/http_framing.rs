//! Where a request ends: nothing behind one that is not sound is ever served.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::client::{Connection, Echo};
use crate::harness::{Edge, bearer};

const ONE: &str = r#"{"sku":"phone","quantity":1}"#;

/// A purchase, framed by hand.
fn purchase(edge: &Edge, user: &str, fields: &str, body: &str) -> String {
    let (bearer, token) = (bearer(user), edge.token("demo", user));
    format!(
        "POST /v1/sales/demo/orders HTTP/1.1\r\nHost: gate\r\nAuthorization: {bearer}\r\nX-Sale-Token: {token}\r\n\
         {fields}\r\n{body}"
    )
}

fn order(edge: &Edge, user: &str) -> String {
    purchase(edge, user, &format!("Content-Length: {}\r\n", ONE.len()), ONE)
}

fn left(edge: &Edge) -> i64 {
    edge.run(sluice_shared::redis::cmd("HGET").arg("sluice:{demo:0}:stock").arg("phone"))
}

/// What a body is that no two servers read alike.
const MALFORMED: [&str; 8] = [
    "\r\n{}\r\n0\r\n\r\n",
    ";a\r\n{}\r\n0\r\n\r\n",
    "2\n{}\r\n0\r\n\r\n",
    "2;a\nb\r\n{}\r\n0\r\n\r\n",
    "2\r\n{}0\r\n\r\n",
    "0x2\r\n{}\r\n0\r\n\r\n",
    "0\r\nno colon\r\n\r\n",
    "0\r\nX: 1\r\n folded\r\n\r\n",
];

#[test]
fn nothing_is_served_behind_a_body_that_is_malformed() {
    let edge = Edge::selling(&[]);
    for (at, body) in MALFORMED.iter().enumerate() {
        for reused in [false, true] {
            let user = format!("user-{at}-{reused}");
            let mut connection = edge.connect();
            if reused {
                assert_eq!(connection.call("GET", "/v1/sales/demo", &[], "").status, 200);
                let odd = [("Connection", "keep-alive")];
                assert_eq!(connection.call("GET", "/v1/sales/demo", &odd, "").status, 200);
            }
            let chunked = purchase(&edge, &format!("{user}-first"), "Transfer-Encoding: chunked\r\n", body);
            connection.send(chunked + &order(&edge, &user));
            let answer = connection.answer().unwrap();
            let told = (answer.status, answer.field("connection"));
            assert_eq!(told, (400, Some("close")), "{body:?} reused {reused}");
            assert!(connection.is_closed(), "{body:?} reused {reused}");
        }
    }
    assert_eq!(left(&edge), 100, "a hidden order was taken");
}

#[test]
fn a_refusal_before_the_body_serves_nothing_behind_a_malformed_one() {
    let shop = Echo::start();
    let edge = Edge::selling(&[("upstream.address", &format!("\"{}\"", shop.address))]);
    for path in ["/v1/sales/none/orders", "/v1/sales/demo/token", "/v1/orders/claim", "/admin/v1/x"] {
        for body in MALFORMED {
            let mut connection = edge.connect();
            let head = format!("POST {path} HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n");
            connection.send(head + body + &order(&edge, "alice"));
            assert!(connection.answer().unwrap().status >= 400, "{path} {body:?}");
            assert!(connection.is_closed(), "{path} {body:?}");
        }
    }
    assert_eq!(left(&edge), 100, "a hidden order was taken");
    for body in MALFORMED {
        let mut connection = edge.connect();
        let head = "POST /cart HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.send(format!("{head}{body}GET /hidden HTTP/1.1\r\nHost: gate\r\n\r\n"));
        assert_eq!(connection.answer().map(|answer| answer.status), Some(400), "{body:?}");
        assert!(connection.is_closed(), "{body:?}");
    }
    assert!(shop.all().iter().all(|asked| asked.path != "/hidden"));
}

#[test]
fn the_operators_listener_ends_where_a_body_is_not_read() {
    let edge = Edge::start(&[]);
    let hidden = "GET /-/live HTTP/1.1\r\nHost: gate\r\n\r\n";
    for (fields, body) in [
        ("Transfer-Encoding: chunked\r\n", "\r\n{}\r\n0\r\n\r\n"),
        ("Content-Length: 2, 2\r\n", "{}"),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ] {
        let mut connection = Connection::open(edge.admin);
        assert_eq!(connection.call("GET", "/-/live", &[], "").status, 200);
        connection.send(format!("POST /-/live HTTP/1.1\r\nHost: gate\r\n{fields}\r\n{body}{hidden}"));
        assert!(connection.answer().unwrap().status >= 400, "{fields}");
        assert!(connection.is_closed(), "{fields}");
    }
}

/// One head, sent to both listeners and in two ways: status and code, and then the end.
fn refused(address: SocketAddr, head: &str, status: u16) {
    let hidden = "GET /v1/sales/demo HTTP/1.1\r\nHost: gate\r\n\r\n";
    let mut connection = Connection::open(address);
    connection.send(format!("{head}{hidden}"));
    let answer = connection.answer().unwrap_or_else(|| panic!("no answer to {head:?}"));
    assert_eq!(answer.status, status, "{head:?}");
    answer.code();
    assert!(connection.is_closed(), "{head:?}");
}

#[test]
fn a_head_that_two_servers_might_read_differently_is_refused() {
    let shop = Echo::start();
    let edge = Edge::selling(&[("upstream.address", &format!("\"{}\"", shop.address))]);
    let hosts = ["", "a b", "a/b", "a:b", "a:1:2", "a@b", "[::1", "[]", "a\tb", ":80", "a:123456", "a%00"];
    let mut heads: Vec<(String, u16)> = Vec::new();
    for path in ["/v1/sales/demo", "/echo"] {
        heads.extend(hosts.map(|host| (format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"), 400)));
        for (fields, status) in [
            ("Host: gate\r\n", 400),
            ("Content-Length: 2, 2\r\n", 400),
            ("Content-Length: 2\r\nContent-Length: 2\r\n", 400),
            ("Content-Length: +2\r\n", 400),
            ("Content-Length: 99999999999999999999\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", 501),
            ("Transfer-Encoding: chunked, chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked, gzip\r\n", 400),
            ("Transfer-Encoding: chunked,\r\n", 400),
            ("Transfer-Encoding: \r\n", 400),
            ("Transfer-Encoding: chunked;q=1\r\n", 400),
            ("Transfer-Encoding : chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", 400),
            ("X-Folded: 1\r\n 2\r\n", 400),
            ("X-Bare: 1\n", 400),
            ("X-Zero: \0\r\n", 400),
        ] {
            heads.push((format!("POST {path} HTTP/1.1\r\nHost: gate\r\n{fields}\r\n"), status));
        }
        heads.extend([
            (format!("GET {path} HTTP/1.1\nHost: gate\r\n\r\n"), 400),
            (format!("GET {path} HTTP/1.1\r\nHost: gate\r\n\n"), 400),
            (format!("GET  {path} HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("GET {path}  HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("GET {path}\0 HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("GET {path} x HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("GET {path}#x HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("GET ftp://gate{path} HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("GET http://other{path} HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("GET http://a@gate{path} HTTP/1.1\r\nHost: gate\r\n\r\n"), 400),
            (format!("TRACE {path} HTTP/1.1\r\nHost: gate\r\n\r\n"), 405),
            (format!("POST {path} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
            ("GET echo HTTP/1.1\r\nHost: gate\r\n\r\n".to_owned(), 400),
            ("GET * HTTP/1.1\r\nHost: gate\r\n\r\n".to_owned(), 400),
        ]);
    }
    for (head, status) in &heads {
        refused(edge.public, head, *status);
        refused(edge.admin, head, *status);
    }
    assert_eq!(shop.count(), 0);
    assert!(edge.metric("sluice_http_refused_total{code=\"bad_request\"}") > 80.0);
}

#[test]
fn a_target_in_absolute_form_is_its_path_and_its_host() {
    let shop = Echo::start();
    let edge = Edge::selling(&[("upstream.address", &format!("\"{}\"", shop.address))]);
    let mut connection = edge.connect();
    for (target, host, path, seen) in [
        ("http://shop/echo?a=b", "Host: shop\r\n", "/echo?a=b", "shop"),
        ("http://shop:80", "Host: SHOP:80\r\n", "/", "shop:80"),
        ("HTTPS://shop?x", "Host: shop\r\n", "/?x", "shop"),
    ] {
        connection.send(format!("GET {target} HTTP/1.1\r\n{host}X-Mine: 1\r\n\r\n"));
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200), "{target}");
        let asked = shop.last();
        assert_eq!((asked.path.as_str(), asked.all("host")), (path, vec![seen]), "{target}");
        assert_eq!(asked.all("x-mine"), ["1"]);
    }
    connection.send("GET http://gate/v1/sales/demo HTTP/1.1\r\nHost: gate\r\n\r\n");
    assert_eq!(connection.answer().unwrap().json()["sale"], "demo");
}

#[test]
fn a_refusal_is_told_at_once_and_the_body_read_behind_it() {
    let edge = Edge::selling(&[]);
    let head = |path: &str, fields: &str| format!("POST {path} HTTP/1.1\r\nHost: gate\r\n{fields}\r\n");
    // Its body is small: the connection goes on behind it, whenever it comes.
    let mut connection = edge.connect();
    for (path, status) in [("/v1/sales/none/orders", 404), ("/v1/sales/demo/orders", 401), ("/x", 404)] {
        connection.send(head(path, "Content-Length: 28\r\n"));
        let began = Instant::now();
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.field("connection")), (status, Some("keep-alive")), "{path}");
        assert!(began.elapsed() < Duration::from_secs(1), "{path}: {:?}", began.elapsed());
        connection.send(ONE);
        assert_eq!(connection.call("GET", "/v1/sales/demo", &[], "").status, 200, "{path}");
    }
    // Nobody knows how much is to come, or whether: it is the last answer.
    for (fields, status) in [
        ("Transfer-Encoding: chunked\r\n", 401),
        ("Content-Length: 70000\r\n", 413),
        ("Content-Length: 28\r\nExpect: 100-continue\r\n", 401),
    ] {
        let (mut connection, began) = (edge.connect(), Instant::now());
        connection.send(head("/v1/sales/demo/orders", fields));
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{fields}");
        assert!(connection.is_closed() && began.elapsed() < Duration::from_secs(1), "{fields}");
    }
    // A body that never comes: what is sent instead is not taken for a request.
    let mut connection = edge.connect();
    connection.send(head("/x", "Content-Length: 5000\r\n"));
    assert_eq!(connection.answer().unwrap().status, 404);
    connection.send(order(&edge, "alice"));
    assert!(connection.is_closed());
    assert_eq!(left(&edge), 100);
}
