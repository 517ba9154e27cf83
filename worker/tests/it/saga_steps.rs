//! The purchase's steps: Redis follows the books, units go back once, and nothing is given up.

use std::time::Duration;

use futures_util::StreamExt;
use sluice_shared::amqp::Outgoing;
use sluice_shared::clock::Millis;
use sluice_shared::keys::{self, Segment, sale_channel};
use sluice_shared::message::{Accepted, OrderEvents, VERSION};
use sluice_shared::record::{OrderState, Refund};
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::script::{Raised, SegmentScripts, WardenScripts};
use sluice_shared::topology::EVENTS;
use sluice_testkit::eventually;
use sluice_worker::config::Role;
use sluice_worker::store::orders::Cancelled;
use sluice_worker::store::payments::{NoticeStatus, PaymentNotice};

use crate::harness::world::{edge, refund, verify_ledger};
use crate::harness::{Running, World};

const PATIENCE: Duration = Duration::from_secs(15);

async fn world() -> (World, [Running; 2]) {
    let world = World::new(&[("phone", 10), ("case", 10)]).await;
    let roles = [world.run(Role::Outbox), world.run(Role::Saga)];
    (world, roles)
}

async fn end(roles: [Running; 2]) {
    for role in roles {
        role.stop().await;
    }
}

/// Waits until the record in Redis begins like this: state, units, and further on its refund.
async fn becomes(world: &World, order: &Accepted, state: OrderState, released: bool, refund: Refund) {
    let what = format!("{state:?} released={released} {refund:?}");
    let there = async || {
        let record = world.record(&order.order).await;
        record.is_some_and(|r| (r.state, r.released, r.refund) == (state, released, refund))
    };
    eventually(&what, PATIENCE, there).await;
}

async fn pay(world: &World, order: &Accepted, payment: &str, status: NoticeStatus) {
    let notice = PaymentNotice {
        payment_id: payment.to_owned(),
        order: order.order,
        amount: 1500,
        currency: "EUR".to_owned(),
        status,
    };
    world.db.store.notice(&notice).await.unwrap();
}

const SAGAS: &str = "SELECT state || ' ' || step FROM saga ORDER BY order_id";

#[tokio::test]
async fn a_written_order_waits_for_its_money_in_redis_and_in_the_delay_queue() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "phone=1").await;
    becomes(&world, &order, OrderState::PendingPayment, false, Refund::None).await;
    let due = world.db.store.order(&order.order).await.unwrap().unwrap().pay_before;
    assert_eq!(world.record(&order.order).await.unwrap().pay_before, Some(due));
    let [ready, ..] = keys::delay(0);
    let score = cmd("ZSCORE").arg(ready).arg(order.order.to_string()).to_owned();
    let noted = async || {
        let score: Option<f64> = world.redis.run("test", &score).await.unwrap();
        score.map(|score| Millis(score as i64)) == Some(due)
    };
    eventually("the deadline is noted", PATIENCE, noted).await;
    end(roles).await;
}

#[tokio::test]
async fn a_payment_commits_the_saga() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "phone=1").await;
    pay(&world, &order, "p1", NoticeStatus::Succeeded).await;
    becomes(&world, &order, OrderState::Paid, false, Refund::None).await;
    let committed = async || world.db.texts(SAGAS).await == ["committed settle"];
    eventually("the saga is committed", PATIENCE, committed).await;
    pay(&world, &order, "p2", NoticeStatus::Succeeded).await;
    becomes(&world, &order, OrderState::Paid, false, Refund::Due(1)).await;
    pay(&world, &order, "p2", NoticeStatus::Refunded).await;
    becomes(&world, &order, OrderState::Paid, false, Refund::Done(1)).await;
    assert_eq!(world.left("phone").await, 9);
    end(roles).await;
}

