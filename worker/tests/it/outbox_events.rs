//! The outbox: every event reaches its queue, whatever order rows are committed in and whoever dies.

use std::time::Duration;

use sluice_shared::message::OrderEvents;
use sluice_shared::topology::{RELEASE, SAGA};
use sluice_testkit::eventually;
use sluice_worker::config::Role;
use tokio::time::timeout;

use crate::harness::{World, accepted};

const PATIENCE: Duration = Duration::from_secs(15);
const UNSENT: &str = "SELECT count(*) FROM outbox WHERE published_at IS NULL";

#[tokio::test]
async fn events_reach_the_queue_of_their_topic() {
    let world = World::new(&[("phone", 1000)]).await;
    let role = world.run(Role::Outbox);
    let batch: Vec<_> = (0..250).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.db.store.write_orders(&batch).await.unwrap();
    world.db.store.cancel(&batch[0].order, &batch[0].user).await.unwrap();
    let told: usize = world
        .broker
        .drain(SAGA, 3)
        .await
        .iter()
        .map(|message| serde_json::from_slice::<OrderEvents>(&message.body).unwrap().events.len())
        .sum();
    assert_eq!(told, 250);
    let back = world.broker.drain(RELEASE, 1).await;
    assert_eq!((back[0].kind.as_str(), back[0].sale.as_deref()), ("stock.release", Some("demo")));
    let back: OrderEvents = serde_json::from_slice(&back[0].body).unwrap();
    assert_eq!((back.events[0].order, back.events[0].release), (batch[0].order, true));
    eventually("all are marked", PATIENCE, async || world.db.count(UNSENT).await == 0).await;
    role.stop().await;
}

#[tokio::test]
async fn t21_a_row_that_is_committed_after_a_higher_number_is_not_skipped() {
    let world = World::new(&[("phone", 10)]).await;
    let role = world.run(Role::Outbox);
    const INSERT: &str = "INSERT INTO outbox (topic, payload) VALUES ('order.changed', '{}')";
    for _ in 0..20 {
        let mut slow = world.db.pool.begin().await.unwrap();
        sqlx::query(INSERT).execute(&mut *slow).await.unwrap();
        sqlx::query(INSERT).execute(&world.db.pool).await.unwrap();
        world.db.run("NOTIFY sluice_outbox").await;
        eventually("the higher is sent", PATIENCE, async || world.db.count(UNSENT).await == 0).await;
        slow.commit().await.unwrap();
        world.db.run("NOTIFY sluice_outbox").await;
        let all = "SELECT count(*) FILTER (WHERE published_at IS NULL) + count(*) % 2 FROM outbox";
        eventually("the lower is sent too", PATIENCE, async || world.db.count(all).await == 0).await;
    }
    assert_eq!(world.broker.drain(SAGA, 40).await.len(), 40);
    role.stop().await;
}

#[tokio::test]
async fn what_rings_within_a_moment_is_one_ring() {
    let world = World::new(&[("phone", 10)]).await;
    let mut bell = world.db.store.outbox_bell().await.unwrap();
    for buyer in ["alice", "bob", "carol"] {
        world.db.store.write_orders(&[accepted(buyer, "phone=1")]).await.unwrap();
    }
    let moment = Duration::from_millis(300);
    timeout(PATIENCE, bell.ring(moment)).await.unwrap().unwrap();
    assert!(timeout(moment, bell.ring(Duration::ZERO)).await.is_err(), "it rang again for the same rows");
    world.db.store.write_orders(&[accepted("dave", "phone=1")]).await.unwrap();
    timeout(PATIENCE, bell.ring(Duration::ZERO)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lost_bell_is_made_up_for_by_looking() {
    let world = World::new(&[("phone", 10)]).await;
    let role = world.run(Role::Outbox);
    world.db.run("INSERT INTO outbox (topic, payload) VALUES ('order.changed', '{}')").await;
    eventually("it is sent", PATIENCE, async || world.db.count(UNSENT).await == 0).await;
    role.stop().await;
}

#[tokio::test]
async fn rows_of_an_outbox_that_dies_before_it_marks_them_are_sent_again() {
    let world = World::new(&[("phone", 10)]).await;
    world.db.store.write_orders(&[accepted("alice", "phone=1")]).await.unwrap();
    let claimed = world.db.store.claim_outbox(10, &[]).await.unwrap();
    assert_eq!(claimed.rows.len(), 1);
    // Nobody else takes them meanwhile.
    assert!(world.db.store.claim_outbox(10, &[]).await.unwrap().rows.is_empty());
    let row = &claimed.rows[0];
    let message = (row.topic.clone(), row.payload.clone().into_bytes());
    world.broker.publish(sluice_shared::topology::EVENTS, &[message]).await;
    drop(claimed);
    let role = world.run(Role::Outbox);
    let twice = world.broker.drain(SAGA, 2).await;
    assert_eq!(twice[0].body, twice[1].body);
    eventually("it is marked", PATIENCE, async || world.db.count(UNSENT).await == 0).await;
    role.stop().await;
}

#[tokio::test]
async fn two_outboxes_send_each_row_once() {
    let world = World::new(&[("phone", 10)]).await;
    world
        .db
        .run("INSERT INTO outbox (topic, payload) SELECT 'order.changed', '{}' FROM generate_series(1, 600)")
        .await;
    let roles = [world.run(Role::Outbox), world.run_in(world.process(), Role::Outbox)];
    eventually("all are sent", PATIENCE, async || world.db.count(UNSENT).await == 0).await;
    let sent = world.broker.drain(SAGA, 600).await;
    let mut numbers: Vec<_> = sent.iter().map(|message| message.id.clone()).collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 600);
    for role in roles {
        role.stop().await;
    }
    // What comes next is what was sent next.
    let marker = vec![("order.changed".to_owned(), b"marker".to_vec())];
    world.broker.publish(sluice_shared::topology::EVENTS, &marker).await;
    let next = world.broker.drain(SAGA, 1).await;
    assert_eq!(next[0].body, b"marker", "{} {}", next[0].id, next[0].redelivered);
}

#[tokio::test]
async fn events_that_no_queue_takes_stay_and_hold_up_none() {
    let world = World::new(&[("phone", 10)]).await;
    // More than one batch of them.
    world
        .db
        .run("INSERT INTO outbox (topic, payload) SELECT 'nobody.listens', '{}' FROM generate_series(1, 250)")
        .await;
    world.db.store.write_orders(&[accepted("alice", "phone=1")]).await.unwrap();
    let role = world.run(Role::Outbox);
    assert_eq!(world.broker.drain(SAGA, 1).await.len(), 1);
    eventually("the other is marked", PATIENCE, async || world.db.count(UNSENT).await == 250).await;
    role.stop().await;
}

#[tokio::test]
async fn published_rows_are_forgotten_after_a_while() {
    let world = World::new(&[("phone", 10)]).await;
    world
        .db
        .run(
            "INSERT INTO outbox (topic, payload, published_at)
             SELECT 'order.changed', '{}', now() - n * interval '1 hour' FROM generate_series(1, 30) n;
             INSERT INTO outbox (topic, payload) VALUES ('order.changed', '{}')",
        )
        .await;
    let day = Duration::from_secs(86_400);
    assert_eq!(world.db.store.forget_published(day, 4).await.unwrap(), 4);
    assert_eq!(world.db.store.forget_published(day, 100).await.unwrap(), 3);
    assert_eq!(world.db.count("SELECT count(*) FROM outbox").await, 24);
}
