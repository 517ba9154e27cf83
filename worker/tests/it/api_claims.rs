//! Claims by receipt that could not be honoured: kept, listed, named by the audit, resolved.

use serde_json::{Value, json};
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Segment;
use sluice_shared::message::Accepted;
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;

use crate::api_world::{EDGE_SECRET, World};

async fn world() -> World {
    let world = World::start().await;
    world.sale_in("a", SaleStep::Open).await;
    world
}

/// An order that was accepted and that no store knows any more.
async fn lost(world: &World, user: &str) -> Accepted {
    let accepted = world.accept("a", user).await;
    let segment = Segment::new(SaleId::parse("a").unwrap(), 0);
    let mut forget = cmd("HDEL");
    forget.arg(segment.orders()).arg(accepted.order.field());
    let _: i64 = world.redis.run("test", &forget).await.unwrap();
    let mut back = cmd("HINCRBY");
    back.arg(segment.stock()).arg("phone").arg(1);
    let _: i64 = world.redis.run("test", &back).await.unwrap();
    accepted
}

fn note(accepted: &Accepted, reason: &str) -> Value {
    json!({
        "sale": accepted.sale, "lines": accepted.lines, "epoch": accepted.epoch, "seq": accepted.seq,
        "accepted_at": accepted.at.to_text(), "reason": reason,
    })
}

impl World {
    async fn claim(&self, order: &OrderId, user: &str, body: &Value) -> crate::api_world::http::Reply {
        let bearer = format!("Bearer {EDGE_SECRET}");
        let headers = [("authorization", bearer.as_str()), ("x-sluice-user", user)];
        let path = format!("/internal/v1/orders/{order}/claim");
        self.send("POST", &path, &headers, body.to_string().as_bytes()).await
    }

    /// What the audit says of claims: whether all is well, and who is named.
    async fn honoured(&self) -> (bool, Vec<String>) {
        let report = self.admin("GET", "/sales/a/audit", Value::Null).await.expect(200);
        let equations = report["sales"][0]["equations"].as_array().unwrap().clone();
        let claims = equations.iter().find(|equation| equation["name"] == "A6").expect("the equation");
        assert!(report["balanced"] == claims["holds"], "{report}");
        let named = claims["offenders"].as_array().unwrap().iter();
        (claims["holds"] == true, named.map(|who| who.as_str().unwrap().to_owned()).collect())
    }
}

#[tokio::test]
async fn a_claim_in_vain_is_kept_and_the_audit_names_the_order_until_it_is_resolved() {
    let world = world().await;
    assert_eq!(world.honoured().await, (true, vec![]));
    let accepted = lost(&world, "alice").await;
    let order = accepted.order;
    for reason in ["sold_out", "paused"] {
        world.claim(&order, "alice", &note(&accepted, reason)).await.problem(409, "not_honoured");
        assert_eq!(world.honoured().await, (false, vec![format!("{order} {reason}")]));
    }
    let page = world.admin("GET", "/claims?sale=a&state=open", Value::Null).await.expect(200);
    let claim = &page["items"][0];
    assert_eq!(
        (&claim["order_id"], &claim["state"], &claim["user"]),
        (&json!(order), &json!("open"), &json!("alice"))
    );
    assert_eq!((&claim["reason"], &claim["times"]), (&json!("paused"), &json!(2)));
    assert_eq!(claim["lines"], json!([{"sku": "phone", "quantity": 1}]));
    assert_eq!((&claim["epoch"], &claim["seq"]), (&json!(1), &json!(accepted.seq)));
    assert_eq!(claim["accepted_at"], accepted.at.to_text());
    let line = world.admin("GET", &format!("/orders/{order}/explain"), Value::Null).await.expect(200);
    assert!(line["events"].to_string().contains("refused as paused"), "{line}");
    let path = format!("/claims/{order}/resolve");
    assert_eq!(
        world.admin("POST", &path, json!({})).await.problem(400, "bad_request").as_deref(),
        Some("reason")
    );
    for reason in ["a voucher was sent", "another word"] {
        let resolved = world.admin("POST", &path, json!({"reason": reason})).await.expect(200);
        assert_eq!(
            (&resolved["state"], &resolved["resolved_why"]),
            (&json!("resolved"), &json!("a voucher was sent"))
        );
    }
    assert_eq!(world.honoured().await, (true, vec![]));
    assert_eq!(world.audited(&format!("order:{order}")).await, ["claim.resolve by admin-token (admin)"]);
    // Resolved is resolved, whoever comes again.
    world.claim(&order, "alice", &note(&accepted, "ended")).await.problem(409, "not_honoured");
    assert_eq!(world.honoured().await, (true, vec![]));
    let other = OrderId::mint(1, 0);
    let path = format!("/claims/{other}/resolve");
    world.admin("POST", &path, json!({"reason": "x"})).await.problem(404, "not_found");
}

