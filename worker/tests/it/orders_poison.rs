//! Poison in a write queue: it alone is parked, with its reason, and everything else is written.

use std::time::Duration;

use sluice_shared::message::OrderMessage;
use sluice_shared::topology::{ORDERS, PARKED, write_key, write_queue};
use sluice_testkit::eventually;
use sluice_worker::config::Role;

use crate::harness::{World, accepted};

/// Twenty ways not to be an order, each with a part of the reason.
fn kinds() -> Vec<(Vec<u8>, &'static str)> {
    let good = serde_json::to_string(&OrderMessage::Accepted(accepted("alice", "phone=1"))).unwrap();
    let with = |from: &str, to: &str| {
        let changed = good.replace(from, to);
        assert_ne!(changed, good, "{from}");
        changed.into_bytes()
    };
    let user = "\"user\":\"alice\"";
    vec![
        (Vec::new(), "EOF"),
        (b"hello".to_vec(), "expected"),
        (b"null".to_vec(), "not a message"),
        (b"[]".to_vec(), "not a message"),
        (b"{}".to_vec(), "missing field"),
        (good.as_bytes()[..good.len() / 2].to_vec(), "EOF"),
        (format!("{good}{good}").into_bytes(), "trailing"),
        (vec![0; 64], "expected"),
        (vec![0xff; 64], "expected"),
        (with("\"v\":1", "\"v\":99"), "schema 99"),
        (with("\"v\":1", "\"v\":\"1\""), "invalid type"),
        (with("accepted", "rejected"), "unknown variant"),
        (with("\"epoch\":1", "\"epoch\":-1"), "not a message"),
        (with("\"epoch\":1", "\"epoch\":1.5"), "not a message"),
        (with(user, "\"user\":\"al\\u0000ice\""), "user must match"),
        (with(user, "\"user\":7"), "not a message"),
        (with("phone=1", "phone=0"), "not the text of lines"),
        (with("phone=1", "phone=1,phone=1"), "not the text of lines"),
        (with("\"sale\":\"demo\"", "\"sale\":\"nobody's\""), "sale must match"),
        (with("\"sale\":\"demo\"", "\"sale\":\"nobody\""), "unknown sale nobody"),
        (format!("{good}{}", " ".repeat(1_000_000)).into_bytes(), "more than 16384"),
    ]
}

#[tokio::test]
async fn twenty_kinds_of_poison_are_parked_and_what_is_between_them_is_written() {
    let world = World::new(&[("phone", 1000)]).await;
    let (mut messages, kinds) = (Vec::new(), kinds());
    for (body, _) in &kinds {
        let good = OrderMessage::Accepted(accepted("bob", "phone=1"));
        messages.push((write_key(0), body.clone()));
        messages.push((write_key(0), serde_json::to_vec(&good).unwrap()));
    }
    world.broker.publish(ORDERS, &messages).await;
    let role = world.run(Role::Orders);
    let patience = Duration::from_secs(20);
    let n = i64::try_from(kinds.len()).unwrap();
    let all = async || world.db.count("SELECT count(*) FROM parked").await == n;
    eventually("all poison is parked", patience, all).await;
    let rows = async || world.db.count("SELECT count(*) FROM orders").await == n;
    eventually("the rest is written", patience, rows).await;
    role.stop().await;
    let parked: Vec<(Vec<u8>, String)> =
        sqlx::query_as("SELECT body, reason FROM parked").fetch_all(&world.db.pool).await.unwrap();
    for (body, why) in &kinds {
        let (_, reason) = parked.iter().find(|(kept, _)| kept == body).expect("kept as it came");
        assert!(reason.contains(why), "{reason} / {why}");
    }
    for message in world.broker.drain(PARKED, kinds.len()).await {
        // As it came: the harness calls every message so.
        assert_eq!((message.id.as_str(), message.kind.as_str()), ("t", "t"));
        assert!(message.sent.is_some(), "{message:?}");
        assert_eq!(message.queue, Some(write_queue(0)));
        let (_, why) = kinds.iter().find(|(body, _)| *body == message.body).expect("one of them");
        assert!(message.reason.is_some_and(|reason| reason.contains(why)), "{why}");
    }
}

#[tokio::test]
async fn poison_that_comes_again_and_again_is_parked_once() {
    let world = World::new(&[("phone", 1000)]).await;
    let good = OrderMessage::Accepted(accepted("bob", "phone=1"));
    let mut messages = vec![(write_key(0), b"hello".to_vec()); 5];
    messages.push((write_key(0), serde_json::to_vec(&good).unwrap()));
    world.broker.publish(ORDERS, &messages).await;
    let role = world.run(Role::Orders);
    let written = async || world.db.count("SELECT count(*) FROM orders").await == 1;
    eventually("the rest is written", Duration::from_secs(20), written).await;
    assert_eq!(world.broker.drain(PARKED, 5).await.len(), 5);
    role.stop().await;
    assert_eq!(world.db.count("SELECT count(*) FROM parked").await, 1);
}
