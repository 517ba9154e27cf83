//! The short way and the long way of a request lead to the same answer, on the same connection.

use std::collections::BTreeSet;

use serde_json::Value;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{SaleId, UserId};
use sluice_shared::sale::SaleStep;
use sluice_shared::token::TokenKeys;

use crate::client::{Answer, Connection};
use crate::harness::{Edge, Sale, bearer};

const ONE: &str = r#"{"sku":"phone","quantity":1}"#;
/// Changes nothing, but is not plain: a request with it goes the long way.
const ODD: (&str, &str) = ("Connection", "keep-alive");

/// What an answer says, without what is another one each time.
fn said(answer: &Answer) -> (u16, BTreeSet<String>, Value) {
    let names = answer.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let mut body = answer.json();
    if let Some(body) = body.as_object_mut() {
        for fresh in ["token", "order_id", "expires_at", "server_time", "events_url"] {
            body.remove(fresh);
        }
    }
    (answer.status, names, body)
}

/// One kind of request: method, path, fields, body.
type Kind<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a str);

#[test]
fn both_ways_answer_alike() {
    let edge = Edge::selling(&[("cors.allowed_origins", "[\"https://shop.example\"]")]);
    let (alice, token) = (bearer("alice"), edge.token("demo", "alice"));
    assert_eq!(edge.buy("demo", "alice", &token, ONE).status, 202);
    let fresh = edge.token("demo", "alice");
    let (who, spent, new) =
        (("Authorization", alice.as_str()), ("X-Sale-Token", &*token), ("X-Sale-Token", &*fresh));
    let (orders, tokens) = ("/v1/sales/demo/orders", "/v1/sales/demo/token");
    let requests: Vec<Kind<'_>> = vec![
        ("GET", "/v1/sales/demo", vec![], ""),
        ("GET", "/v1/sales/demo", vec![("Origin", "https://shop.example")], ""),
        ("GET", "/v1/sales/none", vec![], ""),
        ("GET", orders, vec![], ""),
        ("POST", tokens, vec![who], ""),
        ("POST", tokens, vec![who], "{}"),
        ("POST", tokens, vec![who], "{\"x\":1}"),
        ("POST", tokens, vec![who, ("X-Request-Id", "mine")], ""),
        ("POST", tokens, vec![], ""),
        ("POST", orders, vec![who, spent], ONE),
        ("POST", orders, vec![who, spent, ("Content-Type", "application/json")], ONE),
        ("POST", orders, vec![who, spent, ("Content-Type", "text/plain")], ONE),
        ("POST", orders, vec![who, spent, ("Content-Encoding", "gzip")], ONE),
        ("POST", orders, vec![who, who, spent], ONE),
        ("POST", orders, vec![who, spent], r#"{"sku":"phone","quantity":2}"#),
        ("POST", orders, vec![who, new], r#"{"sku":"none","quantity":1}"#),
        ("POST", orders, vec![who, new], r#"{"sku":"phone","quantity":9}"#),
        ("POST", orders, vec![who, new], r#"{"sku":"case","quantity":6}"#),
        ("POST", orders, vec![who, new], "{"),
        ("POST", orders, vec![who, new], ""),
        ("POST", orders, vec![who], ONE),
        ("POST", orders, vec![who, ("X-Sale-Token", "x")], ONE),
        ("POST", "/v1/sales/none/orders", vec![], ONE),
    ];
    let mut connection = edge.connect();
    for (method, path, fields, body) in requests {
        let short = connection.call(method, path, &fields, body);
        let odd: Vec<(&str, &str)> = fields.iter().copied().chain([ODD]).collect();
        let long = connection.call(method, path, &odd, body);
        assert_eq!(said(&short), said(&long), "{method} {path} {fields:?} {body}");
        assert_eq!(short.field("connection"), Some("keep-alive"));
    }
}

#[test]
fn a_connection_takes_both_ways_in_turn_and_loses_no_byte() {
    let edge = Edge::selling(&[]);
    let (mut connection, bearer) = (edge.connect(), bearer("alice"));
    let get = |id: &str| format!("GET /v1/sales/demo HTTP/1.1\r\nHost: gate\r\nX-Request-Id: {id}\r\n\r\n");
    let odd = |id: &str| get(id).replace("\r\n\r\n", "\r\nConnection: keep-alive\r\n\r\n");
    let post = |id: &str, framing: &str, body: &str| {
        format!(
            "POST /v1/sales/demo/token HTTP/1.1\r\nHost: gate\r\nX-Request-Id: {id}\r\n\
             Authorization: {bearer}\r\n{framing}\r\n{body}"
        )
    };
    let chunked = |id: &str| post(id, "Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n");
    let whole = |id: &str| post(id, "Content-Length: 2\r\n", "{}");
    // All of it in one write: whatever one way reads of the next request is there for the other.
    let ids = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let all = [get("a"), odd("b"), whole("c"), chunked("d"), get("e"), whole("f"), odd("g"), whole("h")];
    connection.send(all.concat());
    for id in ids {
        let answer = connection.answer().unwrap_or_else(|| panic!("no answer to {id}"));
        assert_eq!((answer.status, answer.field("x-request-id")), (200, Some(id)));
    }
    // One by one, so that the connection comes back to the short way in between.
    for (id, request) in ids.iter().zip(&all) {
        connection.send(request);
        let answer = connection.answer().unwrap_or_else(|| panic!("no answer to {id}"));
        assert_eq!((answer.status, answer.field("x-request-id")), (200, Some(*id)));
    }
}

#[test]
fn a_request_in_two_pieces_is_read_to_its_end() {
    let edge = Edge::selling(&[]);
    let request = format!(
        "POST /v1/sales/demo/token HTTP/1.1\r\nHost: gate\r\nAuthorization: {}\r\nContent-Length: 2\r\n\r\n{{}}",
        bearer("alice")
    );
    for cut in [1, 20, request.len() - 3, request.len() - 1] {
        let mut connection = edge.connect();
        connection.send(&request[..cut]);
        // Another connection's answer: the gate has had its turn, and has seen the first piece.
        assert_eq!(edge.connect().call("GET", "/v1/sales/demo", &[], "").status, 200);
        connection.send(&request[cut..]);
        assert_eq!(connection.answer().map(|answer| answer.status), Some(200), "cut at {cut}");
        assert_eq!(connection.call("GET", "/v1/sales/demo", &[], "").status, 200);
    }
}

/// A purchase to be.
#[derive(Clone)]
struct Purchase {
    sale: &'static str,
    bearer: String,
    token: Option<String>,
    body: &'static str,
}

/// One thing that is wrong with a purchase: its code, the part that it changes, and how.
type Fault = (&'static str, &'static str, fn(&mut Purchase));

/// In the order of the outside contract; the address bucket and overload have tests of their own.
const FAULTS: [Fault; 13] = [
    ("unknown_sale", "sale", |p| p.sale = "none"),
    ("unauthenticated", "bearer", |p| p.bearer = "Bearer x".to_owned()),
    ("token_missing", "token", |p| p.token = None),
    ("token_invalid", "token", |p| p.token = Some("x".to_owned())),
    ("bad_request", "body", |p| p.body = "{"),
    ("frozen", "sale", |p| p.sale = "ice"),
    ("paused", "sale", |p| p.sale = "halt"),
    ("ended", "sale", |p| p.sale = "over"),
    ("not_started", "sale", |p| p.sale = "soon"),
    ("token_expired", "token", |p| p.token = Some("expired".to_owned())),
    ("unknown_sku", "body", |p| p.body = r#"{"sku":"none","quantity":1}"#),
    ("purchase_limit", "body", |p| p.body = r#"{"sku":"phone","quantity":3}"#),
    ("sold_out", "body", |p| {
        p.body = r#"{"lines":[{"sku":"phone","quantity":1},{"sku":"case","quantity":5}]}"#
    }),
];

fn send(edge: &Edge, connection: &mut Connection, purchase: &Purchase) -> Answer {
    let keys = TokenKeys::new([b"token secret of the tests".as_slice()]);
    let (sale, user) = (SaleId::parse(purchase.sale).unwrap(), UserId::parse("alice").unwrap());
    let minted = |expires| keys.issue(&sale, 1, 1, &user, expires).unwrap().0;
    let token = match purchase.token.as_deref() {
        Some("good") => Some(minted(Millis(Millis::now().0 + 600_000))),
        Some("expired") => Some(minted(Millis(Millis::now().0 - 1_000))),
        other => other.map(str::to_owned),
    };
    let mut fields = vec![("Authorization", purchase.bearer.as_str())];
    fields.extend(token.as_deref().map(|token| ("X-Sale-Token", token)));
    let path = format!("/v1/sales/{}/orders", purchase.sale);
    let answer = connection.call("POST", &path, &fields, purchase.body);
    fields.push(ODD);
    let long = connection.call("POST", &path, &fields, purchase.body);
    assert_eq!((answer.status, answer.code()), (long.status, long.code()));
    assert!(edge.connect().call("GET", "/v1/sales/demo", &[], "").status == 200);
    answer
}

#[test]
fn of_two_faults_the_first_of_the_contract_is_told() {
    let mut edge = Edge::selling(&[]);
    edge.put(&Sale { id: "halt", ..Sale::default() });
    edge.step("halt", SaleStep::Paused);
    edge.put(&Sale { id: "over", ..Sale::default() });
    edge.step("over", SaleStep::Closed);
    edge.put(&Sale { id: "soon", starts: 3000, ends: 6000, ..Sale::default() });
    edge.put(&Sale { id: "ice", ..Sale::default() });
    edge.freeze("ice");
    // One of five cases is gone: five are more than is left, and no more than one may have.
    let taken = edge.buy("demo", "bob", &edge.token("demo", "bob"), r#"{"sku":"case","quantity":1}"#);
    assert_eq!(taken.status, 202);
    let good = Purchase { sale: "demo", bearer: bearer("alice"), token: Some("good".to_owned()), body: ONE };
    let mut connection = edge.connect();
    let mut pairs = 0;
    for (at, (code, part, first)) in FAULTS.iter().enumerate() {
        let mut purchase = good.clone();
        first(&mut purchase);
        assert_eq!(send(&edge, &mut connection, &purchase).code(), *code);
        for (later, other, second) in &FAULTS[at + 1..] {
            if other != part {
                let mut purchase = good.clone();
                second(&mut purchase);
                first(&mut purchase);
                assert_eq!(send(&edge, &mut connection, &purchase).code(), *code, "with {later}");
                pairs += 1;
            }
        }
    }
    assert_eq!(pairs, 59);
}
