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
use crate::warden_world::{PATIENCE, Place};

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
    eventually("it is tried again and again", PATIENCE, async || place.epoch().await >= 6).await;
    let (epoch, took) = (place.epoch().await, up.elapsed());
    // From the second attempt on 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4 s, or a quarter less.
    let least: f64 = (3..=epoch).map(|epoch| 0.075 * 2_f64.powi(i32::try_from(epoch - 3).unwrap())).sum();
    assert!(took >= Duration::from_secs_f64(least), "{epoch} after {took:?}");
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
    let (mut place, warden, _orders, edge) = Place::open(100).await;
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
    place.until_sells(&edge).await;
    let (_outbox, saga) = (place.outbox(), place.saga());
    // Whether a release is carried out in a frozen segment or waits for it, it is asked for.
    let asked = "SELECT count(*) FROM outbox WHERE published_at IS NULL";
    eventually("the releases are asked for", PATIENCE, async || place.db.count(asked).await == 0).await;
    let put_off = "sluice_job_messages_put_off_total{job=\"release\"}";
    let before = saga.counted(put_off);
    let mut took = Vec::new();
    for n in 0..5 {
        took.push(refunded(&place, &edge, n).await);
    }
    took.sort_unstable();
    eventually("the closed one is open again", PATIENCE, async || {
        place.db.store.epoch(&closed).await.unwrap() == Some(2)
    })
    .await;
    // Four rounds a second at the most: as long as ten seconds at the least.
    warden.rounds("edges", 40).await;
    let more = saga.counted(put_off) - before;
    println!("refunded in {took:?}, {more} messages put off in 40 rounds");
    // A message that is put off waits for a second at the least.
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
    assert!(more < 100.0, "{more} messages put off in 40 rounds");
    // Once it can be opened again, every unit goes back.
    place.run(&["HDEL", &stuck.orders(), &strange]).await;
    let undone = "SELECT count(*) FROM saga WHERE state = 'undone'";
    let patience = Duration::from_secs(100);
    eventually("all are undone", patience, async || place.db.count(undone).await >= i64::from(DEAD)).await;
    let left = cmd("HGET").arg(stuck.stock()).arg("phone").to_owned();
    assert_eq!(place.redis.run::<u64>("test", &left).await, Ok(10_000));
}
