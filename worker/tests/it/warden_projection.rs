//! What the books decide about a sale reaches Redis.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use sluice_shared::ids::SaleId;
use sluice_shared::keys::{GENERATION, REOPENING, SALES, SALES_CHANNEL};
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;

use crate::warden_world::{PATIENCE, Place};

#[tokio::test]
async fn a_sale_is_shown_from_its_preload_on_and_every_step_follows() {
    let place = Place::new(10).await;
    let _warden = place.warden("");
    eventually("a warden leads", PATIENCE, || async {
        place.redis.run::<u64>("test", cmd("EXISTS").arg("sluice:warden")).await == Ok(1)
    })
    .await;
    assert_eq!(place.view().await, None);
    let mut slowest = Duration::ZERO;
    let steps = [
        SaleStep::Preloaded,
        SaleStep::Open,
        SaleStep::Paused,
        SaleStep::Open,
        SaleStep::Closed,
        SaleStep::Open,
    ];
    for step in steps {
        place.step(step).await;
        let began = Instant::now();
        eventually(step.as_str(), PATIENCE, || async {
            place.view().await.is_some_and(|view| view.step == step && view.epochs == [1])
                && place.meta("state").await.as_deref() == Some(step.as_str())
        })
        .await;
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert_eq!(place.left().await, 10);
    assert_eq!(place.meta("init:phone").await.as_deref(), Some("10"));
    assert_eq!(place.meta("limit:phone").await.as_deref(), Some("2"));
    let generation: u64 = place.redis.run("test", cmd("GET").arg(GENERATION)).await.unwrap();
    assert!(generation >= 6, "{generation}");
}

#[tokio::test]
async fn a_change_of_one_sale_among_many_is_told_by_its_name_and_counted_once() {
    let (place, warden, _orders, _edge) = Place::open(10).await;
    for n in 0..20 {
        let sale = format!("other-{n}");
        place.make(&sale, 10).await;
        place.step_of(&SaleId::parse(&sale).unwrap(), SaleStep::Preloaded).await;
    }
    eventually("all are listed", PATIENCE, async || {
        place.redis.run::<u64>("test", cmd("HLEN").arg(SALES)).await == Ok(21)
    })
    .await;
    warden.rounds("sales", 1).await;
    let generation = async || place.redis.run::<u64>("test", cmd("GET").arg(GENERATION)).await.unwrap();
    let before = generation().await;
    let mut bell = pin!(Redis::subscribe(&place.url, &[SALES_CHANNEL.to_owned()]).await.unwrap());
    place.step(SaleStep::Paused).await;
    let told = tokio::time::timeout(PATIENCE, bell.next()).await.unwrap().unwrap();
    assert_eq!(told, (SALES_CHANNEL.to_owned(), format!("{} demo", before + 1)));
    assert_eq!(place.view().await.unwrap().step, SaleStep::Paused);
    warden.rounds("sales", 2).await;
    assert_eq!(generation().await, before + 1);
}

#[tokio::test]
async fn a_new_limit_reaches_the_shelf_and_the_units_stay() {
    let (place, _warden, _orders, edge) = Place::open(10).await;
    let left = place.left().await;
    sqlx::query("UPDATE offers SET per_user = 1").execute(&place.db.pool).await.unwrap();
    place.step(SaleStep::Paused).await;
    place.step(SaleStep::Open).await;
    eventually("the limit", PATIENCE, || async {
        place.meta("limit:phone").await.as_deref() == Some("1")
            && place.meta("state").await.as_deref() == Some("open")
    })
    .await;
    assert_eq!(place.left().await, left);
    place.ask(&edge.instance, "bob").await.unwrap();
    assert!(place.ask(&edge.instance, "bob").await.unwrap_err().contains("Limit"));
}

#[tokio::test]
async fn a_segment_that_was_on_the_shelf_is_never_preloaded_from_nothing() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    let order = place.bought(&edge.instance, "bob").await;
    let sold = 10 - place.left().await;
    assert!(sold >= 1);
    warden.kill().await;
    place.run(&["FLUSHALL"]).await;
    let _warden = place.warden("");
    eventually("a new epoch sells", PATIENCE, || async {
        place.view().await.is_some_and(|view| view.epochs == [2])
    })
    .await;
    // What was sold stays sold.
    assert_eq!(place.left().await, 10 - sold);
    assert!(place.record(&order.order).await.is_some_and(|record| !record.released));
}

