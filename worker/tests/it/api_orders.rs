//! Orders for the back office and for buyers: search, refund, look, cancel, follow.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_shared::ids::OrderId;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;

use super::api_world::{EDGE_SECRET, World, a_notice};

async fn world() -> World {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    world
}

#[tokio::test]
async fn orders_are_found_by_what_is_known_of_them() {
    let world = world().await;
    world.sale_in("b", SaleStep::Open).await;
    let first = world.order("a", "alice").await;
    world.order("a", "bob").await;
    world.order("b", "alice").await;
    world.paid_order("b", "carol", "p1").await;
    let count = async |query: &str| {
        let page = world.admin("GET", &format!("/orders?{query}"), Value::Null).await.expect(200);
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(count("").await, 4);
    assert_eq!(count("sale=a").await, 2);
    assert_eq!(count("user=alice").await, 2);
    assert_eq!(count("user=alice&sale=b").await, 1);
    assert_eq!(count("state=paid").await, 1);
    assert_eq!(count("state=pending_payment&sale=a").await, 2);
    assert_eq!(count("from=2001-01-01T00:00:00Z").await, 4);
    assert_eq!(count("to=2001-01-01T00:00:00Z").await, 0);
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = world.admin("GET", &format!("/orders?limit=3{after}"), Value::Null).await.expect(200);
        seen.extend(page["items"].as_array().unwrap().iter().map(|order| order["order_id"].to_string()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen.len(), 4);
    assert!(seen.is_sorted());
    for (query, field) in [
        ("state=lost", "state"),
        ("sale=a%20b", "sale"),
        ("from=now", "from"),
        ("after=x", "after"),
        ("limit=0", "limit"),
        ("colour=red", "colour"),
        ("sale=a&sale=b", "sale"),
    ] {
        let reply = world.admin("GET", &format!("/orders?{query}"), Value::Null).await;
        assert_eq!(reply.problem(400, "bad_request").as_deref(), Some(field));
    }
    let one = world.admin("GET", &format!("/orders/{first}"), Value::Null).await.expect(200);
    assert_eq!(
        (&one["user"], &one["state"], &one["amount"]),
        (&json!("alice"), &json!("pending_payment"), &json!(59900))
    );
    assert_eq!(one["lines"], json!([{"sku": "phone", "quantity": 1}]));
    world.admin("GET", "/orders/nonsense", Value::Null).await.problem(404, "not_found");
}

#[tokio::test]
async fn only_a_paid_order_is_refunded_and_its_units_go_back() {
    let world = world().await;
    let refund = async |order: &OrderId, body: Value| {
        world.admin("POST", &format!("/orders/{order}/refund"), body).await
    };
    let unpaid = world.order("a", "alice").await;
    refund(&unpaid, json!({"reason": "x"})).await.problem(409, "wrong_state");
    refund(&OrderId::mint(1, 0), json!({"reason": "x"})).await.problem(404, "not_found");
    let paid = world.paid_order("a", "bob", "p1").await;
    for (body, field) in [(json!({}), "reason"), (json!({"reason": "x", "restock": 1}), "restock")] {
        assert_eq!(refund(&paid, body).await.problem(400, "bad_request").as_deref(), Some(field));
    }
    let done = refund(&paid, json!({"reason": "broken"})).await.expect(200);
    assert_eq!(
        (&done["state"], &done["refund"], &done["live"]),
        (&json!("refunded"), &json!("due"), &json!(false))
    );
    refund(&paid, json!({"reason": "broken"})).await.problem(409, "wrong_state");
    let kept = world.paid_order("a", "carol", "p2").await;
    let done = refund(&kept, json!({"reason": "kind", "restock": false})).await.expect(200);
    assert_eq!((&done["state"], &done["live"]), (&json!("refunded"), &json!(true)));
    let lines = world.ledger("a").await;
    assert_eq!(lines.iter().filter(|line| *line == "refund 1").count(), 2);
    assert_eq!(lines.iter().filter(|line| *line == "release 1").count(), 1);
    assert_eq!(world.audited(&format!("order:{paid}")).await, ["order.refund by admin-token (admin)"]);
    // The provider's notice settles the money.
    let mut notice = a_notice(&paid, "p1");
    notice["status"] = json!("refunded");
    assert_eq!(world.notice(&notice).await.expect(200)["order"]["refund"], "done");
}

#[tokio::test]
async fn a_buyer_sees_his_order_from_the_books_or_from_the_shelf() {
    let world = world().await;
    let accepted = world.accept("a", "alice").await;
    let path = format!("/orders/{}", accepted.order);
    let shown = world.edge("GET", &path, "alice").await.expect(200);
    assert_eq!(
        (&shown["state"], &shown["amount"], &shown["pay_before"]),
        (&json!("accepted"), &json!(null), &json!(null))
    );
    assert_eq!((&shown["sale"], &shown["lines"]), (&json!("a"), &json!([{"sku": "phone", "quantity": 1}])));
    let staff = world.admin("GET", &path, Value::Null).await.expect(200);
    assert_eq!((&staff["user"], &staff["state"]), (&json!("alice"), &json!("accepted")));
    world.store.write_orders(&[accepted]).await.unwrap();
    let shown = world.edge("GET", &path, "alice").await.expect(200);
    assert_eq!(
        (&shown["state"], &shown["amount"], &shown["refund"]),
        (&json!("pending_payment"), &json!(59900), &json!(null))
    );
    assert!(shown["pay_before"].is_string());
    world.edge("GET", &path, "mallory").await.problem(404, "not_found");
    world.edge("DELETE", &path, "mallory").await.problem(404, "not_found");
    for id in ["nonsense".to_owned(), OrderId::mint(1, 0).to_string(), OrderId::mint(99, 0).to_string()] {
        world.edge("GET", &format!("/orders/{id}"), "alice").await.problem(404, "not_found");
        world.edge("DELETE", &format!("/orders/{id}"), "alice").await.problem(404, "not_found");
    }
    let reply = world.edge("GET", &path, "").await;
    assert_eq!(reply.problem(400, "bad_request").as_deref(), Some("X-Sluice-User"));
    // The holder of the order's ticket has no name; he may look, and no more.
    let bearer = format!("Bearer {EDGE_SECRET}");
    let nameless = [("authorization", bearer.as_str())];
    let path = format!("/internal/v1{path}");
    assert_eq!(world.send("GET", &path, &nameless, b"").await.expect(200)["state"], "pending_payment");
    world.send("DELETE", &path, &nameless, b"").await.problem(400, "bad_request");
}

#[tokio::test]
async fn an_order_nobody_knows_is_unknown_only_while_the_shelf_could_know_it() {
    let world = world().await;
    let path = format!("/orders/{}", OrderId::mint(1, 0));
    world.edge("GET", &path, "alice").await.problem(404, "not_found");
    let _: String = world.redis.run("test", &cmd("FLUSHALL")).await.unwrap();
    let _: String = world.redis.run("test", cmd("SCRIPT").arg("FLUSH")).await.unwrap();
    world.edge("GET", &path, "alice").await.problem(503, "unavailable");
    world.edge("DELETE", &path, "alice").await.problem(503, "unavailable");
}

#[tokio::test]
async fn an_unpaid_order_is_cancelled_whether_it_is_written_or_not() {
    let world = world().await;
    let written = world.order("a", "alice").await;
    let unwritten = world.accept("a", "alice").await;
    for order in [written, unwritten.order] {
        for _ in 0..2 {
            let shown = world.edge("DELETE", &format!("/orders/{order}"), "alice").await.expect(202);
            assert_eq!((&shown["state"], &shown["order_id"]), (&json!("cancelled"), &json!(order)));
        }
    }
    // The late message finds it cancelled.
    let report = world.store.write_orders(&[unwritten]).await.unwrap();
    assert_eq!((report.written, report.repeated), (0, 1));
    let lines = world.ledger("a").await;
    assert_eq!(lines[2..], ["take 1", "release 1", "take 1", "release 1"]);
    let paid = world.paid_order("a", "bob", "p1").await;
    world.edge("DELETE", &format!("/orders/{paid}"), "bob").await.problem(409, "not_cancellable");
    let expired = world.order("a", "carol").await;
    sqlx::query("UPDATE orders SET pay_before = now() - interval '1 second' WHERE id = $1")
        .bind(expired.to_string())
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(world.store.expire(&[expired]).await.unwrap(), [expired]);
    let shown = world.edge("DELETE", &format!("/orders/{expired}"), "carol").await.expect(202);
    assert_eq!(shown["state"], "expired");
}

#[tokio::test]
async fn the_shelf_shows_an_order_while_the_books_are_away() {
    let world = world().await;
    let path = format!("/orders/{}", world.accept("a", "alice").await.order);
    world.edge("GET", &path, "alice").await.expect(200);
    world.store.close().await;
    assert_eq!(world.edge("GET", &path, "alice").await.expect(200)["state"], "accepted");
    let unknown = format!("/orders/{}", OrderId::mint(1, 0));
    world.edge("GET", &unknown, "alice").await.problem(503, "unavailable");
    world.edge("DELETE", &path, "alice").await.problem(503, "unavailable");
}

#[tokio::test]
async fn time_lines_and_books_are_told() {
    let world = world().await;
    let report = world.admin("GET", "/sales/a/audit", Value::Null).await.expect(200);
    assert_eq!((&report["balanced"], &report["sales"][0]["sale"]), (&json!(true), &json!("a")), "{report}");
    world.admin("GET", "/sales/none/audit", Value::Null).await.problem(404, "not_found");
    let order = world.paid_order("a", "alice", "p1").await;
    let line = world.admin("GET", &format!("/orders/{order}/explain"), Value::Null).await.expect(200);
    assert_eq!((&line["sale"], &line["known"]), (&json!("a"), &json!(true)));
    assert!(line["events"].as_array().unwrap().len() > 2, "{line}");
    let unknown = OrderId::mint(1, 0);
    world.admin("GET", &format!("/orders/{unknown}/explain"), Value::Null).await.problem(404, "not_found");
}

#[tokio::test]
async fn one_audit_at_a_time_is_made_for_the_back_office_and_shared() {
    let world = world().await;
    world.sale_in("b", SaleStep::Open).await;
    let mut held = world.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let audit = |sale| world.admin("GET", sale, Value::Null);
    let waiting = async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE wait_event_type = 'Lock' AND datname = current_database()";
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&world.pool).await.unwrap()
    };
    let another = async {
        let patience = Duration::from_secs(20);
        eventually("the first one is under way", patience, async || waiting().await > 0).await;
        let busy = audit("/sales/b/audit").await;
        assert!((1..=4).contains(&busy.headers["retry-after"].parse::<u32>().unwrap()));
        busy.problem(503, "overloaded");
        // Whoever gives up does not take it from the others.
        let gone = tokio::time::timeout(Duration::from_millis(300), audit("/sales/a/audit")).await;
        assert!(gone.is_err());
        held.rollback().await.unwrap();
    };
    let (first, second, ()) = tokio::join!(audit("/sales/a/audit"), audit("/sales/a/audit"), another);
    assert_eq!(first.expect(200)["at"], second.expect(200)["at"]);
    audit("/sales/b/audit").await.expect(200);
}

#[tokio::test]
async fn an_audit_that_cannot_read_says_why() {
    let world = world().await;
    sqlx::query("ALTER TABLE ledger RENAME TO elsewhere").execute(&world.pool).await.unwrap();
    let answer = world.admin("GET", "/sales/a/audit", Value::Null).await;
    answer.problem(503, "unavailable");
    let detail = answer.json()["detail"].to_string();
    assert!(detail.contains("ledger"), "{detail}");
}