#[tokio::test]
async fn a_refund_brings_units_back_or_leaves_them() {
    let (world, roles) = world().await;
    let (back, kept) = (world.bought("alice", "phone=1").await, world.bought("bob", "phone=1").await);
    for (order, payment) in [(&back, "p1"), (&kept, "p2")] {
        pay(&world, order, payment, NoticeStatus::Succeeded).await;
    }
    refund(&world.db, &back.order, true).await;
    refund(&world.db, &kept.order, false).await;
    becomes(&world, &back, OrderState::Refunded, true, Refund::Due(1)).await;
    becomes(&world, &kept, OrderState::Refunded, false, Refund::Due(1)).await;
    pay(&world, &back, "p1", NoticeStatus::Refunded).await;
    becomes(&world, &back, OrderState::Refunded, true, Refund::Done(1)).await;
    assert_eq!(world.left("phone").await, 9);
    end(roles).await;
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn t6_units_go_back_once_however_often_it_is_told() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "case=2,phone=1").await;
    assert_eq!((world.left("case").await, world.left("phone").await), (8, 9));
    world.db.store.cancel(&order.order, &order.user).await.unwrap();
    becomes(&world, &order, OrderState::Cancelled, true, Refund::None).await;
    let payload = "SELECT payload::text FROM outbox WHERE topic = 'stock.release'";
    let again = world.db.texts(payload).await.remove(0).into_bytes();
    world.broker.publish(EVENTS, &vec![("stock.release".to_owned(), again); 10]).await;
    let undone = async || world.db.texts(SAGAS).await == ["undone release"];
    eventually("the saga is undone", PATIENCE, undone).await;
    let last = world.bought("bob", "phone=1").await;
    world.db.store.cancel(&last.order, &last.user).await.unwrap();
    becomes(&world, &last, OrderState::Cancelled, true, Refund::None).await;
    assert_eq!((world.left("case").await, world.left("phone").await), (10, 10));
    end(roles).await;
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn a_cancel_before_the_row_gives_the_units_back_and_outlives_the_late_message() {
    let (world, roles) = world().await;
    let order = world.reserve("alice", "phone=1").await;
    let done = world.db.store.cancel_unwritten(&order).await.unwrap();
    assert!(matches!(done, Cancelled::Done(_)), "{done:?}");
    becomes(&world, &order, OrderState::Cancelled, true, Refund::None).await;
    let report = world.db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
    assert_eq!((report.written, report.repeated), (0, 1));
    assert_eq!(world.left("phone").await, 10);
    end(roles).await;
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn an_order_that_the_books_had_no_units_for_goes_back_on_the_shelf() {
    let (world, roles) = world().await;
    world.db.run("UPDATE offers SET stock = 1 WHERE sku = 'phone'").await;
    let (first, second) = (world.reserve("alice", "phone=1").await, world.reserve("bob", "phone=1").await);
    world.db.store.write_orders(&[first.clone(), second.clone()]).await.unwrap();
    becomes(&world, &first, OrderState::PendingPayment, false, Refund::None).await;
    becomes(&world, &second, OrderState::Failed, true, Refund::None).await;
    assert_eq!(world.left("phone").await, 9);
    end(roles).await;
}

#[tokio::test]
async fn a_frozen_sale_keeps_its_messages_waiting_and_loses_none() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "phone=1").await;
    becomes(&world, &order, OrderState::PendingPayment, false, Refund::None).await;
    let flush = cmd("SCRIPT").arg("FLUSH").to_owned();
    let _: String = world.redis.run("test", &flush).await.unwrap();
    world.db.store.cancel(&order.order, &order.user).await.unwrap();
    let waits = async || {
        let text = world.context.metrics.render(world.db.store.connections());
        text.contains("sluice_jobs_total{job=\"release\",outcome=\"later\"}")
    };
    eventually("the message waits", PATIENCE, waits).await;
    assert_eq!(world.left("phone").await, 9);
    // Nobody but the warden loads them.
    assert!(!world.scripts.loaded(&world.redis).await.unwrap());
    world.scripts.load(&world.redis).await.unwrap();
    becomes(&world, &order, OrderState::Cancelled, true, Refund::None).await;
    assert_eq!(world.left("phone").await, 10);
    end(roles).await;
}

async fn raise(redis: &Redis, segment: &Segment) -> SegmentScripts {
    let warden = WardenScripts::default();
    warden.load(redis).await.unwrap();
    assert_eq!(warden.raise(redis, segment, 1, 100).await.unwrap(), Raised::Raised);
    let scripts = SegmentScripts::new(segment.clone(), 2);
    scripts.load(redis).await.unwrap();
    let (span, edges) = (Duration::from_secs(60), [edge()]);
    warden.lease(redis, segment, 2, span, &edges, &[]).await.unwrap().unwrap();
    scripts
}

#[tokio::test]
async fn steps_go_on_in_the_next_epoch() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "phone=1").await;
    becomes(&world, &order, OrderState::PendingPayment, false, Refund::None).await;
    raise(&world.redis, &world.segment).await;
    pay(&world, &order, "p1", NoticeStatus::Succeeded).await;
    becomes(&world, &order, OrderState::Paid, false, Refund::None).await;
    end(roles).await;
}

