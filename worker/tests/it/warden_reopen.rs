//! A frozen sale is opened again only when nothing can be lost by it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_shared::message::Accepted;
use sluice_shared::record::OrderState;
use sluice_shared::redis::cmd;
use sluice_shared::sale::{Question, SaleStep};
use sluice_testkit::eventually;
use sluice_worker::store::payments::{NoticeStatus, PaymentNotice};
use sluice_worker::store::stock_changes::{Begun, StockChange};

use crate::harness::accepted_of;
use crate::warden_world::{Edge, PATIENCE, Place, Process, actor, sku};

async fn frozen(place: &Place) -> bool {
    place.view().await.is_some_and(|view| view.epochs == [0])
}

pub async fn until_asked(place: &Place) {
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
async fn until_compared(place: &Place, warden: &Process) {
    eventually("the barrier is through", PATIENCE, || async {
        place.db.count("SELECT count(*) FROM barriers").await >= 2
    })
    .await;
    warden.rounds("sales", 2).await;
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
    warden.rounds("sales", 4).await;
    assert!(frozen(&place).await);
    assert_eq!(place.epoch().await, 1);
    eventually("the metrics tell", PATIENCE, || async {
        let metrics = warden.metrics();
        ["waiting_for_edges", "frozen_segments"]
            .iter()
            .all(|name| metrics.contains(&format!("sluice_warden_{name} 1")))
    })
    .await;
    edge.answers.store(true, Ordering::Relaxed);
    until_epoch(&place, 2).await;
}

#[tokio::test]
async fn a_dead_edge_is_waited_for_until_its_successor_proves_it_dead() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    edge.kill().await;
    place.server.crash_and_restart();
    until_asked(&place).await;
    warden.rounds("sales", 3).await;
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
    place.run(&["XDEL", &place.segment.journal(), &entry]).await;
    place.server.crash_and_restart();
    until_epoch(&place, 2).await;
    assert!(place.written(&journalled.order).await && place.written(&forgotten.order).await);
    let entries: u64 = place.redis.run("test", cmd("XLEN").arg(place.segment.journal())).await.unwrap();
    assert_eq!(entries, 0);
    assert_eq!(place.db.count("SELECT count(*) FROM fenced_messages").await, 0);
}

#[tokio::test]
async fn without_a_writer_the_sale_stays_frozen_until_there_is_one() {
    let (mut place, warden, orders, edge) = Place::open(10).await;
    let order = place.ask(&edge.instance, "bob").await.unwrap();
    orders.kill().await;
    place.server.crash_and_restart();
    until_asked(&place).await;
    warden.rounds("sales", 4).await;
    assert_eq!(place.epoch().await, 1);
    let _orders = place.orders();
    until_epoch(&place, 2).await;
    assert!(place.written(&order.order).await);
}

/// Redis fits the books, and every order of these is in it as they have it.
async fn restored(place: &Place, orders: &[&Accepted]) {
    for order in orders {
        let (row, record) =
            (place.db.store.order(&order.order).await.unwrap(), place.record(&order.order).await);
        let (row, record) = (row.unwrap(), record.unwrap());
        assert_eq!((record.state, record.released, record.refund), (row.state, !row.live, row.refund));
        assert_eq!((&record.lines, &record.user, record.seq), (&row.lines, &row.user, row.seq));
        assert_eq!((record.accepted, record.pay_before), (row.accepted_at, Some(row.pay_before)));
    }
    let report = sluice_worker::audit::judge(&place.db.store, &place.redis, None).await.unwrap();
    assert!(report.balanced, "{report:#?}");
    for key in place.segment.staged(place.epoch().await) {
        assert_eq!(place.redis.run::<u64>("test", cmd("EXISTS").arg(key)).await, Ok(0));
    }
}

#[tokio::test]
async fn a_unit_too_many_is_put_right_from_the_books() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let order = place.bought(&edge.instance, "bob").await;
    let left = place.left().await;
    place.run(&["HINCRBY", &place.segment.stock(), "phone", "1"]).await;
    place.server.crash_and_restart();
    until_epoch(&place, 2).await;
    assert_eq!(place.left().await, left);
    restored(&place, &[&order]).await;
}

