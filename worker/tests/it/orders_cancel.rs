//! Cancelling in groups: what comes of it is what comes of it one by one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::Value;
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Segment;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_shared::verdict::{Code, Rejection};
use sluice_testkit::{PrivateRedis, eventually};
use sluice_worker::api::desk::Desk;
use sluice_worker::api::lanes::Cancels;
use sluice_worker::api::locate::{Located, Locator};
use sluice_worker::metrics::api as metrics;
use sluice_worker::store::orders::{Cancelled, Wish};
use tokio::task::JoinSet;

use crate::api_world::World;
use crate::harness::world::{insert_sale, user, verify_ledger};
use crate::harness::{TestDatabase, accepted};

fn wish(order: &OrderId, who: &str) -> Wish {
    Wish { order: *order, user: user(who) }
}

async fn written(db: &TestDatabase, n: usize) -> Vec<OrderId> {
    insert_sale(db, "demo", &[("case", 10_000), ("phone", 10_000)]).await;
    let batch: Vec<_> = (0..n).map(|n| accepted("alice", ["phone=1", "case=2"][n % 2])).collect();
    db.store.write_orders(&batch).await.unwrap();
    batch.into_iter().map(|order| order.order).collect()
}

fn desk(db: &TestDatabase, redis: &PrivateRedis) -> Arc<Desk<Cancels>> {
    let locator = Arc::new(Locator::new(db.store.clone(), redis.connect()));
    let metrics = metrics::Desk::new(&mut Registry::default(), "cancels");
    Arc::new(Desk::open(Cancels::new(db.store.clone(), locator), metrics))
}

#[tokio::test]
async fn a_wave_of_cancels_takes_its_offers_a_few_times() {
    let (db, redis) = (TestDatabase::new().await, PrivateRedis::start());
    let orders = written(&db, 200).await;
    let desk = desk(&db, &redis);
    let mut holding = db.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM offers FOR UPDATE").execute(&mut *holding).await.unwrap();
    let mut wave = JoinSet::new();
    for order in &orders {
        let (desk, wish) = (desk.clone(), wish(order, "alice"));
        wave.spawn(async move { desk.ask(wish).await });
    }
    eventually("the first group waits for the offers", Duration::from_secs(5), || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        db.count(waiting).await > 0
    })
    .await;
    holding.rollback().await.unwrap();
    while let Some(cancelled) = wave.join_next().await {
        assert!(matches!(cancelled.unwrap(), Ok(Cancelled::Done(_))));
    }
    // All times of a transaction are one.
    let groups = db.count("SELECT count(DISTINCT updated_at) FROM orders WHERE state = 'cancelled'").await;
    assert!((1..=3).contains(&groups), "{groups} groups");
    assert_eq!(db.count("SELECT sum(taken)::bigint FROM offers").await, 0);
    assert_eq!(db.count("SELECT count(*) FROM saga WHERE state = 'undoing'").await, 200);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn each_wish_of_a_group_has_its_own_outcome() {
    let (db, redis) = (TestDatabase::new().await, PrivateRedis::start());
    let orders = written(&db, 6).await;
    db.run("UPDATE orders SET state = 'paid' WHERE id = (SELECT max(id) FROM orders)").await;
    let paid = *orders.iter().max_by_key(|order| order.to_string()).unwrap();
    let unpaid: Vec<_> = orders.iter().filter(|order| **order != paid).collect();
    let mut holding = db.pool.begin().await.unwrap();
    let lock = sqlx::query("SELECT 1 FROM orders WHERE id = $1 FOR UPDATE").bind(unpaid[3].to_string());
    lock.execute(&mut *holding).await.unwrap();
    db.store.cancel(unpaid[4], &user("alice")).await.unwrap();
    let wishes = [
        wish(unpaid[0], "alice"),
        wish(unpaid[0], "alice"),
        wish(unpaid[1], "mallory"),
        wish(&paid, "alice"),
        wish(&OrderId::mint(1, 0), "alice"),
        wish(unpaid[3], "alice"),
        wish(unpaid[4], "alice"),
    ];
    let told = db.store.cancel_some(&wishes).await.unwrap();
    let word = |told: &Option<Cancelled>| match told {
        None => "held",
        Some(Cancelled::Done(_)) => "done",
        Some(Cancelled::Over(_)) => "over",
        Some(Cancelled::NotCancellable(_)) => "paid",
        Some(Cancelled::Unknown) => "unknown",
    };
    let told: Vec<_> = told.iter().map(word).collect();
    assert_eq!(told, ["done", "done", "unknown", "paid", "unknown", "held", "over"]);
    // At a desk the held one waits alone, and nobody waits for it.
    let desk = desk(&db, &redis);
    let held = tokio::spawn({
        let (desk, wish) = (desk.clone(), wish(unpaid[3], "alice"));
        async move { desk.ask(wish).await }
    });
    let other = tokio::time::timeout(Duration::from_secs(2), desk.ask(wish(unpaid[2], "alice"))).await;
    assert!(matches!(other.unwrap(), Ok(Cancelled::Done(_))));
    assert!(!held.is_finished());
    holding.rollback().await.unwrap();
    assert!(matches!(held.await.unwrap(), Ok(Cancelled::Done(_))));
    assert_eq!(db.count("SELECT count(*) FROM orders WHERE state = 'pending_payment'").await, 1);
}

