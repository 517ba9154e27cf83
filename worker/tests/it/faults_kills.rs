//! A worker dies at each place where what it has done and what it has told are not the same.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use sluice_shared::failpoint;
use sluice_testkit::eventually;
use sluice_worker::config::Role;

use crate::harness::process::Worker;
use crate::harness::world::verify_ledger;
use crate::harness::{World, accepted};

const PATIENCE: Duration = Duration::from_secs(20);
const ROWS: &str = "SELECT count(*) FROM orders";

/// A process that is killed when it comes to a place for the nth time.
async fn killed_at(world: &World, role: &str, point: &str, nth: u32, more: &[(&str, String)]) {
    let plan = (failpoint::VARIABLE, format!("{point}=kill@{nth}"));
    let all: Vec<(&str, String)> = more.iter().cloned().chain([plan]).collect();
    let ended = Worker::start(&world.urls(), &[role], &all).end().await;
    assert_eq!(ended.signal(), Some(9), "{point}");
}

#[tokio::test]
async fn f54_a_writer_killed_around_its_commit_writes_each_order_once() {
    let world = World::new(&[("phone", 10_000)]).await;
    let small = [("SLUICE__ORDERS__BATCH_MAX", "20".to_owned())];
    let mut orders = 0;
    for point in ["F54.before-write", "F54.before-commit", "F54.before-ack", "F54.after-ack"] {
        for nth in 1..=3 {
            let some: Vec<_> = (0..200).map(|n| accepted(&format!("u{orders}-{n}"), "phone=1")).collect();
            orders += 200;
            world.broker.publish_orders(&some).await;
            killed_at(&world, "orders", point, nth, &small).await;
        }
    }
    let role = world.run(Role::Orders);
    eventually("every order has its row", PATIENCE, async || world.db.count(ROWS).await == orders).await;
    role.stop().await;
    assert_eq!(world.db.count("SELECT taken FROM offers").await, orders);
    assert_eq!(world.db.count("SELECT count(*) FROM ledger WHERE kind = 'take'").await, orders);
    assert_eq!(world.db.count("SELECT count(*) FROM parked").await, 0);
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn f69_an_outbox_killed_between_confirm_and_mark_tells_twice_what_is_heard_once() {
    let world = World::new(&[("phone", 1_000)]).await;
    let mut orders = Vec::new();
    for n in 0..30 {
        orders.push(world.bought(&format!("u{n}"), "phone=1").await);
    }
    for order in &orders[..10] {
        world.db.store.cancel(&order.order, &order.user).await.unwrap();
    }
    for _ in 0..3 {
        killed_at(&world, "outbox", "F69.before-mark", 1, &[]).await;
    }
    let unsent = "SELECT count(*) FROM outbox WHERE published_at IS NULL";
    assert!(world.db.count(unsent).await > 0);
    let roles = [Role::Outbox, Role::Saga].map(|role| world.run(role));
    eventually("all is told", PATIENCE, async || world.db.count(unsent).await == 0).await;
    let heard = async || {
        let mut heard = 0;
        for (n, order) in orders.iter().enumerate() {
            let record = world.record(&order.order).await.unwrap();
            let state = if n < 10 { "cancelled" } else { "pending_payment" };
            heard += usize::from(record.state.as_str() == state && record.released == (n < 10));
        }
        heard == orders.len()
    };
    eventually("redis has heard of each", PATIENCE, heard).await;
    for role in roles {
        role.stop().await;
    }
    assert_eq!(world.left("phone").await, 980, "each unit came back once");
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn f76_a_timeout_worker_killed_in_the_middle_expires_each_order_once() {
    let world = World::new(&[("phone", 1_000)]).await;
    let few = [("SLUICE__TIMEOUT__CLAIM_MAX", "20".to_owned())];
    let mut orders = Vec::new();
    for n in 0..100 {
        orders.push(world.bought(&format!("u{n}"), "phone=1").await);
    }
    world.db.run("UPDATE orders SET pay_before = now() - interval '1 second'").await;
    for point in ["F76.after-claim", "F76.before-finish", "F76.after-claim", "F76.before-finish"] {
        killed_at(&world, "timeout", point, 1, &few).await;
    }
    let roles = [Role::Timeout, Role::Outbox, Role::Saga].map(|role| world.run(role));
    let expired = "SELECT count(*) FROM orders WHERE state = 'expired'";
    eventually("all expire", PATIENCE, async || world.db.count(expired).await == 100).await;
    eventually("the units are back", PATIENCE, async || world.left("phone").await == 1_000).await;
    for role in roles {
        role.stop().await;
    }
    assert_eq!(world.db.count("SELECT count(*) FROM ledger WHERE kind = 'release'").await, 100);
    verify_ledger(&world.db).await;
}