#[tokio::test]
async fn a_release_of_an_order_that_redis_has_lost_leaves_a_tombstone() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "phone=1").await;
    becomes(&world, &order, OrderState::PendingPayment, false, Refund::None).await;
    let lose = cmd("HDEL").arg(world.segment.orders()).arg(order.order.field()).to_owned();
    let _: i64 = world.redis.run("test", &lose).await.unwrap();
    world.db.store.cancel(&order.order, &order.user).await.unwrap();
    becomes(&world, &order, OrderState::Cancelled, true, Refund::None).await;
    // The rebuild counts the units; a tombstone gives none back.
    assert_eq!(world.left("phone").await, 9);
    end(roles).await;
}

#[tokio::test]
async fn edges_that_follow_are_told() {
    let world = World::new(&[("phone", 10)]).await;
    let channels = [sale_channel(&world.segment.sale)];
    let news = Redis::subscribe(&world.server.url(), &channels).await.unwrap();
    let roles = [world.run(Role::Outbox), world.run(Role::Saga)];
    let order = world.bought("alice", "phone=1").await;
    becomes(&world, &order, OrderState::PendingPayment, false, Refund::None).await;
    world.db.store.cancel(&order.order, &order.user).await.unwrap();
    let told = news.take(2).map(|(_, payload)| payload).collect::<Vec<_>>();
    let told = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap().join("\n");
    let told: Vec<&str> = told.lines().collect();
    let field = order.order.field();
    assert!(told[0].starts_with(&format!("order {field} Ph|1|")), "{told:?}");
    assert_eq!(told[1], "release phone");
    assert!(told[2].starts_with(&format!("order {field} Cr|1|")), "{told:?}");
    end(roles).await;
}

#[tokio::test]
async fn a_sale_whose_keys_are_deleted_still_ends_its_sagas() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "phone=1").await;
    becomes(&world, &order, OrderState::PendingPayment, false, Refund::None).await;
    let keys = [world.segment.meta(), world.segment.stock(), world.segment.orders(), world.segment.journal()];
    let delete = cmd("DEL").arg(&keys[..]).to_owned();
    let _: i64 = world.redis.run("test", &delete).await.unwrap();
    world
        .db
        .run(
            "UPDATE sales SET step = 'closed', starts_at = now() - interval '4 days',
                    ends_at = now() - interval '3 days', updated_at = now() - interval '3 days'",
        )
        .await;
    world.db.store.cancel(&order.order, &order.user).await.unwrap();
    let undone = async || world.db.texts(SAGAS).await == ["undone release"];
    eventually("the saga is undone", PATIENCE, undone).await;
    end(roles).await;
}

#[tokio::test]
async fn an_order_whose_record_is_torn_is_tried_again_and_the_others_of_its_message_go_on() {
    let (world, roles) = world().await;
    let (torn, good) = (world.reserve("alice", "phone=1").await, world.reserve("bob", "phone=1").await);
    let tear = cmd("HSET").arg(world.segment.orders()).arg(torn.order.field()).arg("Ah|1|torn").to_owned();
    let _: i64 = world.redis.run("test", &tear).await.unwrap();
    world.db.store.write_orders(&[torn, good.clone()]).await.unwrap();
    becomes(&world, &good, OrderState::PendingPayment, false, Refund::None).await;
    let retried = async || {
        let text = world.context.metrics.render(world.db.store.connections());
        text.contains("sluice_jobs_total{job=\"saga\",outcome=\"retry\"} 1")
    };
    eventually("it is on the ladder", PATIENCE, retried).await;
    end(roles).await;
}

/// Each order written by itself, and told by a message of its own that waits in the saga's queue.
async fn written_one_by_one(world: &World, orders: &[Accepted]) {
    let outbox = world.run(Role::Outbox);
    for order in orders {
        world.db.store.write_orders(std::slice::from_ref(order)).await.unwrap();
    }
    let sent = async || {
        let all = world.db.count("SELECT count(published_at) FROM outbox").await;
        usize::try_from(all) == Ok(orders.len())
    };
    eventually("all is in the queue", PATIENCE, sent).await;
    outbox.stop().await;
}

