//! A frozen sale is opened again only when nothing can be lost by it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_shared::testing::eventually;
use sluice_worker::store::stock_changes::{Begun, StockChange};

use crate::warden_world::{PATIENCE, Place, actor, sku};

async fn frozen(place: &Place) -> bool {
    place.view().await.is_some_and(|view| view.epochs == [0])
}

async fn until_asked(place: &Place) {
    eventually("the edges are asked", PATIENCE, || async {
        let asked: Result<u64, _> = place.redis.run("test", cmd("HLEN").arg("sluice:reopening")).await;
        asked == Ok(1) && frozen(place).await
    })
    .await;
}

async fn until_epoch(place: &Place, epoch: u64) {
    eventually("a new epoch sells", PATIENCE, || async {
        place.view().await.is_some_and(|view| view.epochs == [epoch])
    })
    .await;
}

/// Waits for the comparison: it comes right after the barrier.
async fn until_compared(place: &Place) {
    eventually("the barrier is through", PATIENCE, || async {
        place.db.count("SELECT count(*) FROM barriers").await >= 2
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    eventually("it is frozen", PATIENCE, || frozen(place)).await;
}

#[tokio::test]
async fn a_restart_that_lost_nothing_is_open_again_within_three_seconds() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let order = place.bought(&edge.instance, "bob").await;
    let left = place.left().await;
    place.server.crash_and_restart();
    let up = Instant::now();
    until_epoch(&place, 2).await;
    let took = up.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(place.left().await, left);
    assert!(place.record(&order.order).await.is_some_and(|record| !record.released));
    let next = place.ask(&edge.instance, "eve").await.unwrap();
    assert_eq!(next.epoch, 2);
    assert!(next.seq > order.seq);
    eventually("nothing is asked any more", PATIENCE, || async {
        place.redis.run::<u64>("test", cmd("HLEN").arg("sluice:reopening")).await == Ok(0)
    })
    .await;
}

#[tokio::test]
async fn scripts_that_are_gone_close_the_epoch_even_when_the_data_is_there() {
    let (place, _warden, _orders, edge) = Place::open(10).await;
    place.run(&["SCRIPT", "FLUSH"]).await;
    until_epoch(&place, 2).await;
    place.until_sells(&edge).await;
}

#[tokio::test]
async fn an_edge_that_has_not_answered_is_waited_for() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    until_asked(&place).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(frozen(&place).await);
    assert_eq!(place.epoch().await, 1);
    let metrics = warden.metrics();
    assert!(metrics.contains("sluice_warden_waiting_for_edges 1"), "{metrics}");
    assert!(metrics.contains("sluice_warden_frozen_segments 1"), "{metrics}");
    edge.answers.store(true, Ordering::Relaxed);
    until_epoch(&place, 2).await;
}

#[tokio::test]
async fn a_dead_edge_is_waited_for_until_its_successor_proves_it_dead() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    edge.kill().await;
    place.server.crash_and_restart();
    until_asked(&place).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(place.epoch().await, 1);
    let successor = place.edge("b", "lock", 2);
    until_epoch(&place, 2).await;
    place.until_sells(&successor).await;
}

#[tokio::test]
async fn accepted_orders_without_a_row_are_written_first() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let journalled = place.ask(&edge.instance, "bob").await.unwrap();
    let forgotten = place.ask(&edge.instance, "eve").await.unwrap();
    let entry = format!("{}-{}", forgotten.epoch, forgotten.seq);
    place.run(&["XDEL", &place.shelf.journal(), &entry]).await;
    place.server.crash_and_restart();
    until_epoch(&place, 2).await;
    assert!(place.written(&journalled.order).await && place.written(&forgotten.order).await);
    let entries: u64 = place.redis.run("test", cmd("XLEN").arg(place.shelf.journal())).await.unwrap();
    assert_eq!(entries, 0);
    assert_eq!(place.db.count("SELECT count(*) FROM fenced_messages").await, 0);
}

#[tokio::test]
async fn without_a_writer_the_sale_stays_frozen_until_there_is_one() {
    let (mut place, _warden, orders, edge) = Place::open(10).await;
    let order = place.ask(&edge.instance, "bob").await.unwrap();
    orders.kill().await;
    place.server.crash_and_restart();
    until_asked(&place).await;
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert_eq!(place.epoch().await, 1);
    let _orders = place.orders();
    until_epoch(&place, 2).await;
    assert!(place.written(&order.order).await);
}

