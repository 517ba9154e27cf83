//! What is not ours goes to the shop; what only the books know, to the workers.

use std::net::TcpListener;

use sluice_shared::ids::OrderId;

use crate::client::Echo;
use crate::harness::{API_SECRET, Edge, bearer, jwt};

fn quoted(address: impl ToString) -> String {
    format!("\"{}\"", address.to_string())
}

#[test]
fn the_shop_sees_who_it_is_and_nothing_that_a_client_made_up() {
    let shop = Echo::start();
    let edge = Edge::start(&[("upstream.address", &quoted(shop.address))]);
    let mut connection = edge.connect();
    let bearer = bearer("alice");
    let fields = [
        ("Authorization", bearer.as_str()),
        ("X-Sluice-User", "root"),
        ("X_Sluice_User", "root"),
        ("X-User-Id", "0"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Proto", "https"),
        ("X-Request-Id", "mine"),
        ("Cookie", "a=b"),
    ];
    let answer = connection.call("POST", "/cart?x=1&y=%20", &fields, "two units");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
    let asked = shop.last();
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str(), asked.body.as_str()),
        ("POST", "/cart?x=1&y=%20", "two units")
    );
    for (name, value) in [
        ("x-sluice-user", vec!["alice"]),
        ("x_sluice_user", vec![]),
        ("x-user-id", vec![]),
        ("x-forwarded-for", vec!["127.0.0.1"]),
        ("x-forwarded-proto", vec!["http"]),
        ("x-forwarded-host", vec!["gate"]),
        ("host", vec!["gate"]),
        ("x-request-id", vec!["mine"]),
        ("cookie", vec!["a=b"]),
        ("authorization", vec![bearer.as_str()]),
    ] {
        assert_eq!(asked.all(name), value, "{name}");
    }
    // A token that is not good is the shop's to judge.
    connection.call("GET", "/", &[("Authorization", "Bearer x"), ("X-Sluice-User", "root")], "");
    assert!(shop.last().all("x-sluice-user").is_empty());
    let two = jwt("alice");
    let twice = [("Authorization", format!("Bearer {two}")), ("Authorization", format!("Bearer {two}"))];
    let twice: Vec<(&str, &str)> = twice.iter().map(|(name, value)| (*name, value.as_str())).collect();
    connection.call("GET", "/", &twice, "");
    assert!(shop.last().all("x-sluice-user").is_empty());
    let before = shop.count();
    for path in ["/admin/v1/sales", "/%61dmin/v1", "//-/reload", "/x/../-/live", "/v1/sales/none"] {
        assert_eq!(connection.call("GET", path, &[], "").status, 404, "{path}");
    }
    assert_eq!(shop.count(), before);
}

#[test]
fn a_trusted_proxy_names_the_buyer() {
    let shop = Echo::start();
    let trusted = ("trusted_proxies.addresses", "[\"127.0.0.0/8\"]");
    let edge = Edge::start(&[("upstream.address", &quoted(shop.address)), trusted]);
    let fields = [
        ("X-Forwarded-For", "6.6.6.6, 203.0.113.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example"),
    ];
    edge.connect().call("GET", "/", &fields, "");
    let asked = shop.last();
    assert_eq!(asked.all("x-forwarded-for"), ["6.6.6.6, 203.0.113.9, 127.0.0.1"]);
    assert_eq!(
        (asked.all("x-forwarded-proto"), asked.all("x-forwarded-host")),
        (vec!["https"], vec!["shop.example"])
    );
}

#[test]
fn a_failing_shop_is_told_from_a_slow_one() {
    let shop = Echo::start();
    let edge = Edge::start(&[
        ("upstream.address", &quoted(shop.address)),
        ("upstream.read_timeout_ms", "300"),
        ("limits.upstream_body_bytes", "1000"),
    ]);
    for (path, status, code) in [("/garbage", 502, "bad_gateway"), ("/slow", 504, "gateway_timeout")] {
        let answer = edge.connect().call("GET", path, &[], "");
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
    }
    let long = "x".repeat(1001);
    let mut connection = edge.connect();
    let refused = connection.call("POST", "/", &[], &long);
    assert_eq!((refused.status, refused.code().as_str()), (413, "body_too_large"));
    connection.send(format!(
        "POST / HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{long}\r\n0\r\n\r\n"
    ));
    let refused = connection.answer().unwrap();
    assert_eq!((refused.status, refused.code().as_str()), (413, "body_too_large"));

    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(&[("upstream.address", &quoted(gone))]);
    let answer = edge.connect().call("GET", "/", &[], "");
    assert_eq!((answer.status, answer.code().as_str()), (502, "bad_gateway"));
}

