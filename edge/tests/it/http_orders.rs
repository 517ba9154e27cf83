//! A purchase and its order, as the buyer sees them.

use serde_json::json;
use sluice_shared::ids::OrderId;
use sluice_shared::ids::SaleId;
use sluice_shared::keys::{Segment, sale_channel};
use sluice_shared::redis::cmd;

use crate::client::Connection;
use crate::harness::{Edge, bearer};

const TWO: &str = r#"{"sku":"phone","quantity":2}"#;

/// Moves an order as a worker's script would, and tells.
fn rewrite(edge: &Edge, id: &str, change: impl Fn(&str) -> String) {
    let (sale, id) = (SaleId::parse("demo").unwrap(), OrderId::parse(id).unwrap());
    let orders = Segment::new(sale.clone(), 0).orders();
    let record: String = edge.run(cmd("HGET").arg(&orders).arg(id.field()));
    let record = change(&record);
    let _: i64 = edge.run(cmd("HSET").arg(&orders).arg(id.field()).arg(&record));
    let told = format!("order {} {record}", id.field());
    let _: i64 = edge.run(cmd("PUBLISH").arg(sale_channel(&sale)).arg(told));
}

fn stream(edge: &Edge, url: &str, fields: &[(&str, &str)]) -> Connection {
    let mut connection = edge.connect();
    connection.ask("GET", url, fields, "");
    connection
}

/// The next event's object; comments are skipped, and `None` is the end.
fn event(connection: &mut Connection) -> Option<serde_json::Value> {
    loop {
        let chunk = String::from_utf8(connection.chunk()?).unwrap();
        if chunk.starts_with(':') {
            continue;
        }
        let lines: Vec<&str> = chunk.trim_end().split('\n').collect();
        assert_eq!((lines[0], lines.len()), ("event: order", 3), "{chunk}");
        assert!(lines[1].starts_with("id: "), "{chunk}");
        return Some(serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap());
    }
}

#[test]
fn a_sale_is_shown_to_everybody() {
    let edge = Edge::selling(&[]);
    let shown = edge.connect().call("GET", "/v1/sales/demo", &[], "");
    let body = shown.json();
    assert_eq!((shown.status, &body["sale"], &body["state"]), (200, &json!("demo"), &json!("open")));
    let phone = json!({"sku": "phone", "title": "A phone", "price": 1999, "currency": "EUR", "per_user": 2, "available": true});
    assert_eq!((&body["items"][0], body["items"].as_array().map(Vec::len)), (&phone, Some(2)));
    for time in ["starts_at", "ends_at", "server_time"] {
        let text = body[time].as_str().unwrap();
        assert!(text.len() == 24 && text.ends_with('Z'), "{time}: {text}");
    }
    let mut connection = edge.connect();
    let head = connection.call("HEAD", "/v1/sales/demo", &[], "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(connection.call("GET", "/v1/sales/demo", &[], "").status, 200);
}

#[test]
fn a_purchase_is_accepted_once_and_told_again() {
    let edge = Edge::selling(&[]);
    let token = edge.token("demo", "alice");
    let first = edge.buy("demo", "alice", &token, TWO);
    let body = first.json();
    let id = body["order_id"].as_str().unwrap().to_owned();
    let url = format!("/v1/orders/{id}");
    assert_eq!((first.status, first.field("location")), (202, Some(url.as_str())));
    assert_eq!((&body["state"], &body["status_url"]), (&json!("accepted"), &json!(url)));
    assert!(body["events_url"].as_str().unwrap().starts_with(&format!("{url}/events?ticket=")));
    assert!(body["estimated_seconds"].is_u64() && body.get("receipt").is_none());
    assert_eq!(first.field("idempotent-replayed"), None);
    assert!(first.field("ratelimit").is_some() && first.field("ratelimit-policy").is_some());
    let again = edge.buy(
        "demo",
        "alice",
        &token,
        r#"{"lines":[{"sku":"phone","quantity":1},{"sku":"phone","quantity":1}]}"#,
    );
    assert_eq!((again.status, again.field("idempotent-replayed")), (202, Some("true")));
    assert_eq!(
        (again.json()["order_id"].as_str(), again.field("location")),
        (Some(id.as_str()), Some(url.as_str()))
    );
    let left: String =
        edge.run(cmd("HGET").arg(Segment::new(SaleId::parse("demo").unwrap(), 0).stock()).arg("phone"));
    assert_eq!(left, "98");
}

#[test]
fn an_order_is_its_buyers_alone() {
    let edge = Edge::selling(&[]);
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), TWO);
    let id = bought.json()["order_id"].as_str().unwrap().to_owned();
    let mut connection = edge.connect();
    let mut get = |user: &str| {
        connection.call("GET", &format!("/v1/orders/{id}"), &[("Authorization", &bearer(user))], "")
    };
    assert_eq!(get("mallory").code(), "not_found");
    let shown = get("alice").json();
    assert_eq!(
        (&shown["state"], &shown["lines"]),
        (&json!("accepted"), &json!([{"sku": "phone", "quantity": 2}]))
    );
    for member in ["amount", "currency", "pay_before", "refund", "message"] {
        assert_eq!(shown.get(member), Some(&json!(null)), "{member}");
    }
    rewrite(&edge, &id, |record| {
        let parts: Vec<&str> = record.split('|').collect();
        format!(
            "Ph|{}|{}|{}|{}|1795233600000|-|{}|{}",
            parts[1], parts[2], parts[3], parts[4], parts[7], parts[8]
        )
    });
    let shown = get("alice").json();
    assert_eq!((&shown["state"], &shown["amount"]), (&json!("pending_payment"), &json!(3998)));
    assert_eq!(
        (&shown["currency"], &shown["pay_before"]),
        (&json!("EUR"), &json!("2026-11-21T04:00:00.000Z"))
    );
}

