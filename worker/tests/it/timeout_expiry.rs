//! Deadlines: unpaid orders expire on time, once, whatever happens to the delay queue.

use std::time::Duration;

use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::keys;
use sluice_shared::redis::cmd;
use sluice_testkit::eventually;
use sluice_worker::config::Role;
use sluice_worker::saga::deadlines::Deadlines;
use sluice_worker::store::orders::Deadline;

use crate::harness::world::verify_ledger;
use crate::harness::{World, accepted};

const PATIENCE: Duration = Duration::from_secs(15);
const OVERDUE: &str = "UPDATE orders SET pay_before = now() - interval '1 second'";
const EXPIRED: &str = "SELECT count(*) FROM orders WHERE state = 'expired'";

#[tokio::test]
async fn an_order_that_is_not_paid_expires_within_a_second_and_its_unit_can_be_bought_again() {
    let world = World::new(&[("phone", 5)]).await;
    world.db.run("UPDATE sales SET pay_within_seconds = 2").await;
    let roles = [Role::Outbox, Role::Saga, Role::Timeout].map(|role| world.run(role));
    for n in 0..5 {
        world.bought(&format!("u{n}"), "phone=1").await;
    }
    assert_eq!(world.left("phone").await, 0);
    eventually("all expire", PATIENCE, async || world.db.count(EXPIRED).await == 5).await;
    let late = world
        .db
        .count("SELECT (max(extract(epoch FROM updated_at - pay_before)) * 1000)::bigint FROM orders")
        .await;
    let early = world
        .db
        .count("SELECT (min(extract(epoch FROM updated_at - pay_before)) * 1000)::bigint FROM orders")
        .await;
    assert!(early >= 0 && late < 1200, "{early}..{late} ms");
    eventually("the units are back", PATIENCE, async || world.left("phone").await == 5).await;
    world.bought("again", "phone=1").await;
    for role in roles {
        role.stop().await;
    }
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn the_sweep_finds_what_the_queue_has_lost() {
    let world = World::new(&[("phone", 5)]).await;
    world.db.store.write_orders(&[accepted("alice", "phone=1")]).await.unwrap();
    let role = world.run(Role::Timeout);
    let [ready, ..] = keys::delay(0);
    let known = cmd("ZCARD").arg(&ready).to_owned();
    let noted = async || world.redis.run::<i64>("test", &known).await.unwrap() == 1;
    eventually("the queue is built from the books", PATIENCE, noted).await;
    let _: i64 = world.redis.run("test", cmd("DEL").arg(&ready)).await.unwrap();
    world.db.run(OVERDUE).await;
    eventually("it expires", PATIENCE, async || world.db.count(EXPIRED).await == 1).await;
    role.stop().await;
}

#[tokio::test]
async fn orders_expire_while_redis_is_down() {
    let mut world = World::new(&[("phone", 5)]).await;
    world.db.store.write_orders(&[accepted("alice", "phone=1")]).await.unwrap();
    world.server.crash();
    let role = world.run(Role::Timeout);
    world.db.run(OVERDUE).await;
    eventually("it expires", PATIENCE, async || world.db.count(EXPIRED).await == 1).await;
    role.stop().await;
}

#[tokio::test]
async fn more_orders_than_one_sweep_takes_expire_without_a_pause_for_each() {
    let world = World::new(&[("phone", 5000)]).await;
    let batch: Vec<_> = (0..2000).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.db.store.write_orders(&batch).await.unwrap();
    world.db.run(OVERDUE).await;
    let roles = [world.run(Role::Timeout), world.run_in(world.process(), Role::Timeout)];
    eventually("all expire", PATIENCE, async || world.db.count(EXPIRED).await == 2000).await;
    for role in roles {
        role.stop().await;
    }
    assert_eq!(world.db.count("SELECT taken FROM offers").await, 0);
    verify_ledger(&world.db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_timeout_workers_make_one_transition() {
    let world = World::new(&[("phone", 5000)]).await;
    let batch: Vec<_> = (0..400).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.db.store.write_orders(&batch).await.unwrap();
    world.db.run(OVERDUE).await;
    let orders: Vec<OrderId> = batch.iter().map(|order| order.order).collect();
    let mut workers = Vec::new();
    for turn in 0..4 {
        let (store, mut orders) = (world.db.store.clone(), orders.clone());
        orders.rotate_left(turn * 97);
        workers.push(tokio::spawn(async move {
            let mut own = 0;
            for some in orders.chunks(50) {
                own += store.expire(some).await.unwrap().len();
            }
            own
        }));
    }
    let mut all = 0;
    for worker in workers {
        all += worker.await.unwrap();
    }
    all += world.db.store.expire(&orders).await.unwrap().len();
    assert_eq!(all, 400);
    assert_eq!(world.db.count("SELECT count(*) FROM ledger WHERE kind = 'release'").await, 400);
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn what_a_dead_worker_had_taken_is_due_again_after_its_lease() {
    let world = World::new(&[("phone", 5)]).await;
    let deadlines = Deadlines::new(world.redis.clone(), world.db.store.clone());
    deadlines.rebuild().await.unwrap();
    let order = OrderId::mint(1, 0);
    deadlines.schedule(&[Deadline { order, pay_before: Millis(1) }]).await.unwrap();
    let lease = Duration::from_millis(300);
    assert_eq!(deadlines.claim(lease, 10).await.unwrap().orders, [order]);
    assert!(deadlines.claim(lease, 10).await.unwrap().is_empty());
    let again = async || deadlines.claim(lease, 10).await.unwrap().orders == [order];
    eventually("the lease runs out", PATIENCE, again).await;
}

#[tokio::test]
async fn a_queue_whose_scripts_are_gone_is_built_anew() {
    let world = World::new(&[("phone", 5)]).await;
    let order = accepted("alice", "phone=1");
    world.db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
    let deadlines = Deadlines::new(world.redis.clone(), world.db.store.clone());
    let other = Deadline { order: OrderId::mint(1, 0), pay_before: Millis(1) };
    deadlines.schedule(std::slice::from_ref(&other)).await.unwrap();
    let [ready, ..] = keys::delay(0);
    let known: Vec<String> = world.redis.run("test", cmd("ZRANGE").arg(ready).arg(0).arg(-1)).await.unwrap();
    assert_eq!(known, [other.order.to_string(), order.order.to_string()]);
}

#[tokio::test]
async fn a_deadline_that_redis_has_too_early_is_noted_again_and_nothing_expires() {
    let world = World::new(&[("phone", 5)]).await;
    let order = accepted("alice", "phone=1");
    world.db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
    let role = world.run(Role::Timeout);
    let deadlines = Deadlines::new(world.redis.clone(), world.db.store.clone());
    deadlines.schedule(&[Deadline { order: order.order, pay_before: Millis(1) }]).await.unwrap();
    let due = world.db.store.order(&order.order).await.unwrap().unwrap().pay_before;
    let [ready, ..] = keys::delay(0);
    let score = cmd("ZSCORE").arg(ready).arg(order.order.to_string()).to_owned();
    let corrected = async || {
        let score: Option<f64> = world.redis.run("test", &score).await.unwrap();
        score == Some(due.0 as f64)
    };
    eventually("the deadline is corrected", PATIENCE, corrected).await;
    assert_eq!(world.state(&order.order).await, "pending_payment");
    role.stop().await;
}
