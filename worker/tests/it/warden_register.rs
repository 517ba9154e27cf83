//! Who may sell.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::Ordering;

use sluice_shared::ids::{InstanceId, SaleId};
use sluice_shared::keys::{EDGES, REGISTER, Segment};
use sluice_shared::message::Accepted;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::Trap;

use sluice_worker::command::edges::{list, strike};

use crate::warden_world::{PATIENCE, Place, Process, actor};

async fn in_hash(place: &Place, hash: &str, edge: &str) -> bool {
    let mut there = cmd("HEXISTS");
    there.arg(hash).arg(edge);
    place.redis.run::<bool>("test", &there).await.unwrap()
}

async fn struck(place: &Place, edge: &str) -> Option<String> {
    sqlx::query_scalar("SELECT struck_why FROM edges WHERE instance = $1 AND struck_at IS NOT NULL")
        .bind(edge)
        .fetch_optional(&place.db.pool)
        .await
        .unwrap()
}

async fn until_struck(place: &Place, edge: &str) -> String {
    eventually("struck off", PATIENCE, || async { struck(place, edge).await.is_some() }).await;
    eventually("out of redis", PATIENCE, || async {
        !in_hash(place, EDGES, edge).await
            && !in_hash(place, REGISTER, edge).await
            && place.meta(&format!("edge:{edge}")).await.is_none()
    })
    .await;
    struck(place, edge).await.unwrap()
}

#[tokio::test]
async fn an_edge_sells_once_it_stands_in_the_register_and_not_before() {
    let (place, _warden, _orders, first) = Place::open(10).await;
    let stranger = InstanceId::parse("edge.9.stranger").unwrap();
    assert_eq!(place.ask(&stranger, "bob").await.unwrap_err(), "Ok(UnknownEdge)");
    let second = place.edge("b", "other lock", 1);
    place.until_sells(&second).await;
    for edge in [&first, &second] {
        let name = edge.instance.as_str();
        assert!(in_hash(&place, REGISTER, name).await);
        let rows: i64 =
            sqlx::query_scalar("SELECT count(*) FROM edges WHERE instance = $1 AND struck_at IS NULL")
                .bind(name)
                .fetch_one(&place.db.pool)
                .await
                .unwrap();
        assert_eq!(rows, 1);
    }
}

#[tokio::test]
async fn a_successor_on_the_same_lock_strikes_a_dead_edge_off() {
    let (place, _warden, _orders, first) = Place::open(10).await;
    let dead = first.instance.to_string();
    first.kill().await;
    let second = place.edge("b", "lock", 2);
    let why = until_struck(&place, &dead).await;
    assert!(why.contains(second.instance.as_str()), "{why}");
    place.until_sells(&second).await;
}

#[tokio::test]
async fn an_edge_that_leaves_with_nothing_held_is_struck_off() {
    let (place, _warden, _orders, edge) = Place::open(10).await;
    let name = edge.instance.to_string();
    edge.draining.store(true, Ordering::Relaxed);
    edge.leave().await;
    assert_eq!(until_struck(&place, &name).await, "stopped with nothing held");
}

#[tokio::test]
async fn a_good_bye_that_no_warden_heard_is_read_by_the_next_one() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    let name = edge.instance.to_string();
    warden.stop().await;
    edge.draining.store(true, Ordering::Relaxed);
    edge.leave().await;
    place.server.crash_and_restart();
    eventually("redis is heard again", PATIENCE, || async { place.redis.time().await.is_ok() }).await;
    let _warden = place.warden("");
    assert_eq!(until_struck(&place, &name).await, "stopped with nothing held");
    eventually("no re-opening waits for it", PATIENCE, || async {
        place.view().await.is_some_and(|view| view.epochs == [2])
    })
    .await;
}

async fn is_kept(place: &Place, edge: &str) {
    assert_eq!(struck(place, edge).await, None);
    assert!(place.meta(&format!("edge:{edge}")).await.is_some());
}

