//! Payment notices through the callback.

use serde_json::{Value, json};
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;

use super::api_world::{PAYMENT_SECRET, World, a_notice, mac, sign};

async fn world() -> World {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    world
}

#[tokio::test]
async fn a_good_notice_pays_once() {
    let world = world().await;
    let order = world.order("a", "alice").await;
    for _ in 0..2 {
        let shown = world.notice(&a_notice(&order, "p1")).await.expect(200);
        assert_eq!((&shown["order"]["state"], &shown["order"]["refund"]), (&json!("paid"), &json!(null)));
    }
    assert_eq!(world.ledger("a").await[2..], ["take 1", "sold 1"]);
    // A second payment for it has to go back.
    let shown = world.notice(&a_notice(&order, "p2")).await.expect(200);
    assert_eq!((&shown["order"]["state"], &shown["order"]["refund"]), (&json!("paid"), &json!("due")));
    // A payment stays with its order.
    let other = world.order("a", "bob").await;
    let reply = world.notice(&a_notice(&other, "p1")).await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("payment_id"));
}

#[tokio::test]
async fn money_for_a_cancelled_order_is_due_to_go_back() {
    let world = world().await;
    let order = world.order("a", "alice").await;
    world.edge("DELETE", &format!("/orders/{order}"), "alice").await.expect(202);
    let shown = world.notice(&a_notice(&order, "p1")).await.expect(200);
    assert_eq!((&shown["order"]["state"], &shown["order"]["refund"]), (&json!("cancelled"), &json!("due")));
    let mut back = a_notice(&order, "p1");
    back["status"] = json!("refunded");
    assert_eq!(world.notice(&back).await.expect(200)["order"]["refund"], "done");
    let mut failed = a_notice(&world.order("a", "bob").await, "p2");
    failed["status"] = json!("failed");
    assert_eq!(world.notice(&failed).await.expect(200)["order"]["state"], "pending_payment");
}

#[tokio::test]
async fn a_signature_is_judged_before_anything_else() {
    let world = world().await;
    let order = world.order("a", "alice").await;
    let body = a_notice(&order, "p1").to_string();
    let body = body.as_bytes();
    let now = Millis::now().seconds();
    let good = mac(PAYMENT_SECRET, now, body);
    let bad = [
        String::new(),
        "nonsense".to_owned(),
        format!("t={now}"),
        format!("v1={good}"),
        format!("t={now},v1="),
        format!("t={now},v1={}", &good[..62]),
        format!("t={now},v1={}", good.to_uppercase()),
        format!("t={now},v0={good}"),
        format!("t={now},t={now},v1={good}"),
        format!("t=+{now},v1={good}"),
        format!("t={now}.0,v1={good}"),
        format!("t={},v1={good}", now + 1),
        sign("another secret of a provider", now, body),
        sign(PAYMENT_SECRET, now, b"{}"),
        sign(PAYMENT_SECRET, now - 305, body),
        sign(PAYMENT_SECRET, now + 305, body),
    ];
    for signature in &bad {
        world.callback(signature, body).await.problem(401, "bad_signature");
        // Also when the body is no notice.
        world.callback(signature, b"[").await.problem(401, "bad_signature");
    }
    let bearer = format!("Bearer {}", super::api_world::EDGE_SECRET);
    let reply =
        world.send("POST", "/internal/v1/payments/callback", &[("authorization", &bearer)], body).await;
    reply.problem(401, "bad_signature");
    let several = format!("t={now}, v1={}, v1={good}, v2=later", "0".repeat(64));
    world.callback(&several, body).await.expect(200);
    world.callback(&sign(PAYMENT_SECRET, now - 290, body), body).await.expect(200);
}