#[tokio::test]
async fn a_sale_that_is_long_over_leaves_redis_even_when_its_withdrawal_was_cut_short() {
    for cut_short in [false, true] {
        let (place, warden, _orders, edge) = Place::open(10).await;
        let order = place.bought(&edge.instance, "bob").await;
        warden.kill().await;
        place.step(SaleStep::Closed).await;
        place
            .db
            .run(
                "UPDATE sales SET starts_at = now() - interval '3 days',
                     ends_at = now() - interval '2 days', updated_at = now() - interval '2 days'",
            )
            .await;
        if cut_short {
            let segment = &place.segment;
            place.run(&["UNLINK", &segment.meta(), &segment.stock(), &segment.orders()]).await;
        }
        let _warden = place.warden("");
        eventually("nothing of it is in redis", PATIENCE, async || {
            let keys: Vec<String> = place.redis.run("test", cmd("KEYS").arg("*{demo:0}*")).await.unwrap();
            keys.is_empty() && place.view().await.is_none()
        })
        .await;
        assert!(place.written(&order.order).await);
    }
}

#[tokio::test]
async fn a_sale_is_not_taken_out_of_redis_while_it_is_being_reopened() {
    let (mut place, warden, _orders, edge) = Place::open(10).await;
    place.make("other", 10).await;
    place.step_of(&SaleId::parse("other").unwrap(), SaleStep::Preloaded).await;
    let listed = cmd("HEXISTS").arg(SALES).arg("other").to_owned();
    let listed = async || place.redis.run::<bool>("test", &listed).await == Ok(true);
    eventually("another one is listed", PATIENCE, listed).await;
    place.bought(&edge.instance, "bob").await;
    place.step(SaleStep::Closed).await;
    edge.answers.store(false, Ordering::Relaxed);
    place.server.crash_and_restart();
    let asked = cmd("HEXISTS").arg(REOPENING).arg(place.segment.name()).to_owned();
    let asked = async || place.redis.run::<bool>("test", &asked).await == Ok(true);
    eventually("the edges are asked", PATIENCE, asked).await;
    place
        .db
        .run(
            "UPDATE sales SET starts_at = now() - interval '3 days',
                 ends_at = now() - interval '2 days', updated_at = now() - interval '2 days'",
        )
        .await;
    // Where a sale is missing from the list, all are looked at: also for those that are over.
    place.run(&["HDEL", SALES, "other"]).await;
    eventually("it is listed again", PATIENCE, listed).await;
    warden.rounds("sales", 2).await;
    assert!(asked().await && place.view().await.is_some(), "it is still there");
    edge.answers.store(true, Ordering::Relaxed);
    eventually("nothing of it is in redis", PATIENCE, async || {
        let keys: Vec<String> = place.redis.run("test", cmd("KEYS").arg("*{demo:0}*")).await.unwrap();
        keys.is_empty() && place.view().await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_sale_that_ended_long_ago_closes_by_itself_once_nothing_of_it_is_unpaid() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    let order = place.bought(&edge.instance, "bob").await;
    warden.stop().await;
    place.db.run("UPDATE orders SET state = 'paid' WHERE user_id <> 'bob'").await;
    let long_ago = "UPDATE sales SET starts_at = now() - interval '3 days',
         ends_at = now() - interval '2 days', updated_at = now() - interval '2 days'";
    place.db.run(long_ago).await;
    let warden = place.warden("");
    let ended = async || warden.metrics().contains("sluice_warden_ended_sales 1\n");
    eventually("it is told", PATIENCE, ended).await;
    assert_eq!(place.view().await.unwrap().step, SaleStep::Open);
    place.db.store.cancel(&order.order, &order.user).await.unwrap();
    eventually("it is closed", PATIENCE, async || place.view().await.unwrap().step == SaleStep::Closed).await;
    let row = place.db.store.sale(&place.segment.sale).await.unwrap().unwrap();
    assert_eq!(row.closed_from, Some(SaleStep::Open));
    let by = place.db.texts("SELECT who || ' ' || action FROM audit_log WHERE who = 'sluice'").await;
    assert_eq!(by, ["sluice sale.close"]);
    eventually("none is told", PATIENCE, async || !ended().await).await;
    // Reopened, it has a day again.
    place.step(SaleStep::Open).await;
    eventually("it is told again", PATIENCE, ended).await;
    assert_eq!(place.view().await.unwrap().step, SaleStep::Open);
}
