//! What fell between two stores is picked up.

use std::time::{Duration, Instant};

use sluice_shared::clock::Millis;
use sluice_shared::ids::SaleId;
use sluice_shared::keys::{GENERATION, Segment};
use sluice_shared::record::Record;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;
use sluice_worker::store::stock_changes::{Begun, StockChange};

use crate::warden_world::{PATIENCE, Place, actor, sku, user};

const OFTEN: &str = "[reconcile]\nreconcile_ms = 300\n";
/// Messages that wait to tell that bob has paid.
const UNSENT_CHANGES: &str = "SELECT count(*) FROM outbox, jsonb_array_elements(payload->'events') event
                              WHERE published_at IS NULL AND topic = 'order.changed'
                                AND event->>'user' = 'bob' AND event->>'state' = 'paid'";

/// Messages of this sale's orders cannot be put into the outbox; the attempts are counted.
async fn refuse_messages(place: &Place, sale: u32) {
    // A sequence counts what is rolled back, too.
    let refuse = format!(
        "CREATE SEQUENCE attempts MINVALUE 0 START 0;
         SELECT nextval('attempts');
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM nextval('attempts'); RAISE 'not now'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON outbox FOR EACH ROW
           WHEN (NEW.payload::text LIKE '%-{sale}-0\"%') EXECUTE FUNCTION refuse()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(&place.db.pool).await.unwrap();
}

async fn until_refused(place: &Place, times: i64) {
    let attempts = "SELECT last_value FROM attempts";
    eventually("attempts", PATIENCE, async || place.db.count(attempts).await >= times).await;
}

async fn age(place: &Place, record: Record, field: &str) {
    let old = Record { accepted: Millis(record.accepted.0 - 10_000), ..record };
    place.run(&["HSET", &place.segment.orders(), field, &old.to_string()]).await;
}

#[tokio::test]
async fn an_accepted_order_without_a_row_is_published_again() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    let order = place.ask(&edge.instance, "bob").await.unwrap();
    let young = place.ask(&edge.instance, "eve").await.unwrap();
    place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
    let record = place.record(&order.order).await.unwrap();
    age(&place, record, &order.order.field()).await;
    let warden = place.warden(OFTEN);
    eventually("its row", PATIENCE, || place.written(&order.order)).await;
    assert!(!place.written(&young.order).await);
    let metrics = warden.metrics();
    assert!(metrics.contains("sluice_warden_republished_orders_total"), "{metrics}");
}

#[tokio::test]
async fn an_order_that_the_books_refuse_is_not_published_again_in_each_round() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    let refuse = "ALTER TABLE orders ADD CONSTRAINT no_bob CHECK (user_id <> 'bob')";
    place.db.run(refuse).await;
    let order = place.ask(&edge.instance, "bob").await.unwrap();
    place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
    let record = place.record(&order.order).await.unwrap();
    age(&place, record, &order.order.field()).await;
    let warden = place.warden(OFTEN);
    let parked = async || place.db.count("SELECT count(*) FROM parked").await;
    eventually("it is parked", PATIENCE, async || parked().await == 1).await;
    warden.rounds("reconcile", 4).await;
    let published = "sluice_warden_republished_orders_total";
    assert_eq!((parked().await, warden.counted(published)), (1, 1.0));
    // What is lost with the broker is published at once, whatever was published before.
    place.db.run("ALTER TABLE orders DROP CONSTRAINT no_bob").await;
    place.broker.wipe();
    eventually("its row", PATIENCE, || place.written(&order.order)).await;
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
    warden.rounds("reconcile", 3).await;
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
    eventually("a change", PATIENCE, async || place.db.count(UNSENT_CHANGES).await == 1).await;
    warden.rounds("reconcile", 3).await;
    assert_eq!(place.db.count(UNSENT_CHANGES).await, 1);
    let metrics = warden.metrics();
    assert!(metrics.contains("sluice_warden_settled_again_total"), "{metrics}");
}

#[tokio::test]
async fn a_new_leader_looks_at_once_for_what_the_former_one_may_have_known() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    place.bought(&edge.instance, "bob").await;
    // Published, and lost on its way, a moment ago.
    place
        .db
        .run("UPDATE outbox SET published_at = now(); UPDATE orders SET state = 'paid', updated_at = now()")
        .await;
    let began = Instant::now();
    let _warden = place.warden(OFTEN);
    eventually("a change", PATIENCE, async || place.db.count(UNSENT_CHANGES).await == 1).await;
    // In a routine it would be let alone for half a minute.
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_look_after_a_loss_that_failed_is_repeated() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    // Nobody looks at the order map of its own accord.
    let _warden = place.warden("[reconcile]\nreconcile_ms = 600000\n");
    place.until_sells(&edge).await;
    place.bought(&edge.instance, "bob").await;
    let epoch = place.epoch().await;
    place.db.run("UPDATE outbox SET published_at = now(); UPDATE orders SET state = 'paid'").await;
    refuse_messages(&place, place.number).await;
    place.server.crash_and_restart();
    until_refused(&place, 3).await;
    assert_eq!(place.epoch().await, epoch + 1);
    assert_eq!(place.db.count(UNSENT_CHANGES).await, 0);
    place.db.run("DROP TRIGGER refuse ON outbox").await;
    eventually("a change", PATIENCE, async || place.db.count(UNSENT_CHANGES).await > 0).await;
}

