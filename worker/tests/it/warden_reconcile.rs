//! What fell between two stores is picked up.

use sluice_shared::clock::Millis;
use sluice_shared::record::Record;
use sluice_shared::redis::cmd;
use sluice_shared::testing::eventually;
use sluice_worker::store::stock_changes::{Begun, StockChange};

use crate::warden_world::{PATIENCE, Place, actor, sku, user};

const OFTEN: &str = "[reconcile]\nreconcile_ms = 300\n";

async fn age(place: &Place, record: Record, field: &str) {
    let old = Record { accepted: Millis(record.accepted.0 - 10_000), ..record };
    place.run(&["HSET", &place.shelf.orders(), field, &old.to_string()]).await;
}

#[tokio::test]
async fn an_accepted_order_without_a_row_is_published_again() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    let order = place.ask(&edge.instance, "bob").await.unwrap();
    let young = place.ask(&edge.instance, "eve").await.unwrap();
    place.run(&["DEL", &place.shelf.journal()]).await;
    let record = place.record(&order.order).await.unwrap();
    age(&place, record, &order.order.field()).await;
    let warden = place.warden(OFTEN);
    eventually("its row", PATIENCE, || place.written(&order.order)).await;
    assert!(!place.written(&young.order).await);
    let metrics = warden.metrics();
    assert!(metrics.contains("sluice_warden_republished_orders_total"), "{metrics}");
}

#[tokio::test]
async fn a_release_that_got_lost_is_asked_for_again_once() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    let order = place.bought(&edge.instance, "bob").await;
    place.db.store.cancel(&order.order, &user("bob")).await.unwrap();
    // Published, and lost on its way.
    sqlx::raw_sql(
        "UPDATE outbox SET published_at = now();
         UPDATE orders SET updated_at = now() - interval '1 minute'",
    )
    .execute(&place.db.pool)
    .await
    .unwrap();
    let warden = place.warden(OFTEN);
    let unsent = "SELECT count(*) FROM outbox WHERE published_at IS NULL AND topic = 'stock.release'";
    eventually("a release", PATIENCE, || async { place.db.count(unsent).await == 1 }).await;
    eventually("the drift is measured", PATIENCE, || async {
        let metrics = warden.metrics();
        metrics.contains("sluice_warden_drift{sale=\"demo\",equation=\"X2\"} 1")
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(place.db.count(unsent).await, 1);
}

#[tokio::test]
async fn a_change_that_got_lost_is_told_again_once() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    place.bought(&edge.instance, "bob").await;
    // Published, and lost on its way.
    sqlx::raw_sql(
        "UPDATE outbox SET published_at = now();
         UPDATE orders SET state = 'paid', updated_at = now() - interval '1 minute'",
    )
    .execute(&place.db.pool)
    .await
    .unwrap();
    let warden = place.warden(OFTEN);
    let unsent = "SELECT count(*) FROM outbox, jsonb_array_elements(payload->'events') event
                  WHERE published_at IS NULL AND topic = 'order.changed'
                    AND event->>'user' = 'bob' AND event->>'state' = 'paid'";
    eventually("a change", PATIENCE, async || place.db.count(unsent).await == 1).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(place.db.count(unsent).await, 1);
    let metrics = warden.metrics();
    assert!(metrics.contains("sluice_warden_settled_again_total"), "{metrics}");
}

#[tokio::test]
async fn a_stock_change_that_was_interrupted_is_completed() {
    let (place, warden, _orders, _edge) = Place::open(10).await;
    warden.stop().await;
    let left = place.left().await;
    let change = StockChange {
        sale: place.shelf.sale.clone(),
        key: "k1".to_owned(),
        sku: sku("phone"),
        delta: 5,
        reason: "more".to_owned(),
        fingerprint: vec![1],
    };
    let begun = place.db.store.begin_stock_change(&change, 1000, &actor()).await.unwrap();
    assert_eq!(begun, Begun::Noted);
    let _warden = place.warden(OFTEN);
    eventually("the units", PATIENCE, || async { place.left().await == left + 5 }).await;
    eventually("the change", PATIENCE, || async {
        place.db.count("SELECT count(*) FROM stock_changes WHERE state = 'done'").await == 1
    })
    .await;
    let init: Option<String> = place
        .redis
        .run("test", &cmd("HGET").arg(place.shelf.meta()).arg("init:phone").to_owned())
        .await
        .unwrap();
    assert_eq!(init.as_deref(), Some("15"));
}