#[tokio::test]
async fn an_edge_that_is_only_silent_or_holds_orders_stays_in_the_register() {
    let (place, warden, _orders, silent) = Place::open(10).await;
    let holding = place.edge("b", "other lock", 1);
    place.until_sells(&holding).await;
    holding.draining.store(true, Ordering::Relaxed);
    holding.held.store(3, Ordering::Relaxed);
    eventually("it says so", PATIENCE, async || {
        let read = cmd("HGET").arg(EDGES).arg(holding.instance.as_str()).to_owned();
        let beat: String = place.redis.run("test", &read).await.unwrap();
        beat.contains("\"draining\":true") && beat.contains("\"held\":3")
    })
    .await;
    warden.rounds("edges", 1).await;
    let names = [&silent, &holding].map(|edge| edge.instance.to_string());
    silent.vanish().await;
    holding.vanish().await;
    let are_silent = async || warden.counted("sluice_warden_silent_edges") == 2.0;
    eventually("both are silent", PATIENCE, are_silent).await;
    warden.rounds("edges", 4).await;
    for name in &names {
        is_kept(&place, name).await;
    }
    assert!(are_silent().await);
}

#[tokio::test]
async fn a_new_sale_and_a_new_leader_know_every_registered_edge() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    let _warden = place.warden("");
    place.until_sells(&edge).await;
    sqlx::raw_sql(
        "INSERT INTO sales (sale, step, starts_at, ends_at, mode, accept_after, pay_within_seconds, segments)
         SELECT 'second', 'preloaded', starts_at, ends_at, mode, accept_after, pay_within_seconds, 2
         FROM sales;
         INSERT INTO offers (sale, sku, place, title, price, currency, stock, per_user)
         SELECT 'second', sku, place, title, price, currency, 7, per_user FROM offers;
         NOTIFY sluice_sales",
    )
    .execute(&place.db.pool)
    .await
    .unwrap();
    place.step(SaleStep::Paused).await;
    for (segment, units) in [(0, "4"), (1, "3")] {
        let segment = Segment::new(SaleId::parse("second").unwrap(), segment);
        eventually("admitted", PATIENCE, || async {
            let mut get = cmd("HMGET");
            get.arg(segment.meta()).arg(format!("edge:{}", edge.instance)).arg("init:phone");
            let both: Vec<Option<String>> = place.redis.run("test", &get).await.unwrap();
            both == [Some("1".to_owned()), Some(units.to_owned())]
        })
        .await;
    }
}

#[tokio::test]
async fn an_operators_word_strikes_a_silent_edge_off_and_no_living_one() {
    let (mut place, _warden, _orders, edge) = Place::open(10).await;
    let (instance, store) = (edge.instance.clone(), place.db.store.clone());
    let living = strike(&store, &place.redis, &instance, &actor(), "a guess").await.unwrap_err();
    assert!(living.to_string().contains("it lives"), "{living}");
    let stranger = InstanceId::parse("edge.9.nobody").unwrap();
    let unknown = strike(&store, &place.redis, &stranger, &actor(), "a guess").await.unwrap_err();
    assert!(unknown.to_string().contains("not in the register"), "{unknown}");
    assert!(list(&store, &place.redis).await.unwrap().contains("heard"));
    // It is gone for good, and Redis restarts: the re-opening waits for it.
    edge.kill().await;
    place.run(&["HDEL", EDGES, instance.as_str()]).await;
    place.server.crash_and_restart();
    eventually("the edges are asked", PATIENCE, || async {
        place.redis.run::<u64>("test", cmd("HLEN").arg("sluice:reopening")).await == Ok(1)
    })
    .await;
    assert!(list(&store, &place.redis).await.unwrap().contains("SILENT"));
    let told = strike(&store, &place.redis, &instance, &actor(), "burnt down").await.unwrap();
    assert!(told.contains("is struck off"), "{told}");
    eventually("the sale is open again", PATIENCE, || async {
        place.view().await.is_some_and(|view| view.epochs == [2])
    })
    .await;
    let why = until_struck(&place, instance.as_str()).await;
    assert_eq!(why, "an operator says that it is dead: burnt down");
    assert_eq!(place.db.count("SELECT count(*) FROM audit_log WHERE action = 'edge.strike'").await, 1);
    assert_eq!(list(&store, &place.redis).await.unwrap(), "no edge is registered\n");
}

#[tokio::test]
async fn an_operators_word_that_no_warden_hears_says_so() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.kill().await;
    let instance = edge.instance.clone();
    edge.kill().await;
    place.run(&["HDEL", EDGES, instance.as_str()]).await;
    let told = strike(&place.db.store, &place.redis, &instance, &actor(), "burnt down").await.unwrap_err();
    assert!(told.to_string().contains("is a `reconcile` process leading?"), "{told}");
    assert!(struck(&place, instance.as_str()).await.is_none());
}

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
const SOON_STRUCK: &str = "[reconcile]\nstrike_after_seconds = 1\n";