#[tokio::test]
async fn what_was_told_again_is_not_told_at_each_look_that_fails() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    place.bought(&edge.instance, "bob").await;
    place.open_another("second", 10, &edge).await;
    warden.stop().await;
    place.bought(&edge.instance, "eve").await;
    place
        .db
        .run(
            "UPDATE outbox SET published_at = now();
             UPDATE orders SET state = 'paid', updated_at = now() - interval '1 minute'",
        )
        .await;
    // Sales are looked at in the order of their numbers: each look fails behind the first one's.
    refuse_messages(&place, place.number).await;
    let warden = place.warden(OFTEN);
    until_refused(&place, 4).await;
    assert_eq!(place.db.count(UNSENT_CHANGES).await, 1);
    // The order that showed that the sale sells is paid too.
    assert!(warden.metrics().contains("sluice_warden_settled_again_total 2\n"), "{}", warden.metrics());
}

#[tokio::test]
async fn sales_that_sell_are_looked_at_before_closed_ones() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    place.bought(&edge.instance, "eve").await;
    place.step(SaleStep::Closed).await;
    eventually("it is closed", PATIENCE, async || place.meta("state").await.as_deref() == Some("closed"))
        .await;
    let closed = place.number;
    place.open_another("second", 10, &edge).await;
    place.bought(&edge.instance, "bob").await;
    warden.stop().await;
    // Nobody looks of his own accord.
    let _warden = place.warden("[reconcile]\nreconcile_ms = 600000\n");
    place.until_sells(&edge).await;
    place.db.run("UPDATE outbox SET published_at = now(); UPDATE orders SET state = 'paid'").await;
    // Each look fails at the closed sale, whose number comes first.
    refuse_messages(&place, closed).await;
    place.broker.wipe();
    until_refused(&place, 2).await;
    assert_eq!(place.db.count(UNSENT_CHANGES).await, 1);
}

/// Puts fields into a hash that are no text.
async fn tear(place: &Place, key: &str) {
    let mut tear = cmd("HSET");
    for field in [&b"fence"[..], b"\xff"] {
        tear.arg(key).arg(field).arg(&b"\xff"[..]);
        place.redis.run::<u64>("test", &tear).await.unwrap();
        tear = cmd("HSET");
    }
}

#[tokio::test]
async fn a_segment_that_cannot_be_read_holds_no_other_sale_up() {
    let place = Place::new(10).await;
    // Its name comes first.
    let broken = Segment::new(SaleId::parse("broken").unwrap(), 0);
    place.make("broken", 10).await;
    for step in [SaleStep::Preloaded, SaleStep::Open] {
        place.step_of(&broken.sale, step).await;
    }
    let (place, warden, _orders, edge) = place.opened().await;
    warden.stop().await;
    tear(&place, &broken.orders()).await;
    let order = place.ask(&edge.instance, "bob").await.unwrap();
    place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
    let record = place.record(&order.order).await.unwrap();
    age(&place, record, &order.order.field()).await;
    let warden = place.warden(OFTEN);
    eventually("its row", PATIENCE, || place.written(&order.order)).await;
    eventually("it is told", PATIENCE, async || warden.metrics().contains("sluice_warden_unread_segments 1"))
        .await;
    // After a loss it stays in doubt, and the others are looked at all the same.
    let young = place.ask(&edge.instance, "dave").await.unwrap();
    place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
    place.broker.wipe();
    eventually("all are looked at", PATIENCE, || place.written(&young.order)).await;
    let order = place.ask(&edge.instance, "eve").await.unwrap();
    place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
    let record = place.record(&order.order).await.unwrap();
    age(&place, record, &order.order.field()).await;
    eventually("its row", PATIENCE, || place.written(&order.order)).await;
    // The books' steps reach every other sale.
    tear(&place, &broken.meta()).await;
    place.step(SaleStep::Paused).await;
    eventually("the step", PATIENCE, async || {
        place.view().await.is_some_and(|view| view.step == SaleStep::Paused)
            && place.meta("state").await.as_deref() == Some("paused")
    })
    .await;
    let heard: u64 = place.redis.run("test", cmd("GET").arg(GENERATION)).await.unwrap();
    place.step(SaleStep::Open).await;
    eventually("the edges are told", PATIENCE, async || {
        place.redis.run::<u64>("test", cmd("GET").arg(GENERATION)).await.unwrap() > heard
    })
    .await;
}

#[tokio::test]
async fn a_stock_change_that_was_interrupted_is_completed() {
    let (place, warden, _orders, _edge) = Place::open(10).await;
    warden.stop().await;
    let left = place.left().await;
    let change = StockChange {
        sale: place.segment.sale.clone(),
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
        .run("test", &cmd("HGET").arg(place.segment.meta()).arg("init:phone").to_owned())
        .await
        .unwrap();
    assert_eq!(init.as_deref(), Some("15"));
}

#[tokio::test]
async fn what_a_closed_sale_has_without_a_row_is_published_again_too() {
    for loss in [false, true] {
        let (place, warden, _orders, edge) = Place::open(10).await;
        warden.stop().await;
        let order = place.ask(&edge.instance, "bob").await.unwrap();
        place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
        let record = place.record(&order.order).await.unwrap();
        age(&place, record, &order.order.field()).await;
        place.step(SaleStep::Closed).await;
        let _warden = place.warden(if loss { "" } else { OFTEN });
        eventually("it is closed", PATIENCE, async || place.meta("state").await.as_deref() == Some("closed"))
            .await;
        if loss {
            place.broker.wipe();
        }
        let began = Instant::now();
        eventually("its row", PATIENCE, || place.written(&order.order)).await;
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
}