#[tokio::test]
async fn a_unit_too_many_keeps_the_sale_frozen_until_it_is_mended() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    place.bought(&edge.instance, "bob").await;
    place.run(&["HINCRBY", &place.shelf.stock(), "phone", "1"]).await;
    place.server.crash_and_restart();
    until_compared(&place).await;
    assert_eq!(place.epoch().await, 1);
    place.run(&["HINCRBY", &place.shelf.stock(), "phone", "-1"]).await;
    until_epoch(&place, 2).await;
}

#[tokio::test]
async fn a_record_that_is_missing_keeps_the_sale_frozen() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let order = place.bought(&edge.instance, "bob").await;
    place.run(&["HDEL", &place.shelf.orders(), &order.order.field(), "@bob"]).await;
    place.run(&["HINCRBY", &place.shelf.stock(), "phone", "1"]).await;
    place.server.crash_and_restart();
    until_compared(&place).await;
    assert_eq!(place.epoch().await, 1);
}

#[tokio::test]
async fn a_wiped_segment_that_nobody_bought_from_begins_anew() {
    let place = Place::new(10).await;
    place.step(SaleStep::Preloaded).await;
    let (_warden, _orders) = (place.warden(""), place.orders());
    let edge = place.edge("a", "lock", 1);
    until_epoch(&place, 1).await;
    place.run(&["FLUSHALL"]).await;
    until_epoch(&place, 2).await;
    assert_eq!(place.left().await, 10);
    place.step(SaleStep::Open).await;
    place.until_sells(&edge).await;
}

#[tokio::test]
async fn a_leader_that_dies_on_the_way_is_succeeded() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    place.bought(&edge.instance, "bob").await;
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    until_asked(&place).await;
    warden.kill().await;
    // As if it had died between the two stores: PostgreSQL is an epoch further than Redis.
    sqlx::raw_sql("UPDATE segments SET epoch = 2").execute(&place.db.pool).await.unwrap();
    edge.answers.store(true, Ordering::Relaxed);
    let _warden = place.warden("");
    until_epoch(&place, 3).await;
    assert_eq!(place.meta("epoch").await.as_deref(), Some("3"));
    place.until_sells(&edge).await;
}

#[tokio::test]
async fn a_paused_sale_is_paused_after_its_reopening_too() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    until_asked(&place).await;
    place.step(SaleStep::Paused).await;
    eventually("the view", PATIENCE, || async {
        place.view().await.is_some_and(|view| view.step == SaleStep::Paused && view.epochs == [0])
    })
    .await;
    edge.answers.store(true, Ordering::Relaxed);
    until_epoch(&place, 2).await;
    assert_eq!(place.meta("state").await.as_deref(), Some("paused"));
    assert!(place.ask(&edge.instance, "bob").await.unwrap_err().contains("Paused"));
}

#[tokio::test]
async fn a_stock_change_that_is_half_done_fits_the_books() {
    let (mut place, warden, _orders, _edge) = Place::open(10).await;
    warden.stop().await;
    let left = place.left().await;
    for (key, delta) in [("k1", 5), ("k2", -2)] {
        let change = StockChange {
            sale: place.shelf.sale.clone(),
            key: key.to_owned(),
            sku: sku("phone"),
            delta,
            reason: "test".to_owned(),
            fingerprint: key.as_bytes().to_vec(),
        };
        // In the books when it adds, nowhere yet when it withdraws.
        let begun = place.db.store.begin_stock_change(&change, 1000, &actor()).await.unwrap();
        assert_eq!(begun, Begun::Noted);
    }
    place.server.crash_and_restart();
    let _warden = place.warden("[reconcile]\nreconcile_ms = 300\n");
    until_epoch(&place, 2).await;
    eventually("the changes", PATIENCE, || async { place.left().await == left + 3 }).await;
    let pending = "SELECT count(*) FROM stock_changes WHERE state = 'pending'";
    eventually("their rows", PATIENCE, || async { place.db.count(pending).await == 0 }).await;
}