#[tokio::test]
async fn the_body_is_judged_then_the_order_then_the_amount() {
    let world = world().await;
    let order = world.order("a", "alice").await;
    let unknown = OrderId::mint(1, 0);
    let cases = [
        ("payment_id", json!("a b")),
        ("payment_id", json!("x".repeat(129))),
        ("payment_id", json!(7)),
        ("order_id", json!(7)),
        ("amount", json!(59900.0)),
        ("amount", json!(-1)),
        ("amount", json!("59900")),
        ("currency", json!("euro")),
        ("status", json!("maybe")),
    ];
    for (field, value) in cases {
        let mut notice = a_notice(&unknown, "p");
        notice[field] = value.clone();
        let reply = world.notice(&notice).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field), "{value}");
    }
    for field in ["payment_id", "order_id", "amount", "currency", "status"] {
        let mut notice = a_notice(&unknown, "p");
        notice.as_object_mut().unwrap().remove(field);
        assert_eq!(world.notice(&notice).await.problem(400, "bad_request").as_deref(), Some(field));
    }
    let body = a_notice(&order, "p").to_string();
    for (body, field) in [
        (body.replace("\"amount\":", "\"amount\":1,\"amount\":"), "amount"),
        (body.replace("\"amount\":59900", "\"amount\":1e999"), "body"),
        (body.replace("{\"ignored\":true}", "[}"), "body"),
        (format!("[{body}]"), "body"),
    ] {
        let signature = sign(PAYMENT_SECRET, Millis::now().seconds(), body.as_bytes());
        let reply = world.callback(&signature, body.as_bytes()).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field), "{body}");
    }
    for id in [unknown.to_string(), OrderId::mint(77, 0).to_string(), "order-1".to_owned()] {
        let mut notice = a_notice(&unknown, "p");
        notice["order_id"] = json!(id);
        notice["amount"] = json!(1);
        world.notice(&notice).await.problem(404, "not_found");
    }
    for (field, value) in [("amount", json!(59901)), ("currency", json!("USD"))] {
        let mut notice = a_notice(&order, "p");
        notice[field] = value;
        world.notice(&notice).await.problem(400, "amount_mismatch");
    }
    let shown = world.admin("GET", &format!("/orders/{order}"), Value::Null).await.expect(200);
    assert_eq!(shown["state"], "pending_payment");
}

#[tokio::test]
async fn what_a_provider_adds_may_be_anything() {
    let world = world().await;
    let order = world.order("a", "alice").await;
    let body = a_notice(&order, "p1").to_string();
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    for more in ["1e999", r#""\ud83d""#, r#"{"x":1,"x":2}"#, "18446744073709551616", deep.as_str(), "null"] {
        let body =
            body.replace("\"provider\":", &format!("\"note\":{more},\"\":1,\"note\":{more},\"provider\":"));
        let signature = sign(PAYMENT_SECRET, Millis::now().seconds(), body.as_bytes());
        let shown = world.callback(&signature, body.as_bytes()).await.expect(200);
        assert_eq!(shown["order"]["state"], "paid", "{more}");
    }
}

#[tokio::test]
async fn a_notice_before_the_row_waits_a_little_and_is_asked_again() {
    let world = world().await;
    let late = world.accept("a", "alice").await;
    let reply = world.notice(&a_notice(&late.order, "p1")).await;
    reply.problem(503, "unavailable");
    assert!(matches!(reply.headers["retry-after"].as_str(), "1" | "2"));
    let (notice, _) = (a_notice(&late.order, "p1"), ());
    let (reply, _) = tokio::join!(world.notice(&notice), async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        world.store.write_orders(std::slice::from_ref(&late)).await.unwrap()
    });
    assert_eq!(reply.expect(200)["order"]["state"], "paid");
}

#[tokio::test]
async fn an_order_is_unknown_only_when_both_stores_say_so() {
    let mut world = world().await;
    let unknown = a_notice(&OrderId::mint(1, 0), "p");
    world.notice(&unknown).await.problem(404, "not_found");
    let _: String = world.redis.run("test", &cmd("FLUSHALL")).await.unwrap();
    let _: String = world.redis.run("test", cmd("SCRIPT").arg("FLUSH")).await.unwrap();
    world.notice(&unknown).await.problem(503, "unavailable");
    world.server.crash();
    world.notice(&unknown).await.problem(503, "unavailable");
}
