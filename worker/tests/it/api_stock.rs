//! Stock changes: once per key, on the shelf and in the books alike, whatever happens in between.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_shared::ids::{SaleId, SkuId};
use sluice_shared::keys::Segment;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;
use sluice_worker::stock::complete_pending;
use sluice_worker::store::audit_log::Actor;
use sluice_worker::store::stock_changes::{Begun, StockChange};

use super::api_world::{World, a_sale};
use super::harness::Vhost;

/// Long enough for a busy machine; conditions are met much sooner.
const PATIENCE: Duration = Duration::from_secs(30);

fn wish(delta: i64) -> Value {
    json!({"sku": "phone", "delta": delta, "reason": "counted again"})
}

async fn both(world: &World) -> (i64, i64) {
    (world.stock_in_books("a", "phone").await, world.left("a", "phone").await)
}

#[tokio::test]
async fn units_are_added_and_withdrawn_once_a_key() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    let added = world.stock("a", "k1", wish(5)).await.expect(200);
    assert_eq!(added, json!({"sale": "a", "sku": "phone", "delta": 5, "stock": 15, "left": 15}));
    let withdrawn = world.stock("a", "k2", wish(-12)).await.expect(200);
    assert_eq!(withdrawn, json!({"sale": "a", "sku": "phone", "delta": -12, "stock": 3, "left": 3}));
    // The same answer again, although much has changed since.
    assert_eq!(world.stock("a", "k1", wish(5)).await.expect(200), added);
    assert_eq!(both(&world).await, (3, 3));
    world.stock("a", "k1", wish(6)).await.problem(422, "idempotency_mismatch");
    assert_eq!(world.ledger("a").await, ["preload 5", "preload 10", "add 5", "withdraw 12"]);
    assert!(world.chain_holds("a").await);
    let logged = world.audited("sale:a").await;
    assert_eq!(logged[3..], ["stock.add by admin-token (admin)", "stock.withdraw by admin-token (admin)"]);
}

#[tokio::test]
async fn more_than_is_left_is_not_withdrawn_now_or_later() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Paused).await;
    world.stock("a", "k", wish(-11)).await.problem(409, "insufficient_stock");
    world.stock("a", "add", wish(5)).await.expect(200);
    world.stock("a", "k", wish(-11)).await.problem(409, "insufficient_stock");
    assert_eq!(both(&world).await, (15, 15));
}

#[tokio::test]
async fn stock_changes_only_on_the_shelf_and_with_a_key() {
    let world = World::start().await;
    for state in [SaleStep::Created, SaleStep::Closed] {
        world.sale_in(state.as_str(), state).await;
        world.stock(state.as_str(), "k", wish(1)).await.problem(409, "wrong_state");
    }
    for state in [SaleStep::Preloaded, SaleStep::Open, SaleStep::Paused] {
        world.sale_in(state.as_str(), state).await;
        world.stock(state.as_str(), "k", wish(1)).await.expect(200);
    }
    world.stock("none", "k", wish(1)).await.problem(404, "not_found");
    let reply = world.admin("POST", "/sales/open/stock", wish(1)).await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("Idempotency-Key"));
    let mut other = wish(1);
    other["sku"] = json!("pen");
    world.stock("open", "k2", other).await.problem(404, "unknown_sku");
    let cases = [
        ("delta", json!(0)),
        ("delta", json!(1.0)),
        ("delta", json!("1")),
        ("delta", json!(1_000_000_000)),
        ("sku", json!("a b")),
        ("reason", json!("")),
        ("reason", json!("a\u{0}b")),
        ("why", json!("not")),
    ];
    for (field, value) in cases {
        let mut body = wish(1);
        body[field] = value.clone();
        let reply = world.stock("open", "k3", body).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field), "{value}");
    }
    for field in ["sku", "delta", "reason"] {
        let mut body = wish(1);
        body.as_object_mut().unwrap().remove(field);
        let reply = world.stock("open", "k4", body).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field));
    }
}

async fn crash_after_intent(world: &World, key: &str, delta: i64) {
    crash_after_intent_of(world, "a", key, delta).await;
}

/// The intent as a request that crashes right after it leaves it.
async fn crash_after_intent_of(world: &World, sale: &str, key: &str, delta: i64) {
    let change = StockChange {
        sale: SaleId::parse(sale).unwrap(),
        key: key.to_owned(),
        sku: SkuId::parse("phone").unwrap(),
        delta,
        reason: "crashed".to_owned(),
        fingerprint: vec![1],
    };
    let actor = Actor { who: "eve".to_owned(), role: "operator", request_id: "r".to_owned() };
    let begun = world.store.begin_stock_change(&change, 1_000_000, &actor).await.unwrap();
    assert_eq!(begun, Begun::Noted);
    sqlx::query("UPDATE stock_changes SET created_at = now() - interval '1 minute'")
        .execute(&world.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_crash_interrupts_is_completed_once() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    // Adding: the books first. Withdrawing: the shelf first.
    crash_after_intent(&world, "add", 5).await;
    assert_eq!(both(&world).await, (15, 10));
    crash_after_intent(&world, "withdraw", -3).await;
    assert_eq!(both(&world).await, (15, 10));
    assert_eq!(complete_pending(&world.store, &world.redis).await.unwrap(), 2);
    assert_eq!(both(&world).await, (12, 12));
    assert_eq!(complete_pending(&world.store, &world.redis).await.unwrap(), 0);
    assert_eq!(both(&world).await, (12, 12));
}

#[tokio::test]
async fn a_withdrawal_that_crashed_between_shelf_and_books_is_completed() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    let scripts = world.shelve("a").await;
    crash_after_intent(&world, "k", -4).await;
    scripts.adjust(&world.redis, "k", &SkuId::parse("phone").unwrap(), -4).await.unwrap();
    assert_eq!(both(&world).await, (10, 6));
    assert_eq!(complete_pending(&world.store, &world.redis).await.unwrap(), 1);
    assert_eq!(both(&world).await, (6, 6));
}

