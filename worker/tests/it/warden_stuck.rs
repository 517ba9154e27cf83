//! A segment that cannot be re-opened, or a sale with odd times, is in nobody's way.

use std::time::{Duration, Instant};

use sluice_shared::ids::SaleId;
use sluice_shared::keys::Segment;
use sluice_shared::record::{OrderState, Record};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;
use sluice_worker::store::payments::{NoticeStatus, PaymentNotice};

use crate::harness::accepted_of;
use crate::harness::world::refund;
use crate::warden_turns::closed;
use crate::warden_world::{PATIENCE, Place, Process};

/// A number that a process counts.
fn counted(process: &Process, metric: &str) -> f64 {
    let text = process.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.map_or(0.0, |number| number.trim().parse().unwrap())
}

#[tokio::test]
async fn a_sale_that_began_before_1970_sells_and_is_reopened_once() {
    let place = Place::new(10).await;
    place.db.run("UPDATE sales SET starts_at = '1926-11-21T04:00:00Z'").await;
    let (mut place, warden, _orders, edge) = place.opened().await;
    let order = place.bought(&edge.instance, "bob").await;
    place.server.crash_and_restart();
    eventually("a new epoch sells", PATIENCE, async || place.epoch().await >= 2).await;
    place.until_sells(&edge).await;
    assert_eq!(place.epoch().await, 2);
    assert!(warden.metrics().contains("sluice_warden_reopenings_total 1\n"));
    assert!(place.record(&order.order).await.is_some());
    assert_eq!(place.meta("starts").await.as_deref(), Some("-1360526400000"));
}

#[tokio::test]
async fn a_segment_whose_reopening_is_in_vain_is_let_alone_longer_each_time() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    let closed = closed(&place, "closed").await;
    // More units than there are: it is restored again and again, and never is.
    place.bought(&edge.instance, "bob").await;
    place.db.run("UPDATE orders SET lines = 'phone=99' WHERE user_id = 'bob'").await;
    place.server.crash_and_restart();
    let up = Instant::now();
    eventually("the closed one is open again", PATIENCE, async || {
        place.db.store.epoch(&closed).await.unwrap() == Some(2)
    })
    .await;
    assert!(up.elapsed() < Duration::from_secs(14), "{:?}", up.elapsed());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let epoch = place.epoch().await;
    // 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4 s.
    assert!((4..=10).contains(&epoch), "{epoch}");
    let one = async || warden.metrics().contains("sluice_warden_frozen_segments 1\n");
    eventually("no other one is frozen", PATIENCE, one).await;
    place.db.run("UPDATE orders SET lines = 'phone=1' WHERE user_id = 'bob'").await;
    place.until_sells(&edge).await;
}

/// An order of `demo` that is paid; its money goes back, and its record tells so. How long that took.
async fn refunded(place: &Place, edge: &crate::warden_world::Edge, n: usize) -> Duration {
    let order = place.bought(&edge.instance, &format!("payer{n}")).await.order;
    let notice = PaymentNotice {
        payment_id: format!("p{n}"),
        order,
        amount: 1500,
        currency: "EUR".to_owned(),
        status: NoticeStatus::Succeeded,
    };
    place.db.store.notice(&notice).await.unwrap();
    let is = async |state: OrderState| place.record(&order).await.is_some_and(|record| record.state == state);
    eventually("it is paid", PATIENCE, async || is(OrderState::Paid).await).await;
    let began = Instant::now();
    refund(&place.db, &order, true).await;
    eventually("it is refunded", PATIENCE, async || is(OrderState::Refunded).await).await;
    began.elapsed()
}

#[tokio::test]
async fn a_frozen_sale_with_a_thousand_dead_orders_disturbs_nobody() {
    const DEAD: u32 = 1_000;
    let (mut place, _warden, _orders, edge) = Place::open(100).await;
    let closed = closed(&place, "closed").await;
    let number = place.make("stuck", 10_000).await;
    let stuck = Segment::new(SaleId::parse("stuck").unwrap(), 0);
    for step in [SaleStep::Preloaded, SaleStep::Open] {
        place.step_of(&stuck.sale, step).await;
    }
    let there = cmd("EXISTS").arg(stuck.meta()).to_owned();
    eventually("it is on the shelf", PATIENCE, async || {
        place.redis.run::<u64>("test", &there).await == Ok(1)
    })
    .await;
    // The books have never heard of an order that they once told Redis of.
    let order = place.bought(&edge.instance, "bob").await;
    let known = place.record(&order.order).await.unwrap();
    let record = Record { state: OrderState::PendingPayment, ..known }.to_string();
    let strange = order.order.field();
    place.run(&["HSET", &stuck.orders(), &strange, &record]).await;
    let dead: Vec<_> = (0..DEAD).map(|n| accepted_of("stuck", number, &format!("u{n}"), "phone=1")).collect();
    place.db.store.write_orders(&dead).await.unwrap();
    for order in &dead {
        place.db.store.cancel(&order.order, &order.user).await.unwrap();
    }
    place.server.crash_and_restart();
    let up = Instant::now();
    place.until_sells(&edge).await;
    let (_outbox, saga) = (place.outbox(), place.saga());
    // Whether a release is carried out in a frozen segment or waits for it, it is asked for.
    let asked = "SELECT count(*) FROM outbox WHERE published_at IS NULL";
    eventually("the releases are asked for", PATIENCE, async || place.db.count(asked).await == 0).await;
    let put_off = "sluice_job_messages_put_off_total{job=\"release\"}";
    let (before, began) = (counted(&saga, put_off), Instant::now());
    let mut slowest = Duration::ZERO;
    for n in 0..5 {
        slowest = slowest.max(refunded(&place, &edge, n).await);
    }
    eventually("the closed one is open again", PATIENCE, async || {
        place.db.store.epoch(&closed).await.unwrap() == Some(2)
    })
    .await;
    assert!(up.elapsed() < Duration::from_secs(30), "{:?}", up.elapsed());
    tokio::time::sleep(Duration::from_secs(10).saturating_sub(began.elapsed())).await;
    let rate = (counted(&saga, put_off) - before) / began.elapsed().as_secs_f64();
    println!("refunded in {slowest:?}, {rate:.1} messages put off a second");
    assert!(slowest < Duration::from_millis(300), "{slowest:?}");
    assert!(rate < 10.0, "{rate} messages put off a second");
    // Once it can be opened again, every unit goes back.
    place.run(&["HDEL", &stuck.orders(), &strange]).await;
    let undone = "SELECT count(*) FROM saga WHERE state = 'undone'";
    let patience = Duration::from_secs(100);
    eventually("all are undone", patience, async || place.db.count(undone).await >= i64::from(DEAD)).await;
    let left = cmd("HGET").arg(stuck.stock()).arg("phone").to_owned();
    assert_eq!(place.redis.run::<u64>("test", &left).await, Ok(10_000));
}
