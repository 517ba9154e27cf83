//! Whose re-opening comes first, and how many are under way at once.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_shared::ids::SaleId;
use sluice_shared::keys::Segment;
use sluice_shared::record::{OrderState, Record};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;

use crate::warden_reopen::{unknown_to_the_books, until_asked};
use crate::warden_world::{PATIENCE, Place};

/// A sale that was on the shelf and is over.
pub async fn closed(place: &Place, sale: &str) -> Segment {
    let closed = Segment::new(SaleId::parse(sale).unwrap(), 0);
    place.make(sale, 10).await;
    for step in [SaleStep::Preloaded, SaleStep::Open] {
        place.step_of(&closed.sale, step).await;
    }
    eventually("it is on the shelf", PATIENCE, || async {
        place.redis.run::<u64>("test", cmd("EXISTS").arg(closed.meta())).await == Ok(1)
    })
    .await;
    place.step_of(&closed.sale, SaleStep::Closed).await;
    closed
}

#[tokio::test]
async fn a_closed_sale_is_opened_again_after_those_that_sell() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    // Its name comes first.
    let closed = closed(&place, "closed").await;
    // Nobody sells until this edge answers.
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    until_asked(&place).await;
    edge.answers.store(true, Ordering::Relaxed);
    eventually("the closed one is open again", PATIENCE, || async {
        let [closed, selling] =
            [place.db.store.epoch(&closed).await, place.db.store.epoch(&place.segment).await]
                .map(|epoch| epoch.unwrap().unwrap_or(1));
        assert!(closed <= selling, "{closed} before {selling}");
        closed == 2
    })
    .await;
}

#[tokio::test]
async fn a_sale_that_cannot_be_opened_holds_closed_ones_up_for_ten_seconds() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let closed = closed(&place, "closed").await;
    unknown_to_the_books(&place, &edge).await;
    place.server.crash_and_restart();
    let up = Instant::now();
    eventually("the closed one is open again", PATIENCE, async || {
        place.db.store.epoch(&closed).await.unwrap() == Some(2)
    })
    .await;
    assert!(up.elapsed() >= Duration::from_secs(9), "{:?}", up.elapsed());
    assert_eq!(place.epoch().await, 1);
}

#[tokio::test]
async fn closed_sales_are_opened_again_eight_at_a_time() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    place.step(SaleStep::Closed).await;
    let mut segments = vec![place.segment.clone()];
    for n in 0..10 {
        segments.push(closed(&place, &format!("closed-{n}")).await);
    }
    let asked = async || place.redis.run::<usize>("test", cmd("HLEN").arg("sluice:reopening")).await;
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    eventually("all are frozen, and eight are asked for", PATIENCE, async || {
        warden.metrics().contains("sluice_warden_frozen_segments 11") && asked().await == Ok(8)
    })
    .await;
    edge.answers.store(true, Ordering::Relaxed);
    eventually("all are open again", PATIENCE, async || {
        assert!(asked().await.unwrap() <= 8);
        let mut open = 0;
        for segment in &segments {
            open += usize::from(place.db.store.epoch(segment).await.unwrap() == Some(2));
        }
        open == segments.len()
    })
    .await;
    eventually("none is frozen", PATIENCE, async || {
        warden.metrics().contains("sluice_warden_frozen_segments 0")
    })
    .await;
}

#[tokio::test]
async fn sales_that_sell_are_opened_again_twenty_four_at_a_time() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    for n in 0..26 {
        let sale = format!("selling-{n}");
        place.make(&sale, 10).await;
        for step in [SaleStep::Preloaded, SaleStep::Open] {
            place.step_of(&SaleId::parse(&sale).unwrap(), step).await;
        }
    }
    let metrics =
        async |frozen: u32| warden.metrics().contains(&format!("sluice_warden_frozen_segments {frozen}\n"));
    let asked = async || place.redis.run::<usize>("test", cmd("HLEN").arg("sluice:reopening")).await;
    let listed = async || place.redis.run::<usize>("test", cmd("HLEN").arg("sluice:sales")).await == Ok(27);
    eventually("all are on the shelf", PATIENCE, async || listed().await && metrics(0).await).await;
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    eventually("all are frozen, and 24 are asked for", PATIENCE, async || {
        metrics(27).await && asked().await == Ok(24)
    })
    .await;
    edge.answers.store(true, Ordering::Relaxed);
    eventually("all are open again", PATIENCE, async || {
        assert!(asked().await.unwrap() <= 24);
        metrics(0).await && place.db.count("SELECT count(*) FROM segments WHERE epoch >= 2").await == 27
    })
    .await;
}

#[tokio::test]
async fn sales_that_stay_frozen_keep_no_place_from_one_that_can_be_opened() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let order = place.bought(&edge.instance, "bob").await;
    let known = place.record(&order.order).await.unwrap();
    let record = Record { state: OrderState::PendingPayment, ..known }.to_string();
    // Their names come first.
    let segments: Vec<Segment> =
        (0..26).map(|n| Segment::new(SaleId::parse(&format!("behind-{n:02}")).unwrap(), 0)).collect();
    for segment in &segments {
        place.make(segment.sale.as_str(), 10).await;
        for step in [SaleStep::Preloaded, SaleStep::Open] {
            place.step_of(&segment.sale, step).await;
        }
    }
    for segment in &segments {
        let there = cmd("EXISTS").arg(segment.meta()).to_owned();
        let there = async || place.redis.run::<u64>("test", &there).await == Ok(1);
        eventually("it is on the shelf", PATIENCE, there).await;
        // The books have never heard of it.
        place.run(&["HSET", &segment.orders(), &order.order.field(), &record]).await;
    }
    place.server.crash_and_restart();
    eventually("it sells again", PATIENCE, async || {
        place.view().await.is_some_and(|view| view.epochs == [2])
    })
    .await;
    assert_eq!(place.db.count("SELECT count(*) FROM segments WHERE epoch > 1").await, 1);
}