#[tokio::test]
async fn messages_that_wait_already_are_told_together() {
    let world = World::new(&[("phone", 100)]).await;
    let mut orders = Vec::new();
    for n in 0..100 {
        orders.push(world.reserve(&format!("u{n}"), "phone=1").await);
    }
    written_one_by_one(&world, &orders).await;
    let reset = cmd("CONFIG").arg("RESETSTAT").to_owned();
    let _: String = world.redis.run("test", &reset).await.unwrap();
    let saga = world.run(Role::Saga);
    for order in &orders {
        becomes(&world, order, OrderState::PendingPayment, false, Refund::None).await;
    }
    let stats: String = world.redis.run("test", cmd("INFO").arg("commandstats")).await.unwrap();
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    let calls: u32 = calls.split(',').next().unwrap().parse().unwrap();
    // Alone, each takes a call for its state and one for its deadline.
    assert!(calls < 100, "{calls} calls of scripts");
    saga.stop().await;
}

#[tokio::test]
async fn an_order_that_cannot_be_read_holds_up_no_message_but_its_own() {
    let world = World::new(&[("phone", 10)]).await;
    let orders = [world.reserve("alice", "phone=1").await, world.reserve("bob", "phone=1").await];
    // As a script reads it, it is whole.
    let (field, torn) = (orders[0].order.field(), "Ah|1|1|1|1|0|-|phone=none|alice");
    let tear = cmd("HSET").arg(world.segment.orders()).arg(field).arg(torn).to_owned();
    let _: i64 = world.redis.run("test", &tear).await.unwrap();
    written_one_by_one(&world, &orders).await;
    let saga = world.run(Role::Saga);
    becomes(&world, &orders[1], OrderState::PendingPayment, false, Refund::None).await;
    let count = |outcome: &str| {
        let text = world.context.metrics.render(world.db.store.connections());
        text.contains(&format!("sluice_jobs_total{{job=\"saga\",outcome=\"{outcome}\"}} 1"))
    };
    eventually("one is told, one fails", PATIENCE, async || count("done") && count("retry")).await;
    saga.stop().await;
}

#[tokio::test]
async fn what_is_no_event_is_parked() {
    let (world, roles) = world().await;
    let newer = serde_json::to_vec(&OrderEvents { v: VERSION + 1, events: Vec::new() }).unwrap();
    let messages = [
        ("order.created".to_owned(), b"{".to_vec()),
        ("stock.release".to_owned(), newer),
        ("order.changed".to_owned(), br#"{"v":1,"events":[{}]}"#.to_vec()),
    ];
    world.broker.publish(EVENTS, &messages).await;
    let parked = async || world.db.count("SELECT count(*) FROM parked").await == 3;
    eventually("three are parked", PATIENCE, parked).await;
    end(roles).await;
}

#[tokio::test]
async fn a_release_that_cannot_be_done_is_stuck_until_it_can() {
    let (world, roles) = world().await;
    let order = world.bought("alice", "phone=1").await;
    becomes(&world, &order, OrderState::PendingPayment, false, Refund::None).await;
    // The buyer's mark is gone: the units cannot be taken off it.
    let mark = format!("@{}", order.user);
    let forget = cmd("HDEL").arg(world.segment.orders()).arg(&mark).to_owned();
    let _: i64 = world.redis.run("test", &forget).await.unwrap();
    for role in roles {
        role.stop().await;
    }
    world.db.store.cancel(&order.order, &order.user).await.unwrap();
    let body =
        world.db.texts("SELECT payload::text FROM outbox WHERE topic = 'stock.release'").await.remove(0);
    let link = world.broker.link().await;
    let publisher = link.publisher().await.unwrap();
    let role = world.run(Role::Saga);
    let (key, body) = ("stock.release", body.as_bytes());
    let message = |attempt| Outgoing {
        exchange: EVENTS,
        key,
        id: "t",
        kind: "t",
        body,
        attempt,
        ..Outgoing::default()
    };
    publisher.publish(message(3)).await.unwrap().await.unwrap();
    let stuck = async || world.db.texts(SAGAS).await == ["stuck release"];
    eventually("the saga is stuck", PATIENCE, stuck).await;
    let mend = cmd("HSET").arg(world.segment.orders()).arg(&mark).arg("phone=1").to_owned();
    let _: i64 = world.redis.run("test", &mend).await.unwrap();
    publisher.publish(message(0)).await.unwrap().await.unwrap();
    let undone = async || world.db.texts(SAGAS).await == ["undone release"];
    eventually("the saga is undone", PATIENCE, undone).await;
    assert_eq!(world.left("phone").await, 10);
    role.stop().await;
    link.close().await;
}
