//! Requests that are none: too large, too late, malformed.

use std::time::{Duration, Instant};

use crate::client::Connection;
use crate::harness::{Edge, bearer};

fn code(connection: &mut Connection) -> (u16, String) {
    let answer = connection.answer().expect("an answer");
    (answer.status, answer.code())
}

/// A request whose body is announced and framed by hand.
fn order(edge: &Edge, user: &str, fields: &str, body: &str) -> Connection {
    let mut connection = edge.connect();
    let (bearer, token) = (bearer(user), edge.token("demo", user));
    connection.send(format!(
        "POST /v1/sales/demo/orders HTTP/1.1\r\nHost: gate\r\nAuthorization: {bearer}\r\nX-Sale-Token: {token}\r\n\
         {fields}\r\n{body}"
    ));
    connection
}

#[test]
fn every_limit_of_the_head_has_its_code() {
    let edge = Edge::selling(&[("api.address", "\"127.0.0.1:1\"")]);
    let fields = |n: usize| (0..n).map(|n| format!("X-F{n}: 1\r\n")).collect::<String>();
    let get = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: gate\r\n{more}\r\n");
    let long = |n: usize| "a".repeat(n);
    for (head, status, wrong) in [
        (get(&format!("/{}", long(8191)), ""), 404, "not_found"),
        (get(&format!("/{}", long(8192)), ""), 414, "uri_too_long"),
        (get(&format!("/{}", long(40_000)), ""), 414, "uri_too_long"),
        (get("/v1/sales/demo", &fields(127)), 200, ""),
        (get("/v1/sales/demo", &fields(128)), 431, "headers_too_large"),
        (get("/v1/sales/demo", &fields(250)), 431, "headers_too_large"),
        (get("/v1/sales/demo", &fields(500)), 431, "headers_too_large"),
        (get("/v1/sales/demo", &format!("X-Long: {}\r\n", long(32_000))), 200, ""),
        (get("/v1/sales/demo", &format!("X-Long: {}\r\n", long(33_000))), 431, "headers_too_large"),
        (get("/v1/sales/demo", &format!("X-Long: {}\r\n", long(300_000))), 431, "headers_too_large"),
        ("GET /v1/sales/demo HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET /v1/sales/demo\r\nHost: gate\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET /v1/sales/demo HTTP/3.7\r\nHost: gate\r\n\r\n".to_owned(), 400, "bad_request"),
        ("\u{1}\u{2}\r\n\r\n".to_owned(), 400, "bad_request"),
        (get("/v1/sales/demo", "No colon\r\n"), 400, "bad_request"),
        (get("/v1/sales/demo", "Content-Length: x\r\n"), 400, "bad_request"),
        (get("/v1/sales/demo", "Content-Length: -1\r\n"), 400, "bad_request"),
        (get("/v1/sales/demo", "Content-Length: 1\r\nContent-Length: 2\r\n"), 400, "bad_request"),
        (get("/v1/sales/demo", "Transfer-Encoding: gzip\r\n"), 400, "bad_request"),
        (
            get("/v1/sales/demo", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n",
            400,
            "bad_request",
        ),
        (get("/v1/sales/demo", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400, "bad_request"),
        ("CONNECT gate:1 HTTP/1.1\r\nHost: gate:1\r\n\r\n".to_owned(), 405, "method_not_allowed"),
    ] {
        let mut connection = edge.connect();
        connection.send(&head);
        let answer = connection.answer().unwrap_or_else(|| panic!("no answer: {:.60}", head));
        let code = if answer.status == 200 { String::new() } else { answer.code() };
        assert_eq!((answer.status, code.as_str()), (status, wrong), "{head:.60}");
    }
}

#[test]
fn a_head_in_drips_is_cut_off_in_time() {
    let edge = Edge::selling(&[("limits.head_timeout_ms", "150")]);
    let (mut connection, began) = (edge.connect(), Instant::now());
    connection.send("GET /v1/sales/demo HTTP/1.1\r\nHost: gate\r\n");
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        connection.send("X-Drip: 1\r\n");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(code(&mut connection), (408, "request_timeout".to_owned()));
    assert!(connection.is_closed() && began.elapsed() < Duration::from_secs(5));
    // A connection that has said nothing yet, or nothing new, may wait longer.
    let mut quiet = edge.connect();
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..2 {
        assert_eq!(quiet.call("GET", "/v1/sales/demo", &[], "").status, 200);
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_body_is_judged_by_kind_size_and_time() {
    let edge = Edge::selling(&[("limits.body_timeout_ms", "500")]);
    let one = r#"{"sku":"phone","quantity":1}"#;
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let length = |fields: &str| format!("Content-Length: {}\r\n{fields}", one.len());
    let padded = |n: usize| format!("{}{one}", " ".repeat(n - one.len()));
    let cases = [
        (length(""), one.to_owned(), (202, "")),
        (length("Content-Type: application/json\r\n"), one.to_owned(), (202, "")),
        (length("Content-Type: Application/JSON; charset=utf-8\r\n"), one.to_owned(), (202, "")),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(one), (202, "")),
        ("Content-Length: 4096\r\n".to_owned(), padded(4096), (202, "")),
        (length("Content-Type: text/plain\r\n"), one.to_owned(), (415, "unsupported_media_type")),
        (length("Content-Type: \r\n"), one.to_owned(), (415, "unsupported_media_type")),
        (length("Content-Encoding: gzip\r\n"), one.to_owned(), (415, "unsupported_media_type")),
        (length("Content-Encoding: identity\r\n"), one.to_owned(), (415, "unsupported_media_type")),
        ("Content-Length: 4097\r\n".to_owned(), padded(4097), (413, "body_too_large")),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(&padded(4097)), (413, "body_too_large")),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunked("{"), (400, "bad_request")),
        (String::new(), String::new(), (400, "bad_request")),
    ];
    for (at, (fields, body, wanted)) in cases.into_iter().enumerate() {
        let mut connection = order(&edge, &format!("user-{at}"), &fields, &body);
        let answer = connection.answer().unwrap_or_else(|| panic!("no answer: {fields}"));
        let code = if answer.status == 202 { String::new() } else { answer.code() };
        assert_eq!((answer.status, code.as_str()), wanted, "{fields}");
        // Whatever it was, the connection goes on.
        assert_eq!(connection.call("GET", "/v1/sales/demo", &[], "").status, 200, "{fields}");
    }
    for (fields, body, wanted) in [
        ("Content-Length: 100000000\r\n", "x", (413, "body_too_large")),
        ("Content-Length: 50\r\n", "{", (408, "request_timeout")),
        ("Transfer-Encoding: chunked\r\n", "5\r\nab", (408, "request_timeout")),
        ("Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n", (400, "bad_request")),
    ] {
        let mut connection = order(&edge, "alice", fields, body);
        assert_eq!(code(&mut connection), (wanted.0, wanted.1.to_owned()), "{fields} {body}");
        assert!(connection.is_closed(), "{fields}");
    }
    // Far more than is ever read: the answer arrives all the same.
    let mut connection = order(&edge, "alice", "Transfer-Encoding: chunked\r\n", "");
    for _ in 0..200 {
        connection.send(format!("400\r\n{}\r\n", " ".repeat(0x400)));
    }
    assert_eq!(code(&mut connection), (413, "body_too_large".to_owned()));
}

#[test]
fn a_refusal_reads_the_body_away() {
    let edge = Edge::selling(&[]);
    let mut connection = edge.connect();
    for (path, wanted) in [("/v1/sales/none/orders", 404), ("/v1/sales/demo/orders", 401), ("/x", 404)] {
        let refused = connection.call(
            "POST",
            path,
            &[("Expect", "100-continue")],
            "{\"sku\":\"phone\",\"quantity\":1}",
        );
        let refused = if refused.status == 100 { connection.answer().unwrap() } else { refused };
        assert_eq!(refused.status, wanted);
    }
    assert_eq!(connection.call("GET", "/v1/sales/demo", &[], "").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let edge = Edge::selling(&[]);
    let mut connection = edge.connect();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: gate\r\n\r\n");
    connection.send(get("/v1/sales/demo") + &get("/v1/sales/none") + &get("/v1/sales/demo"));
    let statuses: Vec<u16> = (0..3).map(|_| connection.answer().unwrap().status).collect();
    assert_eq!(statuses, [200, 404, 200]);
}

#[test]
fn an_old_client_gets_one_answer() {
    let edge = Edge::selling(&[]);
    let mut connection = edge.connect();
    connection.send("GET /v1/sales/demo HTTP/1.0\r\n\r\n");
    assert_eq!(connection.answer().unwrap().status, 200);
    assert!(connection.is_closed());
}

#[test]
fn a_connection_beyond_the_limit_takes_the_place_of_the_longest_idle_one() {
    let edge = Edge::selling(&[("limits.connections", "3")]);
    let mut open: Vec<Connection> = (0..3).map(|_| edge.connect()).collect();
    for connection in &mut open {
        assert_eq!(connection.call("GET", "/v1/sales/demo", &[], "").status, 200);
    }
    assert_eq!(edge.connect().call("GET", "/v1/sales/demo", &[], "").status, 200);
    assert!(open.remove(0).is_closed());
    assert_eq!(open.remove(0).call("GET", "/v1/sales/demo", &[], "").status, 200);
}