#[tokio::test]
async fn orders_that_are_not_written_yet_are_cancelled_in_groups_too() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    let mut late = Vec::new();
    for n in 0..8 {
        late.push(world.accept("a", &format!("u{n}")).await);
    }
    // One is written before its buyer asks, one is written meanwhile.
    world.store.write_orders(&late[..1]).await.unwrap();
    let replies = futures_util::future::join_all(late.iter().map(|accepted| async {
        let (path, user) = (format!("/orders/{}", accepted.order), accepted.user.as_str());
        (world.edge("DELETE", &path, "mallory").await, world.edge("DELETE", &path, user).await)
    }))
    .await;
    for (stranger, buyer) in replies {
        stranger.problem(404, "not_found");
        assert_eq!(buyer.expect(202)["state"], "cancelled");
    }
    // Their messages come late, and change nothing.
    let report = world.store.write_orders(&late).await.unwrap();
    assert_eq!((report.written, report.repeated), (0, 8));
    let lines = world.ledger("a").await;
    let count = |word: &str| lines.iter().filter(|line| *line == word).count();
    assert_eq!((count("take 1"), count("release 1")), (8, 8));
    assert!(world.chain_holds("a").await);
    let released: Vec<String> =
        sqlx::query_scalar("SELECT payload::text FROM outbox WHERE topic = 'stock.release'")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    let events = crate::harness::events(&released);
    let told: HashSet<_> = events.iter().map(|event| event.order).collect();
    assert_eq!((events.len(), told.len()), (8, 8));
    // A sale that is being re-opened has no orders of the epoch that is over.
    let fenced = world.accept("a", "late").await;
    sqlx::query("UPDATE segments SET epoch = 2").execute(&world.pool).await.unwrap();
    let reply = world.edge("DELETE", &format!("/orders/{}", fenced.order), "late").await;
    reply.problem(503, "unavailable");
}

#[tokio::test]
async fn many_orders_are_looked_for_at_once() {
    let mut world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    let row = world.order("a", "alice").await;
    let record = world.accept("a", "alice").await.order;
    let torn = world.accept("a", "alice").await.order;
    let segment = Segment::new(SaleId::parse("a").unwrap(), 0);
    let set = cmd("HSET").arg(segment.orders()).arg(torn.field()).arg("?").to_owned();
    let _: i64 = world.redis.run("test", &set).await.unwrap();
    let all = [row, record, torn, OrderId::mint(1, 0), OrderId::mint(1, 7), OrderId::mint(99, 0), row];
    let locator = Locator::new(world.store.clone(), world.redis.clone());
    let words = async || {
        let found = locator.find_all(&all).await;
        let word = |found: &Result<_, Rejection>| match found {
            Ok(Located::Row(_)) => "row",
            Ok(Located::Record(..)) => "record",
            Ok(Located::Nowhere) => "nowhere",
            Err(why) if why.code == Code::Unavailable => "?",
            Err(why) => panic!("{why:?}"),
        };
        found.iter().map(word).collect::<Vec<_>>()
    };
    assert_eq!(words().await, ["row", "record", "?", "nowhere", "nowhere", "nowhere", "row"]);
    // A shelf that may have lost its data knows nothing of what it has not.
    let _: String = world.redis.run("test", cmd("SCRIPT").arg("FLUSH")).await.unwrap();
    assert_eq!(words().await, ["row", "record", "?", "?", "nowhere", "nowhere", "row"]);
    world.server.crash();
    assert_eq!(words().await, ["row", "?", "?", "?", "?", "nowhere", "row"]);
    world.store.close().await;
    assert!(words().await.iter().all(|word| *word == "?"));
    let reply = world.admin("GET", &format!("/orders/{row}"), Value::Null).await;
    reply.problem(503, "unavailable");
}
