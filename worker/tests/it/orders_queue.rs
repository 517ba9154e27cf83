//! The `orders` role on its queues: nothing is acknowledged before its commit, nothing twice.

use std::time::Duration;

use sluice_shared::message::OrderMessage;
use sluice_shared::topology::{ORDERS, write_key, write_queue};
use sluice_testkit::eventually;
use sluice_worker::config::Role;

use crate::harness::world::verify_ledger;
use crate::harness::{World, accepted};

const PATIENCE: Duration = Duration::from_secs(20);
const ROWS: &str = "SELECT count(*) FROM orders";

#[tokio::test]
async fn accepted_orders_become_rows_and_leave_the_queue() {
    let world = World::new(&[("phone", 1000)]).await;
    let orders: Vec<_> = (0..300).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.broker.publish_orders(&orders).await;
    let role = world.run(Role::Orders);
    eventually("300 rows", PATIENCE, async || world.db.count(ROWS).await == 300).await;
    role.stop().await;
    // Whoever reads next finds only what came after.
    let next = world.process();
    let role = world.run_in(next.clone(), Role::Orders);
    let more: Vec<_> = (0..20).map(|n| accepted(&format!("v{n}"), "phone=1")).collect();
    world.broker.publish_orders(&more).await;
    eventually("320 rows", PATIENCE, async || world.db.count(ROWS).await == 320).await;
    eventually("they are counted", PATIENCE, async || next.metrics.orders_so_far("written") == 20).await;
    assert_eq!(next.metrics.orders_so_far("repeated"), 0);
    role.stop().await;
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn a_writer_that_dies_after_its_commit_leaves_a_redelivery_that_changes_nothing() {
    let world = World::new(&[("phone", 1000)]).await;
    let orders: Vec<_> = (0..50).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.broker.publish_orders(&orders).await;
    let mut taken = 0;
    for shard in 0..2 {
        let (link, mut consumer) = world.broker.consumer(&write_queue(shard)).await;
        let mut batch = Vec::new();
        while let Ok(Some(next)) = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await {
            let OrderMessage::Accepted(order) = serde_json::from_slice(&next.unwrap().body).unwrap() else {
                panic!("not an order");
            };
            batch.push(order);
        }
        taken += batch.len();
        world.db.store.write_orders(&batch).await.unwrap();
        link.close().await;
    }
    assert_eq!(taken, 50);
    let role = world.run(Role::Orders);
    let repeated = async || world.context.metrics.orders_so_far("repeated") == 50;
    eventually("50 redeliveries", PATIENCE, repeated).await;
    role.stop().await;
    assert_eq!(world.db.count(ROWS).await, 50);
    assert_eq!(world.db.count("SELECT taken FROM offers").await, 50);
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn a_barrier_is_noted_after_everything_before_it() {
    let world = World::new(&[("phone", 10_000)]).await;
    let orders: Vec<_> = (0..2000).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.broker.publish_orders(&orders).await;
    let barriers: Vec<_> = (0..2)
        .map(|shard| {
            let barrier = OrderMessage::Barrier { v: 1, id: "b1".into(), shard };
            (write_key(shard), serde_json::to_vec(&barrier).unwrap())
        })
        .collect();
    world.broker.publish(ORDERS, &barriers).await;
    let late = accepted("late", "phone=1");
    world.broker.publish_orders(&[late]).await;
    let role = world.run(Role::Orders);
    let through = async || world.db.count("SELECT count(*) FROM barriers WHERE id = 'b1'").await == 2;
    eventually("the barrier is through", PATIENCE, through).await;
    assert!(world.db.count(ROWS).await >= 2000);
    eventually("reading goes on", PATIENCE, async || world.db.count(ROWS).await == 2001).await;
    role.stop().await;
}

#[tokio::test]
async fn orders_wait_while_the_books_are_away() {
    let world = World::new(&[("phone", 1000)]).await;
    world.db.run("ALTER TABLE ledger RENAME TO elsewhere").await;
    let orders: Vec<_> = (0..100).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.broker.publish_orders(&orders).await;
    let role = world.run(Role::Orders);
    let tried = async || {
        world
            .context
            .metrics
            .render(world.db.store.connections())
            .contains("job_retry_count_total{job=\"orders\"}")
    };
    eventually("the writer tries again", PATIENCE, tried).await;
    assert_eq!(world.db.count(ROWS).await, 0);
    world.db.run("ALTER TABLE elsewhere RENAME TO ledger").await;
    eventually("100 rows", PATIENCE, async || world.db.count(ROWS).await == 100).await;
    assert_eq!(world.db.count("SELECT count(*) FROM parked").await, 0);
    role.stop().await;
}

#[tokio::test]
async fn every_connection_to_the_books_may_be_cut_at_any_time() {
    let world = World::new(&[("phone", 10_000)]).await;
    let orders: Vec<_> = (0..3000).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    let role = world.run(Role::Orders);
    let cutting = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            world
                .db
                .run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'sluice-worker'",
                )
                .await;
        }
    };
    tokio::join!(world.broker.publish_orders(&orders), cutting);
    eventually("3000 rows", PATIENCE, async || world.db.count(ROWS).await == 3000).await;
    role.stop().await;
    assert_eq!(world.db.count("SELECT count(*) FROM parked").await, 0);
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn a_second_process_takes_over_when_the_first_is_killed() {
    let world = World::new(&[("phone", 10_000)]).await;
    let first = world.run(Role::Orders);
    let second = world.run_in(world.process(), Role::Orders);
    let orders: Vec<_> = (0..1000).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.broker.publish_orders(&orders).await;
    eventually("some rows", PATIENCE, async || world.db.count(ROWS).await > 0).await;
    first.stop().await;
    let more: Vec<_> = (0..1000).map(|n| accepted(&format!("v{n}"), "phone=1")).collect();
    world.broker.publish_orders(&more).await;
    eventually("2000 rows", PATIENCE, async || world.db.count(ROWS).await == 2000).await;
    second.stop().await;
    verify_ledger(&world.db).await;
}
