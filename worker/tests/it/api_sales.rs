//! Sales: making, listing, changing, and the machine of their states.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_shared::ids::OrderId;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_worker::api::steps::Step;

use super::api_world::{World, a_sale, staff};

#[tokio::test]
async fn a_sale_is_made_once_with_the_defaults() {
    let world = World::start().await;
    let made = world.admin("POST", "/sales", a_sale("a")).await.expect(201);
    assert_eq!((&made["sale"], &made["state"], &made["number"]), (&json!("a"), &json!("created"), &json!(1)));
    assert_eq!((&made["mode"], &made["accept_after"]), (&json!("queued"), &json!("journal")));
    assert_eq!((&made["pay_within_seconds"], &made["segments"]), (&json!(900), &json!(1)));
    let phone = json!({"sku": "phone", "title": "Phone", "price": 59900, "currency": "EUR",
        "stock": 10, "per_user": 2, "taken": 0});
    assert_eq!(made["items"][0], phone);
    assert_eq!(world.admin("GET", "/sales/a", Value::Null).await.expect(200), made);
    world.admin("POST", "/sales", a_sale("a")).await.problem(409, "already_exists");
    world.admin("GET", "/sales/b", Value::Null).await.problem(404, "not_found");
    world.admin("GET", "/sales/b%7Bc", Value::Null).await.problem(404, "not_found");
    assert_eq!(world.audited("sale:a").await, ["sale.create by admin-token (admin)"]);
}

#[tokio::test]
async fn times_come_with_any_offset_and_go_in_utc() {
    let world = World::start().await;
    let mut sale = a_sale("a");
    sale["starts_at"] = json!("2026-11-21T05:00:00+01:00");
    sale["ends_at"] = json!("2026-11-21T04:00:00.001Z");
    let made = world.admin("POST", "/sales", sale).await.expect(201);
    assert_eq!(made["starts_at"], "2026-11-21T04:00:00.000Z");
    assert_eq!(made["ends_at"], "2026-11-21T04:00:00.001Z");
}

#[tokio::test]
async fn what_is_wrong_with_a_sale_is_named() {
    let world = World::start().await;
    let cases = [
        ("/sale", json!("a b"), "sale"),
        ("/sale", json!(7), "sale"),
        ("/starts_at", json!("tomorrow"), "starts_at"),
        ("/ends_at", json!("2001-01-01T00:00:00Z"), "ends_at"),
        ("/starts_at", json!("1969-12-31T23:59:59.999Z"), "starts_at"),
        ("/starts_at", json!("1926-11-21T04:00:00Z"), "starts_at"),
        ("/starts_at", json!("1970-01-01T00:30:00+01:00"), "starts_at"),
        ("/ends_at", json!("9999-12-31T23:59:59.999-00:01"), "ends_at"),
        ("/ends_at", json!("10000-01-01T00:00:00Z"), "ends_at"),
        ("/mode", json!("direct"), "mode"),
        ("/mode", json!("auto"), "mode"),
        ("/accept_after", json!("both"), "accept_after"),
        ("/segments", json!(2), "segments"),
        ("/segments", json!(0), "segments"),
        ("/pay_within_seconds", json!(0), "pay_within_seconds"),
        ("/pay_within_seconds", json!("900"), "pay_within_seconds"),
        ("/pay_within_seconds", json!(2_592_001), "pay_within_seconds"),
        ("/pay_within_seconds", json!(u64::MAX), "pay_within_seconds"),
        ("/colour", json!("red"), "colour"),
        ("/", json!(1), "[\"\"]"),
        ("/a b", json!(1), "[\"a b\"]"),
        ("/items/0/", json!(1), "items[0][\"\"]"),
        ("/items", json!([]), "items"),
        ("/items", json!({}), "items"),
        ("/items/0/sku", json!(""), "items[0].sku"),
        ("/items/1/sku", json!("phone"), "items[1].sku"),
        ("/items/1/title", json!(""), "items[1].title"),
        ("/items/0/price", json!(-1), "items[0].price"),
        ("/items/0/currency", json!("eur"), "items[0].currency"),
        ("/items/1/currency", json!("USD"), "items[1].currency"),
        ("/items/0/currency", json!("ZZZ"), "items[0].currency"),
        ("/items/0/currency", json!("BTC"), "items[0].currency"),
        ("/items/0/currency", json!("XAU"), "items[0].currency"),
        ("/items/0/price", json!(1_000_000_000_001_i64), "items[0].price"),
        ("/items/0/per_user", json!(1_000_000_001), "items[0].per_user"),
        ("/items/0/stock", json!(0), "items[0].stock"),
        ("/items/0/stock", json!(1.5), "items[0].stock"),
        ("/items/0/per_user", json!(0), "items[0].per_user"),
        ("/items/0/taken", json!(1), "items[0].taken"),
    ];
    for (at, value, field) in cases {
        let mut sale = a_sale("a");
        let (parent, name) = at.rsplit_once('/').unwrap();
        sale.pointer_mut(parent).unwrap()[name] = value.clone();
        let reply = world.admin("POST", "/sales", sale).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field), "{at} {value}");
    }
    for name in ["sale", "starts_at", "ends_at", "items"] {
        let mut sale = a_sale("a");
        sale.as_object_mut().unwrap().remove(name);
        let reply = world.admin("POST", "/sales", sale).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(name));
    }
    let text = a_sale("a").to_string();
    for (bad, field) in [
        (text.replace("\"stock\":10", "\"stock\":10.0"), "items[0].stock"),
        (text.replace("\"stock\":10", "\"stock\":10,\"stock\":10"), "items[0].stock"),
        (text.replace("{\"", "{,\""), "body"),
    ] {
        let headers = [("authorization", staff("admin"))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let reply = world.send("POST", "/admin/v1/sales", &headers, bad.as_bytes()).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field), "{bad}");
    }
    assert_eq!(world.admin("GET", "/sales", Value::Null).await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn sales_are_listed_page_by_page() {
    let world = World::start().await;
    for n in 0..5 {
        world.admin("POST", "/sales", a_sale(&format!("s{n}"))).await.expect(201);
    }
    let (mut seen, mut path) = (Vec::new(), "/sales?limit=2".to_owned());
    loop {
        let page = world.admin("GET", &path, Value::Null).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        seen.extend(items.iter().map(|sale| sale["sale"].as_str().unwrap().to_owned()));
        assert!(items.iter().all(|sale| sale["items"].as_array().unwrap().len() == 2));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/sales?limit=2&after={next}");
    }
    assert_eq!(seen, ["s0", "s1", "s2", "s3", "s4"]);
    for (query, field) in
        [("limit=0", "limit"), ("limit=1001", "limit"), ("after=x", "after"), ("page=2", "page")]
    {
        let reply = world.admin("GET", &format!("/sales?{query}"), Value::Null).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field));
    }
}