#[tokio::test]
async fn records_that_are_missing_are_restored_from_the_books() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let bob = place.bought(&edge.instance, "bob").await;
    let eve = place.bought(&edge.instance, "eve").await;
    let ida = place.bought(&edge.instance, "ida").await;
    place.db.store.cancel(&eve.order, &eve.user).await.unwrap();
    place.db.run("UPDATE outbox SET published_at = now()").await;
    let notice = PaymentNotice {
        payment_id: "p".to_owned(),
        order: ida.order,
        amount: 1500,
        currency: "EUR".to_owned(),
        status: NoticeStatus::Succeeded,
    };
    place.db.store.notice(&notice).await.unwrap();
    // The tail is lost: of three orders, and of what they took.
    let orders = place.segment.orders();
    for (order, mark) in [(&bob, "@bob"), (&eve, "@eve"), (&ida, "@ida")] {
        place.run(&["HDEL", &orders, &order.order.field(), mark]).await;
        place.run(&["HINCRBY", &place.segment.stock(), "phone", "1"]).await;
    }
    place.run(&["HSET", &place.segment.meta(), "seq", &(bob.seq - 1).to_string()]).await;
    place.server.crash_and_restart();
    until_epoch(&place, 2).await;
    restored(&place, &[&bob, &eve, &ida]).await;
    // What was there is kept for a day.
    let [_, _, lost, _] = place.segment.lost();
    let kept: i64 = place.redis.run("test", cmd("PTTL").arg(&lost)).await.unwrap();
    assert!(kept > 23 * 3_600_000, "{kept}");
    let next = place.ask(&edge.instance, "kim").await.unwrap();
    assert_eq!((next.epoch, next.seq), (2, ida.seq + 1));
    // bob's one, and he may have two.
    assert!(place.ask(&edge.instance, "bob").await.is_ok());
    assert!(place.ask(&edge.instance, "bob").await.unwrap_err().contains("Limit"));
}

#[tokio::test]
async fn a_lost_end_that_told_only_what_became_of_an_order_is_told_again() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    // Nobody looks at the order map of its own accord.
    let _warden = place.warden("[reconcile]\nreconcile_ms = 600000\n");
    place.until_sells(&edge).await;
    let bob = place.bought(&edge.instance, "bob").await;
    let epoch = place.epoch().await;
    place.db.run("UPDATE outbox SET published_at = now(); UPDATE orders SET state = 'paid'").await;
    place.server.crash_and_restart();
    until_epoch(&place, epoch + 1).await;
    let (_outbox, _saga) = (place.outbox(), place.saga());
    eventually("the buyer is told", PATIENCE, || async {
        place.record(&bob.order).await.is_some_and(|record| record.state == OrderState::Paid)
    })
    .await;
}

#[tokio::test]
async fn a_wiped_redis_is_restored_with_all_orders() {
    let (place, _warden, _orders, edge) = Place::open(10).await;
    let bob = place.bought(&edge.instance, "bob").await;
    let eve = place.bought(&edge.instance, "eve").await;
    let left = place.left().await;
    // What an earlier warden began and did not finish is in nobody's way.
    place.run(&["FLUSHALL"]).await;
    let [meta, _, orders, _] = place.segment.staged(9);
    place.run(&["HSET", &meta, "fence", "demo:0:9"]).await;
    place.run(&["HSET", &orders, "@ghost", "phone=7"]).await;
    until_epoch(&place, 2).await;
    assert_eq!(place.left().await, left);
    restored(&place, &[&bob, &eve]).await;
    place.until_sells(&edge).await;
}

#[tokio::test]
async fn a_key_that_is_gone_is_restored() {
    let (place, _warden, _orders, edge) = Place::open(10).await;
    let bob = place.bought(&edge.instance, "bob").await;
    let left = place.left().await;
    let (segment, mut epoch) = (&place.segment, 1);
    for key in [segment.stock(), segment.orders(), segment.journal()] {
        place.run(&["DEL", &key]).await;
        epoch += 1;
        until_epoch(&place, epoch).await;
        assert_eq!(place.left().await, left, "{key}");
        assert!(place.record(&bob.order).await.is_some(), "{key}");
    }
    place.run(&["HSET", &segment.meta(), "seq", "many"]).await;
    until_epoch(&place, epoch + 1).await;
    place.until_sells(&edge).await;
}

#[tokio::test]
async fn a_restore_that_redis_has_no_room_for_leaves_nothing_behind() {
    let (mut place, _warden, _orders, edge) = Place::open(10_000).await;
    // The books know many orders that Redis has lost.
    let lost: Vec<Accepted> =
        (0..3_000).map(|n| accepted_of("demo", place.number, &format!("u{n}"), "phone=1")).collect();
    place.db.store.write_orders(&lost).await.unwrap();
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    until_asked(&place).await;
    let info: String = place.redis.run("test", cmd("INFO").arg("memory")).await.unwrap();
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let room = used.parse::<u64>().unwrap() + 300_000;
    place.run(&["CONFIG", "SET", "maxmemory", &room.to_string()]).await;
    edge.answers.store(true, Ordering::Relaxed);
    eventually("it is tried again and again", PATIENCE, async || place.epoch().await >= 4).await;
    let staged = async || {
        let keys: Vec<String> = place.redis.run("test", cmd("KEYS").arg("*:staged:*")).await.unwrap();
        keys.len()
    };
    assert!(staged().await <= 4, "{}", staged().await);
    place.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    place.until_sells(&edge).await;
    assert!(place.record(&lost[2_999].order).await.is_some());
    assert_eq!(staged().await, 0);
}

