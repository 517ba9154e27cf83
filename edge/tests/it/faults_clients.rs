//! What clients do to a gate: leave at any byte, come twice at once, come in numbers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use sluice_edge::engine::Outcome;
use sluice_shared::ids::OrderId;
use sluice_shared::redis::cmd;

use crate::engine_harness::{Offer, World};
use crate::harness::{Edge, bearer, eventually};

const ONE: &str = r#"{"sku":"phone","quantity":1}"#;

/// A whole purchase, as bytes.
fn purchase(user: &str, token: &str) -> Vec<u8> {
    format!(
        "POST /v1/sales/demo/orders HTTP/1.1\r\nHost: gate\r\nAuthorization: {}\r\nX-Sale-Token: {token}\r\n\
         Content-Length: {}\r\n\r\n{ONE}",
        bearer(user),
        ONE.len()
    )
    .into_bytes()
}

fn left(edge: &Edge) -> i64 {
    edge.run(cmd("HGET").arg("sluice:{demo:0}:stock").arg("phone"))
}

#[test]
fn f1_a_client_that_leaves_at_any_byte_has_its_order_once() {
    let edge = Edge::selling(&[]);
    // Bytes of the request that are sent, and of the answer that are read, before it goes.
    let (all, body) = (usize::MAX, ONE.len());
    let leaves = [(0, 0), (1, 0), (60, 0), (200, 0), (all - body, 0), (all - 1, 0)];
    let reads = [0, 1, 9, 60, 200, 400].map(|bytes| (all, bytes));
    for (n, (sent, read)) in leaves.into_iter().chain(reads).enumerate() {
        let user = format!("buyer-{n}");
        let token = edge.token("demo", &user);
        let whole = purchase(&user, &token);
        // Counted from the end where it is a large number.
        let sent = if sent > whole.len() { whole.len() - (all - sent) } else { sent };
        let mut stream = TcpStream::connect(edge.public).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&whole[..sent]).unwrap();
        stream.read_exact(&mut vec![0; read]).unwrap();
        drop(stream);
        let mut orders = Vec::new();
        for replayed in [None, Some("true")] {
            let answer = edge.buy("demo", &user, &token, ONE);
            assert_eq!(answer.status, 202, "{n}: {answer:?}");
            if replayed.is_some() || read > 0 {
                assert_eq!(answer.field("idempotent-replayed"), Some("true"), "{n}");
            }
            orders.push(answer.json()["order_id"].as_str().unwrap().to_owned());
        }
        assert_eq!(orders[0], orders[1]);
        assert_eq!(left(&edge), 100 - 1 - i64::try_from(n).unwrap(), "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_a_token_that_comes_to_two_edges_at_once_is_one_order() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer { stock: 900, per_user: 1, ..Offer::default() }).await;
    let (a, b) = (world.edge("a", &segment, 1).await, world.edge("b", &segment, 1).await);
    let orders: Vec<OrderId> = (0..1000).map(|_| OrderId::mint(1, 0)).collect();
    let pairs = orders.iter().enumerate().map(|(n, order)| {
        let user = format!("buyer-{n}");
        let (a, b) = (&a, &b);
        async move { tokio::join!(a.redeem(order, &user), b.redeem(order, &user)) }
    });
    let mut sold = 0;
    for pair in futures_util::future::join_all(pairs).await {
        match pair {
            (
                Outcome::Accepted { seq: one, replayed: first, .. },
                Outcome::Accepted { seq: two, replayed: second, .. },
            ) => {
                assert_eq!(one, two);
                assert_ne!(first, second, "one of them took the unit");
                sold += 1;
            }
            (Outcome::Refused(_), Outcome::Refused(_)) => {}
            other => panic!("two answers to one token: {other:?}"),
        }
    }
    assert_eq!((sold, world.left(&segment).await), (900, 0));
}

#[test]
fn f4_what_a_client_takes_for_the_time_is_of_no_importance() {
    let edge = Edge::selling(&[]);
    for (n, date) in ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 2199 23:59:59 GMT"].iter().enumerate() {
        let user = format!("buyer-{n}");
        let token = edge.token("demo", &user);
        let (bearer, path) = (bearer(&user), "/v1/sales/demo/orders");
        let fields = [("Authorization", bearer.as_str()), ("X-Sale-Token", &token), ("Date", date)];
        assert_eq!(edge.connect().call("POST", path, &fields, ONE).status, 202, "{date}");
    }
}

fn open_files(edge: &Edge) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", edge.pid())).unwrap().count()
}

#[test]
fn f13_an_edge_without_file_descriptors_makes_room_and_recovers() {
    let edge = Edge::selling(&[]);
    let token = edge.token("demo", "alice");
    let before = open_files(&edge);
    let limit = format!("--nofile={}", before + 10);
    let limited = Command::new("prlimit").args(["--pid", &edge.pid().to_string(), &limit]).status();
    assert!(limited.unwrap().success());
    let crowd: Vec<_> = (0..60).map(|_| TcpStream::connect(edge.public).unwrap()).collect();
    let made_room = "sluice_http_connections_closed_total{reason=\"made_room\"}";
    // A buyer who comes behind the crowd gets his answer, and only what is answered is taken.
    let start = Instant::now();
    assert_eq!(edge.buy("demo", "alice", &token, ONE).status, 202);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(left(&edge), 99);
    assert!(edge.metric(made_room) > 0.0);
    drop(crowd);
    eventually("the others are gone", || open_files(&edge) <= before);
    let token = edge.token("demo", "bob");
    assert_eq!(edge.buy("demo", "bob", &token, ONE).status, 202);
}