#[tokio::test]
async fn an_order_that_has_its_row_after_all_has_resolved_its_claim() {
    let world = world().await;
    let accepted = lost(&world, "alice").await;
    world.claim(&accepted.order, "alice", &note(&accepted, "sold_out")).await.problem(409, "not_honoured");
    // Taken again: on the shelf at first, then in the books.
    let segment = Segment::new(accepted.sale.clone(), 0);
    let at = accepted.at.0;
    let mut put = cmd("HSET");
    put.arg(segment.orders())
        .arg(accepted.order.field())
        .arg(format!("Ah|1|{}|{at}|{at}|0|-|phone=1|alice", accepted.seq));
    let _: i64 = world.redis.run("test", &put).await.unwrap();
    let report = world.admin("GET", "/sales/a/audit", Value::Null).await.expect(200);
    let claims = report["sales"][0]["equations"].as_array().unwrap().iter();
    assert!(
        claims.filter(|equation| equation["name"] == "A6").all(|equation| equation["holds"] == true),
        "{report}"
    );
    let shown = world.claim(&accepted.order, "alice", &note(&accepted, "sold_out")).await.expect(200);
    assert_eq!((&shown["order_id"], &shown["state"]), (&json!(accepted.order), &json!("accepted")));
    assert_eq!(world.store.write_orders(std::slice::from_ref(&accepted)).await.unwrap().written, 1);
    let shown = world.claim(&accepted.order, "alice", &note(&accepted, "sold_out")).await.expect(200);
    assert_eq!(shown["state"], "pending_payment");
    let states = |state: &'static str| {
        let world = &world;
        async move {
            let page = world.admin("GET", &format!("/claims?state={state}"), Value::Null).await.expect(200);
            page["items"].as_array().unwrap().len()
        }
    };
    assert_eq!((states("open").await, states("honoured").await, states("resolved").await), (0, 1, 0));
}

#[tokio::test]
async fn only_an_edge_notes_a_claim_and_only_of_a_sale_that_there_is() {
    let world = world().await;
    let accepted = lost(&world, "alice").await;
    let (order, body) = (accepted.order, note(&accepted, "sold_out"));
    world.claim(&order, "", &body).await.problem(400, "bad_request");
    let path = format!("/internal/v1/orders/{order}/claim");
    let admin = format!("Bearer {}", crate::api_world::ADMIN_TOKEN);
    let headers = [("authorization", admin.as_str()), ("x-sluice-user", "alice")];
    world.send("POST", &path, &headers, body.to_string().as_bytes()).await.problem(401, "unauthenticated");
    for (member, value) in [
        ("sale", json!("a b")),
        ("lines", json!("phone")),
        ("epoch", json!(-1)),
        ("seq", json!(1.5)),
        ("accepted_at", json!("now")),
        ("reason", json!("bad luck")),
        ("more", json!(1)),
    ] {
        let mut wrong = body.clone();
        wrong[member] = value;
        let field = world.claim(&order, "alice", &wrong).await.problem(400, "bad_request");
        assert_eq!(field.as_deref(), Some(member));
    }
    let mut other = body.clone();
    other["sale"] = json!("b");
    world.claim(&order, "alice", &other).await.problem(404, "not_found");
    world.claim(&OrderId::mint(99, 0), "alice", &body).await.problem(404, "not_found");
    let page = world.admin("GET", "/claims", Value::Null).await.expect(200);
    assert_eq!(page, json!({"items": [], "next": null}));
    assert_eq!(
        world.admin("GET", "/claims?state=lost", Value::Null).await.problem(400, "bad_request").as_deref(),
        Some("state")
    );
    // While the shelf could not know the order, nothing is said of it.
    let _: String = world.redis.run("test", &cmd("FLUSHALL")).await.unwrap();
    let _: String = world.redis.run("test", cmd("SCRIPT").arg("FLUSH")).await.unwrap();
    world.claim(&order, "alice", &body).await.problem(503, "unavailable");
}