#[test]
fn connections_to_the_shop_are_kept() {
    let shop = Echo::start();
    let edge = Edge::start(&[("upstream.address", &quoted(shop.address))]);
    let mut connection = edge.connect();
    for _ in 0..50 {
        let answer = connection.call("GET", "/", &[], "");
        assert_eq!((answer.status, answer.field("connection")), (200, Some("keep-alive")));
    }
    assert_eq!(shop.count(), 50);
}

#[test]
fn the_workers_are_asked_for_what_redis_does_not_know() {
    let api = Echo::start();
    let edge = Edge::start(&[("api.address", &quoted(api.address))]);
    let (id, bearer) = (OrderId::mint(9, 0), bearer("alice"));
    let mut connection = edge.connect();
    for method in ["GET", "DELETE"] {
        let fields = [("Authorization", bearer.as_str()), ("X-Sluice-User", "root"), ("Cookie", "a=b")];
        let answer = connection.call(method, &format!("/v1/orders/{id}"), &fields, "");
        assert_eq!((answer.status, answer.json()["state"].as_str()), (200, Some("paid")));
        assert!(answer.field("x-request-id").is_some());
        let asked = api.last();
        assert_eq!(
            (asked.method.as_str(), asked.path.clone()),
            (method, format!("/internal/v1/orders/{id}"))
        );
        assert_eq!(asked.all("x-sluice-user"), ["alice"]);
        assert_eq!(asked.all("authorization"), [format!("Bearer {API_SECRET}")]);
        assert_eq!(asked.all("x-request-id"), [answer.field("x-request-id").unwrap()]);
        assert!(asked.all("cookie").is_empty());
    }
    let before = api.count();
    assert_eq!(connection.call("DELETE", &format!("/v1/orders/{id}"), &[], "").code(), "unauthenticated");
    assert_eq!(api.count(), before);

    let events =
        connection.call("GET", &format!("/v1/orders/{id}/events"), &[("Authorization", &bearer)], "");
    assert_eq!(events.field("content-type"), Some("text/event-stream"));
    let text = String::from_utf8(events.body).unwrap();
    assert!(
        text.starts_with("event: order\nid: ")
            && text.contains("\ndata: {\"order_id\":")
            && text.ends_with("\n\n"),
        "{text}"
    );

    let notice = r#"{"payment_id":"p1","odd":  1}"#;
    let signed = [
        ("X-Payment-Signature", "t=1,v1=ab"),
        ("Content-Type", "application/json"),
        ("X-Sluice-User", "root"),
    ];
    assert_eq!(connection.call("POST", "/v1/payments/callback", &signed, notice).status, 200);
    let asked = api.last();
    assert_eq!((asked.path.as_str(), asked.body.as_str()), ("/internal/v1/payments/callback", notice));
    assert_eq!(asked.all("x-payment-signature"), ["t=1,v1=ab"]);
    assert!(asked.all("x-sluice-user").is_empty());
    let chunked = format!(
        "POST /v1/payments/callback HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{notice}\r\n0\r\n\r\n",
        notice.len()
    );
    connection.send(chunked);
    assert_eq!((connection.answer().unwrap().status, api.last().body.as_str()), (200, notice));
}

#[test]
fn a_body_that_comes_slowly_has_its_own_time() {
    let api = Echo::start();
    let settings = [("api.read_timeout_ms", "150"), ("limits.body_timeout_ms", "1500")];
    let edge = Edge::start(&[&[("api.address", quoted(api.address).as_str())][..], &settings].concat());
    let head = "POST /v1/payments/callback HTTP/1.1\r\nHost: gate\r\nX-Payment-Signature: t=1,v1=ab\r\n";
    for (head, rest) in [
        (format!("{head}Content-Length: 8\r\n\r\n{{\"a\""), ":10}"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\n{{\"a\"\r\n"), "4\r\n:10}\r\n0\r\n\r\n"),
    ] {
        let mut connection = edge.connect();
        connection.send(&head);
        std::thread::sleep(std::time::Duration::from_millis(200));
        connection.send(rest);
        assert_eq!(connection.answer().unwrap().status, 200, "{head}");
        assert_eq!(api.last().body, "{\"a\":10}");
        let mut silent = edge.connect();
        silent.send(&head);
        assert_eq!(silent.answer().unwrap().code(), "request_timeout", "{head}");
    }
}

#[test]
fn absent_workers_are_unavailable() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Edge::start(&[("api.address", &quoted(gone))]);
    let path = format!("/v1/orders/{}", OrderId::mint(9, 0));
    let bearer = bearer("alice");
    for (method, path, body) in
        [("GET", path.as_str(), ""), ("DELETE", &path, ""), ("POST", "/v1/payments/callback", "{}")]
    {
        let answer = edge.connect().call(method, path, &[("Authorization", &bearer)], body);
        assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"), "{method} {path}");
    }
}