#[test]
fn events_follow_an_order_to_its_end() {
    let edge = Edge::selling(&[]);
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), TWO).json();
    let (id, url) = (bought["order_id"].as_str().unwrap(), bought["events_url"].as_str().unwrap());
    let mut events = stream(&edge, url, &[]);
    let (status, fields) = events.head().unwrap();
    let kind = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type")).unwrap();
    assert_eq!((status, kind.1.as_str()), (200, "text/event-stream"));
    assert_eq!(event(&mut events).unwrap()["state"], "accepted");
    rewrite(&edge, id, |record| record.replacen("Ah", "Ph", 1));
    assert_eq!(event(&mut events).unwrap()["state"], "pending_payment");
    rewrite(&edge, id, |record| record.replacen("Ph", "Sh", 1));
    assert_eq!(event(&mut events).unwrap()["state"], "paid");
    assert_eq!(event(&mut events), None);
    assert_eq!(events.call("GET", "/v1/sales/demo", &[], "").status, 200);
    assert!(!edge.log().contains("ticket"));
}

#[test]
fn a_stream_opens_to_its_buyer_or_its_ticket() {
    let edge = Edge::selling(&[]);
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), TWO).json();
    let other = edge.buy("demo", "bob", &edge.token("demo", "bob"), TWO).json();
    let id = bought["order_id"].as_str().unwrap();
    let path = format!("/v1/orders/{id}/events");
    let foreign = other["events_url"].as_str().unwrap().split_once('?').unwrap().1;
    let (alice, bob) = (bearer("alice"), bearer("bob"));
    for (query, bearer, code) in [
        (String::new(), None, "unauthenticated"),
        (String::new(), Some(&bob), "not_found"),
        ("?ticket=".to_owned(), Some(&alice), "unauthenticated"),
        ("?ticket=abc".to_owned(), Some(&alice), "unauthenticated"),
        (format!("?{foreign}"), Some(&alice), "unauthenticated"),
    ] {
        let fields: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        let refused = edge.connect().call("GET", &format!("{path}{query}"), &fields, "");
        assert_eq!(refused.code(), code, "{query}");
    }
    let open = || {
        let mut events = stream(&edge, &path, &[("Authorization", &alice)]);
        (events.head().unwrap().0, events)
    };
    let (first, second) = (open(), open());
    assert_eq!((first.0, second.0), (200, 200));
    let third = edge.connect().call("GET", &path, &[("Authorization", &alice)], "");
    assert_eq!((third.status, third.code().as_str()), (429, "rate_limited"));
    drop(first);
    crate::harness::eventually("a place is free again", || open().0 == 200);
}