#[tokio::test]
async fn a_frozen_sale_keeps_the_change_for_later() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    let _: String = world.redis.run("test", cmd("SCRIPT").arg("FLUSH")).await.unwrap();
    for delta in [5, -3] {
        let reply = world.stock("a", &format!("k{delta}"), wish(delta)).await;
        reply.problem(503, "frozen");
        assert!(matches!(reply.headers["retry-after"].as_str(), "1" | "2" | "3"));
    }
    assert_eq!(both(&world).await, (15, 10));
    world.shelve("a").await;
    let done = world.stock("a", "k-3", wish(-3)).await.expect(200);
    assert_eq!((&done["stock"], &done["left"]), (&json!(12), &json!(7)));
    let done = world.stock("a", "k5", wish(5)).await.expect(200);
    assert_eq!((&done["stock"], &done["left"]), (&json!(12), &json!(12)));
}

#[tokio::test]
async fn a_sale_that_is_not_on_the_shelf_yet_notes_nothing() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Created).await;
    world.admin("POST", "/sales/a/preload", Value::Null).await.expect(200);
    world.stock("a", "k", wish(5)).await.problem(503, "frozen");
    assert_eq!(world.stock_in_books("a", "phone").await, 10);
    world.shelve("a").await;
    world.stock("a", "k", wish(5)).await.expect(200);
    assert_eq!(both(&world).await, (15, 15));
}

#[tokio::test]
async fn changes_of_one_key_at_a_time_have_one_effect() {
    let world = std::sync::Arc::new(World::start().await);
    world.sale_in("a", SaleStep::Open).await;
    let all = (0..8).map(|_| {
        let world = world.clone();
        tokio::spawn(async move { world.stock("a", "k", wish(-4)).await })
    });
    for one in all.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap().expect(200)["left"], 6);
    }
    assert_eq!(both(&world).await, (6, 6));
}

/// The whole life of a sale with a real warden: what is answered is on the shelf.
#[tokio::test]
async fn with_a_warden_every_answer_is_on_the_shelf_already() {
    let broker = Vhost::new().await;
    let mut world = World::start().await;
    world.warden(&broker.url);
    let meta = Segment::new(SaleId::parse("a").unwrap(), 0).meta();
    let state = async |world: &World| {
        let read = cmd("HGET").arg(&meta).arg("state").to_owned();
        world.redis.run::<Option<String>>("test", &read).await.unwrap().unwrap_or_default()
    };
    world.admin("POST", "/sales", a_sale("a")).await.expect(201);
    // The first step may find the warden still taking its place.
    world.admin("POST", "/sales/a/preload", Value::Null).await.expect(200);
    eventually("the sale is on the shelf", PATIENCE, async || state(&world).await == "preloaded").await;
    for (step, now) in [("open", "open"), ("pause", "paused"), ("close", "closed"), ("reopen", "paused")] {
        world.admin("POST", &format!("/sales/a/{step}"), Value::Null).await.expect(200);
        assert_eq!(state(&world).await, now, "{step}");
    }
    world.stock("a", "k1", wish(5)).await.expect(200);
    assert_eq!(both(&world).await, (15, 15));
    // A change that finds Redis gone is completed when the warden has restored it.
    world.server.crash();
    world.stock("a", "k2", wish(-3)).await.problem(503, "unavailable");
    world.stock("a", "k3", wish(4)).await.problem(503, "unavailable");
    world.server.crash_and_restart();
    // The connection that broke says so once.
    world.redis = world.server.connect();
    eventually("both changes are done", PATIENCE, async || {
        let pending = "SELECT count(*) FROM stock_changes WHERE state = 'pending'";
        let pending: i64 = sqlx::query_scalar(pending).fetch_one(&world.pool).await.unwrap();
        pending == 0
    })
    .await;
    assert_eq!(both(&world).await, (16, 16));
    let report = world.admin("GET", "/sales/a/audit", Value::Null).await.expect(200);
    assert_eq!(report["balanced"], true, "{report}");
}

#[tokio::test]
async fn a_sale_that_cannot_be_read_holds_no_others_change_up() {
    let world = World::start().await;
    for sale in ["a", "b"] {
        world.sale_in(sale, SaleStep::Open).await;
        crash_after_intent_of(&world, sale, "k", 5).await;
    }
    let stock = Segment::new(SaleId::parse("a").unwrap(), 0).stock();
    let _: String = world.redis.run("test", cmd("SET").arg(&stock).arg("no map")).await.unwrap();
    assert_eq!(complete_pending(&world.store, &world.redis).await.unwrap(), 1);
    let open: Vec<String> = sqlx::query_scalar("SELECT sale FROM stock_changes WHERE state = 'pending'")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(open, ["a"]);
}
