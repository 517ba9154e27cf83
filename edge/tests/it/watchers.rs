//! Orders that are looked at and followed: what the edge knows by itself, and what it asks the workers.

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Segment;
use sluice_shared::redis::cmd;

use crate::client::{Connection, Echo};
use crate::harness::{Edge, bearer, eventually};

const ONE: &str = r#"{"sku":"phone","quantity":1}"#;

fn with_workers(settings: &[(&str, &str)]) -> (Edge, Echo) {
    let workers = Echo::start();
    let address = format!("\"{}\"", workers.address);
    let mut all = vec![("api.address", address.as_str())];
    all.extend_from_slice(settings);
    (Edge::selling(&all), workers)
}

fn segment() -> Segment {
    Segment::new(SaleId::parse("demo").unwrap(), 0)
}

/// Everything that Redis has of the sale is gone.
fn lose(edge: &Edge) {
    let segment = segment();
    let keys = [segment.meta(), segment.stock(), segment.orders(), segment.journal()];
    let _: i64 = edge.run(cmd("DEL").arg(&keys[..]));
}

/// Moves an order to another state, as a worker's script would, and tells nobody.
fn rewrite(edge: &Edge, id: &str, from: &str, to: &str) {
    let (orders, id) = (segment().orders(), OrderId::parse(id).unwrap());
    let record: String = edge.run(cmd("HGET").arg(&orders).arg(id.field()));
    let _: i64 = edge.run(cmd("HSET").arg(&orders).arg(id.field()).arg(record.replacen(from, to, 1)));
}

/// The next event: its id and its object.
fn event(connection: &mut Connection) -> Option<(String, serde_json::Value)> {
    loop {
        let chunk = String::from_utf8(connection.chunk()?).unwrap();
        if chunk.starts_with(':') {
            continue;
        }
        let line = |name: &str| chunk.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        return Some((line("id: "), serde_json::from_str(&line("data: ")).unwrap()));
    }
}

#[test]
fn a_browser_that_has_seen_the_final_state_is_told_not_to_come_back() {
    let settings = [("cors.allowed_origins", "[\"https://shop.example\"]"), ("events.streams_per_user", "9")];
    let (edge, _workers) = with_workers(&settings);
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), ONE).json();
    let (id, url) = (bought["order_id"].as_str().unwrap(), bought["events_url"].as_str().unwrap());
    let ask = |last: &str| {
        let mut events = edge.connect();
        events.ask("GET", url, &[("Last-Event-ID", last)], "");
        let (status, fields) = events.head().unwrap();
        (status, fields, events)
    };
    let (status, _, mut events) = ask("");
    let (early, shown) = event(&mut events).unwrap();
    assert_eq!((status, &shown["state"]), (200, &json!("accepted")));
    drop(events);
    assert_eq!(ask(&early).0, 200, "this state is not the last one");
    rewrite(&edge, id, "Ah", "Sh");
    let (_, _, mut events) = ask("1");
    let (last, shown) = event(&mut events).unwrap();
    assert_eq!((&shown["state"], event(&mut events)), (&json!("paid"), None));
    let (status, fields, mut again) = ask(&last);
    assert_eq!(status, 204);
    assert!(!fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")), "{fields:?}");
    assert_eq!(again.call("GET", "/v1/sales/demo", &[], "").status, 200);
    assert_eq!(ask(&format!("{last}0")).0, 200);
    let preflight = edge.connect().call(
        "OPTIONS",
        url,
        &[("Origin", "https://shop.example"), ("Access-Control-Request-Method", "GET")],
        "",
    );
    assert!(preflight.field("access-control-allow-headers").unwrap().contains("Last-Event-ID"));
}

#[test]
fn a_stream_of_an_order_that_redis_has_lost_goes_on_from_the_books() {
    let (edge, workers) = with_workers(&[]);
    *workers.state.lock().unwrap() = "pending_payment";
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), ONE).json();
    lose(&edge);
    let mut events = edge.connect();
    events.ask("GET", bought["events_url"].as_str().unwrap(), &[], "");
    assert_eq!(events.head().unwrap().0, 200);
    assert_eq!(event(&mut events).unwrap().1["state"], "pending_payment");
    *workers.state.lock().unwrap() = "paid";
    let start = Instant::now();
    assert_eq!(event(&mut events).unwrap().1["state"], "paid");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(event(&mut events), None);
    eventually("it is closed", || edge.metric("sluice_http_streams") == 0.0);
}

