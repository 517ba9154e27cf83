//! Every refusal of the calls of ours: code, members, and the connection that lives on.

use serde_json::json;
use sluice_shared::clock::Millis;
use sluice_shared::jwt::sign_hs256;
use sluice_shared::sale::SaleStep;

use crate::client::{Answer, Connection};
use crate::harness::{Edge, JWT_SECRET, Sale, bearer};

const ONE: &str = r#"{"sku":"phone","quantity":1}"#;

/// One request after another on one connection: each refusal leaves it open.
struct Caller {
    connection: Connection,
}

impl Caller {
    fn new(edge: &Edge) -> Self {
        Self { connection: edge.connect() }
    }

    fn call(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        let answer = self.connection.call(method, path, fields, body);
        assert_eq!(answer.field("connection"), Some("keep-alive"), "{method} {path}");
        answer
    }

    fn refused(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> (u16, String) {
        let answer = self.call(method, path, fields, body);
        (answer.status, answer.code())
    }

    /// A purchase with everything given.
    fn buy(&mut self, sale: &str, user: &str, token: &str, body: &str) -> Answer {
        let bearer = bearer(user);
        let fields = [("Authorization", bearer.as_str()), ("X-Sale-Token", token)];
        self.call("POST", &format!("/v1/sales/{sale}/orders"), &fields, body)
    }
}

#[test]
fn paths_and_methods_are_judged_first() {
    let edge = Edge::selling(&[]);
    let mut caller = Caller::new(&edge);
    for (method, path, code, status) in [
        ("GET", "/", "not_found", 404),
        ("POST", "/v1/orders/claim/x", "not_found", 404),
        ("POST", "/v1/orders/claim", "unauthenticated", 401),
        ("GET", "/v1/orders/claim", "method_not_allowed", 405),
        ("DELETE", "/v1/orders/claim", "method_not_allowed", 405),
        ("GET", "/v1/receipt-keys/r1", "not_found", 404),
        ("POST", "/v1/receipt-keys", "method_not_allowed", 405),
        ("GET", "/v1/sales", "not_found", 404),
        ("GET", "/v1/orders", "not_found", 404),
        ("GET", "/v1/orders/1234", "not_found", 404),
        ("DELETE", "/v1/orders/1234", "not_found", 404),
        ("GET", "/v1/orders/1234/events", "not_found", 404),
        ("GET", "/v1/sales/none", "unknown_sale", 404),
        ("GET", "/v1/sales/b%20d", "unknown_sale", 404),
        ("POST", "/v1/sales/none/token", "unknown_sale", 404),
        ("POST", "/v1/sales/none/orders", "unknown_sale", 404),
        ("GET", "/admin/v1/sales", "not_found", 404),
        ("POST", "/-/reload", "not_found", 404),
        ("POST", "/v1/sales/demo", "method_not_allowed", 405),
        ("GET", "/v1/sales/none/orders", "method_not_allowed", 405),
        ("GET", "/v1/sales/demo/token", "method_not_allowed", 405),
        ("PUT", "/v1/orders/1234", "method_not_allowed", 405),
        ("HEAD", "/v1/orders/1234/events", "method_not_allowed", 405),
        ("GET", "/v1/payments/callback", "method_not_allowed", 405),
        ("OPTIONS", "/v1/sales/demo", "method_not_allowed", 405),
        ("BREW", "/v1/sales/demo", "method_not_allowed", 405),
    ] {
        let answer = caller.call(method, path, &[("X-Request-Id", "one.and-only_1")], "");
        assert_eq!(
            (answer.status, answer.field("x-request-id")),
            (status, Some("one.and-only_1")),
            "{method} {path}"
        );
        if method != "HEAD" {
            assert_eq!(answer.code(), code, "{method} {path}");
        }
        if status == 405 {
            assert!(!answer.field("allow").unwrap().contains(method), "{method} {path}");
        }
    }
    assert_eq!(caller.call("GET", "/v1/sales/demo", &[], "").status, 200);
}

#[test]
fn identity_is_judged_before_the_token_and_the_token_before_the_body() {
    let edge = Edge::selling(&[]);
    let mut caller = Caller::new(&edge);
    let soon = Millis::now().seconds() + 1000;
    let signed = |secret: &str, claims: serde_json::Value| format!("Bearer {}", sign_hs256(secret, &claims));
    for bad in [
        "Basic YTpi".to_owned(),
        "Bearer x".to_owned(),
        signed("another secret, just as long", json!({"sub": "alice", "exp": soon})),
        signed(JWT_SECRET, json!({"sub": "alice", "exp": soon - 2000})),
        signed(JWT_SECRET, json!({"sub": "alice"})),
        signed(JWT_SECRET, json!({"sub": "a b", "exp": soon})),
        signed(JWT_SECRET, json!({"sub": "alice", "exp": soon, "nbf": soon})),
        format!("Bearer {}", "a".repeat(5000)),
    ] {
        for path in ["/v1/sales/demo/token", "/v1/sales/demo/orders"] {
            let refused = caller.refused("POST", path, &[("Authorization", &bad)], "{");
            assert_eq!(refused, (401, "unauthenticated".to_owned()), "{bad}");
        }
    }
    assert_eq!(caller.refused("POST", "/v1/sales/demo/orders", &[], ONE).0, 401);

    let (alice, bob) = (bearer("alice"), bearer("bob"));
    let token = edge.token("demo", "alice");
    let path = "/v1/sales/demo/orders";
    let missing = (403, "token_missing".to_owned());
    assert_eq!(caller.refused("POST", path, &[("Authorization", &alice)], "{"), missing);
    assert_eq!(
        caller.refused("POST", path, &[("Authorization", &alice), ("X-Sale-Token", "")], "{"),
        missing
    );
    for (who, token) in [(&alice, "x"), (&bob, token.as_str()), (&alice, &token[1..])] {
        let refused = caller.refused("POST", path, &[("Authorization", who), ("X-Sale-Token", token)], "{");
        assert_eq!(refused, (403, "token_invalid".to_owned()));
    }
    let wrong = caller.buy("demo", "alice", &token, "{");
    assert_eq!((wrong.code().as_str(), wrong.json()["field"].as_str()), ("bad_request", Some("body")));
    let bad_line = r#"{"lines":[{"sku":"phone","quantity":1},{"sku":"phone","quantity":0}]}"#;
    let wrong = caller.buy("demo", "alice", &token, bad_line);
    assert_eq!((wrong.status, wrong.json()["field"].as_str()), (400, Some("lines[1].quantity")));
    assert_eq!(caller.buy("demo", "alice", &token, ONE).status, 202);
}

#[test]
fn the_sale_is_judged_behind_the_replay() {
    let mut edge = Edge::selling(&[]);
    edge.put(&Sale { id: "soon", starts: 30, ..Sale::default() });
    edge.put(&Sale { id: "later", starts: 3000, ends: 6000, ..Sale::default() });
    edge.put(&Sale { id: "unarmed", step: SaleStep::Preloaded, ..Sale::default() });
    let (bought, fresh) = (edge.token("demo", "alice"), edge.token("demo", "bob"));
    assert_eq!(edge.buy("demo", "alice", &bought, ONE).status, 202);

    let early = edge.buy("soon", "alice", &edge.token("soon", "alice"), ONE);
    assert_eq!((early.status, early.code().as_str()), (403, "not_started"));
    assert_eq!(early.json()["starts_at"], edge.sale("soon")["starts_at"]);
    for id in ["later", "unarmed"] {
        let path = format!("/v1/sales/{id}/token");
        let refused = Caller::new(&edge).refused("POST", &path, &[("Authorization", &bearer("alice"))], "");
        assert_eq!(refused, (403, "not_started".to_owned()), "{id}");
        assert_eq!(edge.sale(id)["state"], "scheduled");
    }

    for (step, status, code) in [(SaleStep::Paused, 503, "paused"), (SaleStep::Closed, 410, "ended")] {
        edge.step("demo", step);
        let mut caller = Caller::new(&edge);
        let refused = caller.buy("demo", "bob", &fresh, ONE);
        assert_eq!((refused.status, refused.code().as_str()), (status, code));
        let refused =
            caller.refused("POST", "/v1/sales/demo/token", &[("Authorization", &bearer("bob"))], "");
        assert_eq!(refused, (status, code.to_owned()));
        let replay = caller.buy("demo", "alice", &bought, ONE);
        assert_eq!((replay.status, replay.field("idempotent-replayed")), (202, Some("true")));
    }
    let token = edge.token("soon", "alice");
    edge.freeze("soon");
    let refused = Caller::new(&edge).buy("soon", "alice", &token, ONE);
    assert_eq!((refused.status, refused.code().as_str()), (503, "frozen"));
}

#[test]
fn what_the_script_refuses_has_its_members() {
    let edge = Edge::selling(&[]);
    let mut caller = Caller::new(&edge);
    let mut refused = |user: &str, body: &str| {
        let token = edge.token("demo", user);
        let answer = caller.buy("demo", user, &token, body);
        (answer.status, answer.code(), answer.json())
    };
    let (status, code, _) = refused("alice", r#"{"sku":"none","quantity":1}"#);
    assert_eq!((status, code.as_str()), (404, "unknown_sku"));
    let (status, code, body) = refused("alice", r#"{"sku":"phone","quantity":3}"#);
    assert_eq!(
        (status, code.as_str(), &body["held"], &body["limit"]),
        (409, "purchase_limit", &json!(0), &json!(2))
    );
    let split = r#"{"lines":[{"sku":"phone","quantity":2},{"sku":"phone","quantity":1}]}"#;
    assert_eq!(refused("alice", split).1, "purchase_limit");
    assert_eq!(
        edge.buy("demo", "carol", &edge.token("demo", "carol"), r#"{"sku":"case","quantity":4}"#).status,
        202
    );
    let (status, code, _) = refused("alice", r#"{"sku":"case","quantity":2}"#);
    assert_eq!((status, code.as_str()), (409, "sold_out"));
    assert_eq!(
        edge.buy("demo", "bob", &edge.token("demo", "bob"), r#"{"sku":"case","quantity":1}"#).status,
        202
    );
    let (status, code, _) = refused("alice", r#"{"sku":"case","quantity":1}"#);
    assert_eq!((status, code.as_str()), (409, "sold_out"));

    let token = edge.token("demo", "dave");
    assert_eq!(edge.buy("demo", "dave", &token, ONE).status, 202);
    let reused = Caller::new(&edge).buy("demo", "dave", &token, r#"{"sku":"phone","quantity":2}"#);
    assert_eq!((reused.status, reused.code().as_str()), (422, "token_reused"));
}

#[test]
fn an_expired_token_still_tells_of_its_order() {
    let edge = Edge::selling(&[("token.max_seconds", "1")]);
    let (bought, fresh) = (edge.token("demo", "alice"), edge.token("demo", "bob"));
    assert_eq!(edge.buy("demo", "alice", &bought, ONE).status, 202);
    crate::harness::eventually("the token expires", || {
        let refused = edge.buy("demo", "bob", &fresh, r#"{"sku":"none","quantity":1}"#);
        refused.code() == "token_expired" && refused.status == 403
    });
    let replay = edge.buy("demo", "alice", &bought, ONE);
    assert_eq!((replay.status, replay.field("idempotent-replayed")), (202, Some("true")));
}

#[test]
fn each_bucket_counts_what_passed_the_refusals_before_it() {
    let edge = Edge::selling(&[
        ("rate.address.per_second", "1"),
        ("rate.address.burst", "12"),
        ("rate.user.per_second", "1"),
        ("rate.user.burst", "3"),
        ("trusted_proxies.addresses", "[\"127.0.0.0/8\"]"),
    ]);
    let mut caller = Caller::new(&edge);
    let mut from = |address: &str, sale: &str, user: Option<&str>| {
        let bearer = user.map(bearer).unwrap_or_default();
        let mut fields = vec![("X-Forwarded-For", address)];
        if user.is_some() {
            fields.push(("Authorization", &bearer));
        }
        let answer = caller.call("POST", &format!("/v1/sales/{sale}/token"), &fields, "");
        let limit = answer.field("ratelimit").map(str::to_owned);
        (if answer.status == 200 { "ok".to_owned() } else { answer.code() }, limit)
    };
    let told = from("192.0.2.1", "demo", Some("alice"));
    assert_eq!(told, ("ok".to_owned(), Some("\"address\";r=11, \"user\";r=2".to_owned())));
    // Neither an unknown sale nor an unknown user costs the user anything.
    for _ in 0..20 {
        assert_eq!(from("192.0.2.2", "none", Some("alice")).0, "unknown_sale");
    }
    for _ in 0..5 {
        assert_eq!(from("192.0.2.1", "demo", None).0, "unauthenticated");
    }
    assert_eq!(from("192.0.2.1", "demo", Some("alice")).0, "ok");
    assert_eq!(from("192.0.2.2", "demo", Some("alice")).0, "ok");
    let limited = from("192.0.2.1", "demo", Some("alice"));
    assert_eq!((limited.0.as_str(), limited.1.is_some()), ("rate_limited", true));
    assert_eq!(from("192.0.2.1", "demo", Some("bob")).0, "ok");
    // The address bucket is emptied by those who are nobody; then it comes before identity.
    let refused: Vec<String> = (0..8).map(|_| from("192.0.2.1", "demo", None).0).collect();
    assert!(refused.contains(&"rate_limited".to_owned()), "{refused:?}");
    assert_eq!(from("2001:db8::1", "demo", Some("carol")).0, "ok");
    let household: Vec<String> = (0..13).map(|n| from(&format!("2001:db8::{n}"), "demo", None).0).collect();
    assert!(household.contains(&"rate_limited".to_owned()), "{household:?}");
    assert_eq!(from("2001:db8:1::1", "demo", None).0, "unauthenticated");
}

#[test]
fn a_sale_and_the_whole_gate_can_be_limited() {
    let edge = Edge::selling(&[("rate.sale.per_second", "1"), ("rate.sale.burst", "2")]);
    let mut caller = Caller::new(&edge);
    let codes: Vec<u16> = (0..4)
        .map(|n| {
            let bearer = bearer(&format!("user-{n}"));
            caller.call("POST", "/v1/sales/demo/token", &[("Authorization", &bearer)], "").status
        })
        .collect();
    assert_eq!(codes, [200, 200, 429, 429]);
}

#[test]
fn a_lost_redis_is_an_unknown_outcome_and_no_refusal() {
    let mut edge = Edge::selling(&[("redis.deadline_ms", "100")]);
    let token = edge.token("demo", "alice");
    edge.redis.crash();
    let answer = edge.buy("demo", "alice", &token, ONE);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(["unavailable", "frozen"].contains(&answer.code().as_str()));
    crate::harness::eventually("the edge says so", || edge.ready().status == 503);
    assert_eq!(edge.ready().json()["state"], "no_redis");
}

#[test]
fn a_page_of_an_allowed_origin_may_call() {
    let edge = Edge::selling(&[("cors.allowed_origins", "[\"https://shop.example\"]")]);
    let mut caller = Caller::new(&edge);
    let asks = [("Origin", "https://shop.example"), ("Access-Control-Request-Method", "POST")];
    let allowed = caller.call("OPTIONS", "/v1/sales/demo/orders", &asks, "");
    assert_eq!((allowed.status, allowed.field("access-control-allow-methods")), (204, Some("POST")));
    assert_eq!(allowed.field("access-control-allow-origin"), Some("https://shop.example"));
    let shown = caller.call("GET", "/v1/sales/demo", &asks[..1], "");
    assert_eq!(shown.field("access-control-allow-origin"), Some("https://shop.example"));
    let other = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")];
    let refused = caller.call("OPTIONS", "/v1/sales/demo/orders", &other, "");
    assert_eq!((refused.status, refused.field("access-control-allow-origin")), (405, None));
}