#[tokio::test]
async fn accepted_orders_that_turn_up_in_a_damaged_segment_are_written_before_it_is_restored() {
    let (mut place, _warden, orders, edge) = Place::open(10).await;
    let bob = place.bought(&edge.instance, "bob").await;
    let eve = place.ask(&edge.instance, "eve").await.unwrap();
    let record = place.record(&eve.order).await.unwrap().to_string();
    let (field, entry) = (eve.order.field(), format!("{}-{}", eve.epoch, eve.seq));
    place.run(&["HDEL", &place.segment.orders(), &field]).await;
    place.run(&["XDEL", &place.segment.journal(), &entry]).await;
    let kim = place.ask(&edge.instance, "kim").await.unwrap();
    // Without a writer no barrier comes through: it is drained, and nothing is compared yet.
    orders.kill().await;
    place.server.crash_and_restart();
    let entries = async || place.redis.run::<u64>("test", cmd("XLEN").arg(place.segment.journal())).await;
    eventually("it is drained", PATIENCE, async || entries().await == Ok(0)).await;
    place.run(&["HSET", &place.segment.orders(), &field, &record]).await;
    place.run(&["HINCRBY", &place.segment.stock(), "phone", "1"]).await;
    let _orders = place.orders();
    until_epoch(&place, 2).await;
    restored(&place, &[&bob, &eve, &kim]).await;
}

/// An order that Redis was told of by the books, and that they know no more.
pub async fn unknown_to_the_books(place: &Place, edge: &Edge) -> Accepted {
    let order = place.bought(&edge.instance, "bob").await;
    let mut record = place.record(&order.order).await.unwrap();
    record.state = OrderState::PendingPayment;
    place.run(&["HSET", &place.segment.orders(), &order.order.field(), &record.to_string()]).await;
    place.db.run("DELETE FROM orders WHERE user_id = 'bob'").await;
    order
}

#[tokio::test]
async fn books_that_know_less_than_redis_keep_the_sale_frozen() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    let order = unknown_to_the_books(&place, &edge).await;
    place.server.crash_and_restart();
    until_compared(&place, &warden).await;
    assert_eq!(place.epoch().await, 1);
    assert!(place.record(&order.order).await.is_some());
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
    for wiped in [false, true] {
        let (mut place, warden, _orders, _edge) = Place::open(10).await;
        warden.stop().await;
        let left = place.left().await;
        for (key, delta) in [("k1", 5), ("k2", -2)] {
            let change = StockChange {
                sale: place.segment.sale.clone(),
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
        if wiped {
            place.run(&["FLUSHALL"]).await;
        } else {
            place.server.crash_and_restart();
        }
        let _warden = place.warden("[reconcile]\nreconcile_ms = 300\n");
        until_epoch(&place, 2).await;
        eventually("the changes", PATIENCE, || async { place.left().await == left + 3 }).await;
        let pending = "SELECT count(*) FROM stock_changes WHERE state = 'pending'";
        eventually("their rows", PATIENCE, || async { place.db.count(pending).await == 0 }).await;
    }
}

#[tokio::test]
async fn an_epoch_that_nobody_was_asked_to_close_is_not_ended() {
    // Redis forgot who leads, so that two wardens re-open at once: the second one's edges have closed
    // an epoch that is over when it comes to its end.
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    until_asked(&place).await;
    place.db.run("UPDATE segments SET epoch = 2").await;
    let asked = || async {
        let get = cmd("HGET").arg("sluice:reopening").arg(place.segment.name()).to_owned();
        let text: Option<String> = place.redis.run("test", &get).await.unwrap();
        text.and_then(|text| Some(Question::parse(&text)?.epoch))
    };
    assert_eq!(asked().await, Some(1));
    edge.answers.store(true, Ordering::Relaxed);
    eventually("the edges are asked for the epoch that is", PATIENCE, || async { asked().await == Some(2) })
        .await;
    until_epoch(&place, 3).await;
    place.until_sells(&edge).await;
}

#[tokio::test]
async fn a_sale_whose_edges_were_asked_by_a_warden_that_leads_no_more_is_opened_again() {
    let (place, _warden, _orders, edge) = Place::open(10).await;
    place.run(&["HSET", "sluice:reopening", &place.segment.name(), "1@5"]).await;
    until_epoch(&place, 2).await;
    place.until_sells(&edge).await;
}

#[tokio::test]
async fn a_key_of_another_type_or_a_torn_field_is_put_right_from_the_books() {
    let (place, _warden, _orders, edge) = Place::open(100).await;
    let order = place.bought(&edge.instance, "bob").await;
    let (segment, mut epoch) = (place.segment.clone(), 1);
    let keys = [segment.meta(), segment.stock(), segment.orders(), segment.journal()];
    let types = keys.iter().map(|key| vec!["SET", key.as_str(), "no such thing"]);
    let meta = segment.meta();
    let fields = ["seq", "jmax", "starts", "ends", "cfg", "state"];
    let fields = fields.iter().map(|field| vec!["HSET", meta.as_str(), *field, "perhaps"]);
    for damage in types.chain(fields) {
        place.run(&damage).await;
        epoch += 1;
        until_epoch(&place, epoch).await;
        place.until_sells(&edge).await;
        assert!(place.record(&order.order).await.is_some(), "{damage:?}");
    }
    let taken = place.db.count("SELECT taken FROM offers").await;
    assert_eq!(place.left().await, 100 - taken);
}