#[test]
fn an_order_that_there_is_not_costs_the_workers_nothing() {
    let (edge, workers) = with_workers(&[]);
    let bought = edge.buy("demo", "alice", &edge.token("demo", "alice"), ONE).json();
    let alice = bearer("alice");
    let call = |method: &str, id: &str, what: &str| {
        let path = format!("/v1/orders/{id}{what}");
        edge.connect().call(method, &path, &[("Authorization", &alice)], "")
    };
    for (method, what) in [("GET", ""), ("DELETE", ""), ("GET", "/events")] {
        let nobodys = OrderId::mint(1, 0).to_string();
        assert_eq!(call(method, &nobodys, what).code(), "not_found", "{method} {what}");
        assert_eq!(call(method, &OrderId::mint(1, 7).to_string(), what).code(), "not_found");
    }
    assert_eq!(workers.orders().len(), 0, "{:?}", workers.orders());
    // Neither does an order of somebody else, nor one's own.
    let id = bought["order_id"].as_str().unwrap();
    let foreign =
        edge.connect().call("DELETE", &format!("/v1/orders/{id}"), &[("Authorization", &bearer("bob"))], "");
    assert_eq!((foreign.code().as_str(), workers.orders().len()), ("not_found", 0));
    assert_eq!((call("GET", id, "").status, workers.orders().len()), (200, 0));
    let left: String = edge.run(cmd("HGET").arg(segment().stock()).arg("phone"));
    assert_eq!(left, "99", "asking takes nothing");
    // A sale that is not served here, and a Redis that has lost orders: the books know.
    assert_eq!(call("GET", &OrderId::mint(99, 0).to_string(), "").status, 200);
    assert_eq!(workers.orders().len(), 1);
    lose(&edge);
    assert_eq!((call("GET", id, "").status, workers.orders().len()), (200, 2));
    assert_eq!((call("DELETE", id, "").status, workers.orders().len()), (200, 3));
    workers.empty.store(true, Ordering::Relaxed);
    assert_eq!(call("GET", id, "").status, 404);
}

#[test]
fn buyers_calls_to_the_workers_are_bounded_and_payment_notices_are_not_among_them() {
    // It takes connections and says nothing.
    let workers = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("\"{}\"", workers.local_addr().unwrap());
    let settings =
        [("api.address", address.as_str()), ("api.lookups_max", "2"), ("api.read_timeout_ms", "3000")];
    let edge = Edge::selling(&settings);
    let ask = |method: &str, path: &str| {
        let mut connection = edge.connect();
        connection.ask(method, path, &[("Authorization", &bearer("alice"))], "");
        connection
    };
    let elsewhere = format!("/v1/orders/{}", OrderId::mint(99, 0));
    let mut waiting = [ask("GET", &elsewhere), ask("DELETE", &elsewhere)];
    eventually("both wait", || edge.metric("sluice_lookups_busy") == 2.0);
    let start = Instant::now();
    for path in [elsewhere.clone(), format!("{elsewhere}/events")] {
        assert_eq!(ask("GET", &path).answer().unwrap().code(), "overloaded");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "nobody waits for a place");
    assert_eq!(edge.metric("sluice_lookups_turned_away"), 2.0);
    assert_eq!(ask("POST", "/v1/payments/callback").answer().unwrap().code(), "unavailable");
    for connection in &mut waiting {
        assert_eq!(connection.answer().unwrap().code(), "unavailable");
    }
    eventually("the places are free again", || edge.metric("sluice_lookups_busy") == 0.0);
}

#[test]
fn every_429_tells_what_is_left_and_a_provider_has_a_bucket_of_its_own() {
    let settings = [("rate.address.burst", "3"), ("rate.address.per_second", "1")];
    let (edge, _workers) = with_workers(&settings);
    let mut told = 0;
    for _ in 0..6 {
        let shown = edge.connect().call("GET", "/v1/sales/demo", &[], "");
        if shown.status == 429 {
            told += 1;
            assert_eq!(
                (shown.code().as_str(), shown.field("ratelimit")),
                ("rate_limited", Some("\"address\";r=0"))
            );
            assert!(shown.field("ratelimit-policy").unwrap().contains("\"address\";q=3;w=3"));
        }
    }
    assert!(told > 0);
    let path = format!("/v1/orders/{}", OrderId::mint(1, 0));
    let refused = edge.connect().call("GET", &path, &[], "");
    assert_eq!((refused.code().as_str(), refused.field("ratelimit").is_some()), ("rate_limited", true));
    for _ in 0..20 {
        assert_eq!(edge.connect().call("POST", "/v1/payments/callback", &[], "{}").status, 200);
    }
}

#[test]
fn a_redis_that_refuses_to_write_is_a_reason() {
    let edge = Edge::selling(&[]);
    let reasons = || edge.ready().json()["reasons"].to_string();
    assert!(!reasons().contains("memory"), "{}", reasons());
    let _: String = edge.run(cmd("CONFIG").arg("SET").arg("maxmemory").arg("1"));
    eventually("it is told", || reasons().contains("redis is out of memory"));
    let _: String = edge.run(cmd("CONFIG").arg("SET").arg("maxmemory").arg("0"));
    eventually("it is over", || !reasons().contains("memory"));
}