/// Where each step leads from each state: the contract's table; `None` is 409.
fn table() -> [(SaleStep, [Option<&'static str>; 6]); 5] {
    let (preloaded, open, paused, closed) = (Some("preloaded"), Some("open"), Some("paused"), Some("closed"));
    [
        (SaleStep::Created, [preloaded, None, None, None, None, None]),
        (SaleStep::Preloaded, [preloaded, open, None, None, closed, None]),
        (SaleStep::Open, [None, open, paused, open, closed, None]),
        (SaleStep::Paused, [None, None, paused, open, closed, None]),
        (SaleStep::Closed, [None, None, None, None, closed, open]),
    ]
}

#[tokio::test]
async fn every_step_from_every_state_does_what_the_table_says() {
    let world = World::start().await;
    for (from, leads) in table() {
        for (step, to) in Step::ALL.into_iter().zip(leads) {
            let sale = format!("{}-{}", from.as_str(), step.as_str());
            world.sale_in(&sale, from).await;
            let before = world.admin("GET", &format!("/sales/{sale}"), Value::Null).await.expect(200);
            let logged = world.audited(&format!("sale:{sale}")).await.len();
            let reply = world.admin("POST", &format!("/sales/{sale}/{}", step.as_str()), Value::Null).await;
            match to {
                None => assert_eq!(reply.problem(409, "wrong_state"), None, "{sale}"),
                Some(to) => assert_eq!(reply.expect(200)["state"], to, "{sale}"),
            }
            let after = world.admin("GET", &format!("/sales/{sale}"), Value::Null).await.expect(200);
            let changed = to.is_some_and(|to| to != from.as_str());
            assert_eq!(before != after, changed, "{sale}");
            let logged_now = world.audited(&format!("sale:{sale}")).await.len();
            assert_eq!(logged_now - logged, usize::from(changed), "{sale}");
        }
    }
}

#[tokio::test]
async fn a_sale_is_reopened_to_where_it_was_closed() {
    let world = World::start().await;
    for state in [SaleStep::Preloaded, SaleStep::Open, SaleStep::Paused] {
        let sale = format!("was-{}", state.as_str());
        world.sale_in(&sale, state).await;
        for (step, to) in [("close", "closed"), ("close", "closed"), ("reopen", state.as_str())] {
            let reply = world.admin("POST", &format!("/sales/{sale}/{step}"), Value::Null).await;
            assert_eq!(reply.expect(200)["state"], to, "{sale}");
        }
    }
}

#[tokio::test]
async fn a_sale_that_is_over_for_good_is_not_reopened_and_its_books_answer() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Closed).await;
    sqlx::query(
        "UPDATE sales SET starts_at = now() - interval '26 hours', ends_at = now() - interval '25 hours', \
         updated_at = now() - interval '25 hours'",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    let _: String = world.redis.run("test", &cmd("FLUSHALL")).await.unwrap();
    let _: String = world.redis.run("test", cmd("SCRIPT").arg("FLUSH")).await.unwrap();
    world.admin("POST", "/sales/a/reopen", Value::Null).await.problem(409, "wrong_state");
    let unknown = OrderId::mint(1, 0);
    world.edge("GET", &format!("/orders/{unknown}"), "alice").await.problem(404, "not_found");
}

#[tokio::test]
async fn steps_take_no_members_and_need_a_sale() {
    let world = World::start().await;
    world.admin("POST", "/sales/none/open", Value::Null).await.problem(404, "not_found");
    world.sale_in("a", SaleStep::Created).await;
    let reply = world.admin("POST", "/sales/a/preload", json!({"force": true})).await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("force"));
    world.admin("POST", "/sales/a/preload", json!({})).await.expect(200);
}