async fn is_admitted(place: &Place, edge: &InstanceId) -> bool {
    place.meta(&format!("edge:{edge}")).await.is_some()
}

/// A sale whose only edge fell silent with an order in the journal, refused by now.
async fn refused() -> (Place, Process, Process, InstanceId, Accepted) {
    let (place, warden, orders, edge) = Place::open(10).await;
    warden.stop().await;
    let warden = place.warden(SOON_STRUCK);
    let order = place.ask(&edge.instance, "bob").await.unwrap();
    let instance = edge.instance.clone();
    edge.kill().await;
    eventually("it is refused", PATIENCE, || async { !is_admitted(&place, &instance).await }).await;
    assert_eq!(place.ask(&instance, "eve").await.unwrap_err(), "Ok(UnknownEdge)");
    (place, warden, orders, instance, order)
}

#[tokio::test]
async fn a_silent_edge_leaves_the_register_once_no_journal_holds_an_order_of_its() {
    let (mut place, warden, _orders, instance, order) = refused().await;
    warden.rounds("edges", 4).await;
    assert_eq!(struck(&place, instance.as_str()).await, None, "its order is in the journal");
    place.broker.publish_orders(std::slice::from_ref(&order)).await;
    place.run(&["XDEL", &place.segment.journal(), &format!("{}-{}", order.epoch, order.seq)]).await;
    let why = until_struck(&place, instance.as_str()).await;
    assert_eq!(why, "silent for 1 s, nothing left of it");
    assert!(warden.metrics().contains("sluice_warden_struck_edges_total 1"));
    // No re-opening waits for it.
    place.server.crash_and_restart();
    eventually("the sale is open again", PATIENCE, || async {
        place.view().await.is_some_and(|view| view.epochs == [2])
    })
    .await;
    // It only slept: it applies again, and sells.
    let edge = place.edge("a", "lock", 1);
    assert_eq!(edge.instance, instance);
    place.until_sells(&edge).await;
    assert_eq!(struck(&place, instance.as_str()).await, None);
}

#[tokio::test]
async fn a_refused_edge_that_is_heard_again_sells_again() {
    let (place, _warden, _orders, instance, _order) = refused().await;
    let edge = place.edge("a", "lock", 1);
    assert_eq!(edge.instance, instance);
    place.until_sells(&edge).await;
    assert_eq!(struck(&place, instance.as_str()).await, None);
}

#[tokio::test]
async fn a_silent_edge_is_waited_for_while_a_segment_is_not_served() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    let warden = place.warden(SOON_STRUCK);
    let instance = edge.instance.clone();
    edge.kill().await;
    place.server.crash_and_restart();
    eventually("it is silent", PATIENCE, || async {
        warden.metrics().contains("sluice_warden_silent_edges 1")
    })
    .await;
    // Four looks a second: three times as long as it takes where all is served.
    warden.rounds("edges", 16).await;
    assert_eq!(struck(&place, instance.as_str()).await, None, "it may hold what redis has lost");
    assert_eq!(place.view().await.map(|view| view.epochs), Some(vec![0]));
}

#[tokio::test]
async fn an_edge_whose_striking_off_was_cut_short_applies_again() {
    let mut front = None;
    let place = Place::new_through(10, |redis| {
        let proxy =
            Proxy::start(ANY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, redis.port()), Protocol::Plain, 1);
        format!("redis://{}", front.insert(proxy.unwrap()).address())
    });
    let (place, warden, _orders, edge) = place.await.opened().await;
    let front = front.unwrap();
    warden.stop().await;
    let warden = place.warden(SOON_STRUCK);
    place.until_sells(&edge).await;
    let instance = edge.instance.clone();
    edge.kill().await;
    eventually("it is refused", PATIENCE, || async { !is_admitted(&place, &instance).await }).await;
    // PostgreSQL knows that it is struck off; Redis is not told.
    front.set("up cut text HDEL".parse::<Trap>().unwrap());
    eventually("cut short", PATIENCE, async || front.has_sprung()).await;
    let edge = place.edge("a", "lock", 1);
    assert_eq!(edge.instance, instance);
    place.until_sells(&edge).await;
    eventually("it is registered", PATIENCE, async || struck(&place, instance.as_str()).await.is_none())
        .await;
    assert!(in_hash(&place, REGISTER, instance.as_str()).await);
    assert!(warden.metrics().contains("sluice_warden_struck_edges_total"));
}
