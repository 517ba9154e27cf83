//! Changing a sale: what may change when, and what is judged first.

use serde_json::{Value, json};
use sluice_shared::clock::Millis;
use sluice_shared::sale::SaleStep;

use super::api_world::{World, a_sale, staff};

#[tokio::test]
async fn before_preload_everything_may_change_and_items_are_merged() {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Created).await;
    let patch = json!({
        "starts_at": "2026-01-01T00:00:00Z", "ends_at": "2036-01-01T00:00:00Z", "pay_within_seconds": 60,
        "items": [
            {"sku": "phone", "stock": 20, "price": 100},
            {"sku": "pen", "title": "Pen", "price": 5, "currency": "EUR", "stock": 3, "per_user": 3},
        ],
    });
    let sale = world.admin("PATCH", "/sales/a", patch).await.expect(200);
    assert_eq!(
        (&sale["starts_at"], &sale["pay_within_seconds"]),
        (&json!("2026-01-01T00:00:00.000Z"), &json!(60))
    );
    let stocks: Vec<_> =
        sale["items"].as_array().unwrap().iter().map(|item| (&item["sku"], &item["stock"])).collect();
    assert_eq!(
        stocks,
        [(&json!("phone"), &json!(20)), (&json!("book"), &json!(5)), (&json!("pen"), &json!(3))]
    );
    assert_eq!((&sale["items"][0]["title"], &sale["items"][0]["price"]), (&json!("Phone"), &json!(100)));
    let shown = world.admin("GET", "/sales/a", Value::Null).await.expect(200);
    assert_eq!(shown, sale);
    let reply = world.admin("PATCH", "/sales/a", json!({"items": [{"sku": "cup", "stock": 1}]})).await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("items[0].title"));
    let reply = world.admin("PATCH", "/sales/a", json!({"sale": "b"})).await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("sale"));
    let reply = world.admin("PATCH", "/sales/a", json!({"ends_at": "2020-01-01T00:00:00Z"})).await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("ends_at"));
    world.admin("PATCH", "/sales/none", json!({})).await.problem(404, "not_found");
}

#[tokio::test]
async fn after_preload_only_some_members_change_and_none_once_closed() {
    let world = World::start().await;
    let soon = Millis(Millis::now().0 + 600_000).to_text();
    let good = [
        json!({"ends_at": "2036-01-01T00:00:00Z"}),
        json!({"pay_within_seconds": 30}),
        json!({"items": [{"sku": "book", "title": "A book", "per_user": 3}]}),
        // What is so already is no change.
        json!({"items": [{"sku": "phone", "price": 59900, "stock": 10}], "mode": "queued", "segments": 1}),
    ];
    let bad = [
        json!({"starts_at": soon}),
        json!({"items": [{"sku": "phone", "price": 1}]}),
        json!({"items": [{"sku": "phone", "stock": 11}]}),
        json!({"items": [{"sku": "pen", "title": "P", "price": 1, "currency": "EUR", "stock": 1, "per_user": 1}]}),
    ];
    for state in [SaleStep::Preloaded, SaleStep::Open, SaleStep::Paused] {
        let path = format!("/sales/{}", state.as_str());
        world.sale_in(state.as_str(), state).await;
        for patch in &good {
            world.admin("PATCH", &path, patch.clone()).await.expect(200);
        }
        for patch in &bad {
            world.admin("PATCH", &path, patch.clone()).await.problem(409, "wrong_state");
        }
        let sale = world.admin("GET", &path, Value::Null).await.expect(200);
        let book = &sale["items"][1];
        assert_eq!(
            (&book["title"], &book["per_user"], &book["stock"]),
            (&json!("A book"), &json!(3), &json!(5))
        );
        assert_eq!(
            (&sale["ends_at"], &sale["pay_within_seconds"]),
            (&json!("2036-01-01T00:00:00.000Z"), &json!(30))
        );
    }
    world.sale_in("closed", SaleStep::Closed).await;
    for patch in good[..3].iter().chain(&bad) {
        world.admin("PATCH", "/sales/closed", patch.clone()).await.problem(409, "wrong_state");
    }
}

#[tokio::test]
async fn the_state_of_a_sale_is_judged_before_its_values() {
    let world = World::start().await;
    world.sale_in("created", SaleStep::Created).await;
    world.sale_in("open", SaleStep::Open).await;
    world.sale_in("closed", SaleStep::Closed).await;
    let patches = [
        // A bad value, its field, and whether it may change while the sale is open.
        (json!({"starts_at": "1926-11-21T04:00:00Z"}), "starts_at", false),
        (json!({"ends_at": "tomorrow"}), "ends_at", true),
        (json!({"ends_at": "9999-12-31T23:59:59-00:01"}), "ends_at", true),
        (json!({"ends_at": "2001-01-01T00:00:00Z"}), "ends_at", true),
        (json!({"pay_within_seconds": 0}), "pay_within_seconds", true),
        (json!({"accept_after": "both"}), "accept_after", false),
        (json!({"mode": "direct"}), "mode", false),
        (json!({"segments": 2}), "segments", false),
        (json!({"items": [{"sku": "phone", "price": -1}]}), "items[0].price", false),
        (json!({"items": [{"sku": "phone", "currency": "ZZZ"}]}), "items[0].currency", false),
        (json!({"items": [{"sku": "phone", "stock": 0}]}), "items[0].stock", false),
        (json!({"items": [{"sku": "phone", "title": ""}]}), "items[0].title", true),
        (json!({"items": [{"sku": "pen"}]}), "items[0].title", false),
        (json!({"sale": "other"}), "sale", true),
        (json!({"": 1}), "[\"\"]", true),
    ];
    for (patch, field, open) in patches {
        let of = async |sale: &str| world.admin("PATCH", &format!("/sales/{sale}"), patch.clone()).await;
        assert_eq!(of("created").await.problem(400, "bad_request").as_deref(), Some(field), "{patch}");
        of("closed").await.problem(409, "wrong_state");
        of("none").await.problem(404, "not_found");
        let open_now = of("open").await;
        if open {
            assert_eq!(open_now.problem(400, "bad_request").as_deref(), Some(field), "{patch}");
        } else {
            open_now.problem(409, "wrong_state");
        }
    }
    let headers = [("authorization", staff("admin"))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    world.send("PATCH", "/admin/v1/sales/closed", &headers, b"{").await.problem(400, "bad_request");
}

#[tokio::test]
async fn starts_at_changes_until_it_has_come() {
    let world = World::start().await;
    let mut sale = a_sale("a");
    sale["starts_at"] = json!(Millis(Millis::now().0 + 600_000).to_text());
    world.admin("POST", "/sales", sale).await.expect(201);
    world.admin("POST", "/sales/a/preload", Value::Null).await.expect(200);
    let now = Millis::now().to_text();
    assert_eq!(
        world.admin("PATCH", "/sales/a", json!({"starts_at": now})).await.expect(200)["starts_at"],
        now
    );
    let later = Millis(Millis::now().0 + 60_000).to_text();
    world.admin("PATCH", "/sales/a", json!({"starts_at": later})).await.problem(409, "wrong_state");
}