#[tokio::test]
async fn preload_begins_the_ledger_and_the_epochs() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    assert_eq!(world.ledger("a").await, ["preload 5", "preload 10"]);
    assert!(world.chain_holds("a").await);
    let epochs: Vec<(i16, i64)> = sqlx::query_as("SELECT segment, epoch FROM segments WHERE sale = 'a'")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(epochs, [(0, 1)]);
}

#[tokio::test]
async fn a_sale_opens_only_on_a_redis_that_keeps_what_it_answers() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Preloaded).await;
    let set = async |name: &str, value: &str| {
        let mut set = cmd("CONFIG");
        set.arg("SET").arg(name).arg(value);
        let _: String = world.redis.run("test", &set).await.unwrap();
    };
    for (name, bad, good) in [
        ("appendfsync", "everysec", "always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("lazyfree-lazy-expire", "no", "yes"),
        ("lazyfree-lazy-server-del", "no", "yes"),
    ] {
        set(name, bad).await;
        let reply = world.admin("POST", "/sales/a/open", Value::Null).await;
        reply.problem(409, "wrong_state");
        assert!(reply.json()["detail"].as_str().unwrap().contains(name), "{}", reply.json());
        set(name, good).await;
    }
    world.admin("POST", "/sales/a/open", Value::Null).await.expect(200);
}

#[tokio::test]
async fn a_sale_that_waits_for_the_broker_opens_on_a_redis_that_may_lose_a_second() {
    let world = World::start().await;
    let mut sale = a_sale("a");
    sale["accept_after"] = json!("broker");
    let made = world.admin("POST", "/sales", sale).await.expect(201);
    assert_eq!(made["accept_after"], "broker");
    world.admin("POST", "/sales/a/preload", Value::Null).await.expect(200);
    let late = world.admin("PATCH", "/sales/a", json!({"accept_after": "journal"})).await;
    late.problem(409, "wrong_state");
    let mut set = cmd("CONFIG");
    set.arg("SET").arg("appendfsync").arg("everysec");
    let _: String = world.redis.run("test", &set).await.unwrap();
    world.admin("POST", "/sales/a/open", Value::Null).await.expect(200);
}

#[tokio::test]
async fn a_step_answers_when_every_live_edge_knows_and_not_before() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    world.heartbeat("late", 0, Duration::ZERO).await;
    world.heartbeat("dead", 0, Duration::from_secs(3)).await;
    let begun = Instant::now();
    world.admin("POST", "/sales/a/pause", Value::Null).await.expect(200);
    assert!(begun.elapsed() >= Duration::from_millis(300), "an edge did not know, and nobody waited");
    world.heartbeat("late", 1000, Duration::ZERO).await;
    let begun = Instant::now();
    world.admin("POST", "/sales/a/pause", Value::Null).await.expect(200);
    assert!(begun.elapsed() < Duration::from_millis(300), "every live edge knew");
}

#[tokio::test]
async fn a_change_raises_the_version_and_rings_for_the_warden() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Created).await;
    let mut bell = sqlx::postgres::PgListener::connect_with(&world.pool).await.unwrap();
    bell.listen("sluice_sales").await.unwrap();
    world.admin("POST", "/sales/a/preload", Value::Null).await.expect(200);
    let rung = tokio::time::timeout(Duration::from_secs(5), bell.recv()).await.unwrap().unwrap();
    assert_eq!(rung.payload(), "a");
    let cfg: i64 =
        sqlx::query_scalar("SELECT cfg FROM sales WHERE sale = 'a'").fetch_one(&world.pool).await.unwrap();
    assert_eq!(cfg, 2);
}
