//! Receipts over real sockets: what they prove, and what a claim by one is worth.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Segment;
use sluice_shared::receipt::{Receipt, ReceiptKeys};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleStep;

use crate::client::{Answer, Echo};
use crate::harness::{Edge, bearer};

const ONE: &str = r#"{"sku":"phone","quantity":1}"#;
const SEED: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
const KEYS: &str = r#"["r1:nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"]"#;
const CLAIM: &str = "/v1/orders/claim";

/// An edge that gives receipts, and what stands behind it for the back office.
fn gate() -> (Edge, Echo) {
    let books = Echo::start();
    let address = format!("{:?}", books.address.to_string());
    (Edge::selling(&[("receipt.keys", KEYS), ("api.address", &address)]), books)
}

fn keys() -> ReceiptKeys {
    let mut keys = ReceiptKeys::default();
    keys.add("r1", SEED).unwrap();
    keys
}

/// Buys one phone; the receipt as text and as it reads.
fn bought(edge: &Edge, user: &str) -> (String, Receipt) {
    let answer = edge.buy("demo", user, &edge.token("demo", user), ONE);
    assert_eq!(answer.status, 202, "{answer:?}");
    let text = answer.json()["receipt"].as_str().expect("a receipt").to_owned();
    let receipt = keys().verify(&text).unwrap();
    (text, receipt)
}

fn claim(edge: &Edge, user: &str, receipt: &str) -> Answer {
    let body = json!({ "receipt": receipt }).to_string();
    edge.connect().call("POST", CLAIM, &[("Authorization", &bearer(user))], &body)
}

fn segment() -> Segment {
    Segment::new(SaleId::parse("demo").unwrap(), 0)
}

fn left(edge: &Edge) -> i64 {
    edge.run(cmd("HGET").arg(segment().stock()).arg("phone"))
}

/// Both stores lose an order; somebody else's stays, so that the segment is not taken for lost.
fn lose(edge: &Edge, books: &Echo, order: &OrderId, user: &str) {
    let _: i64 = edge.run(cmd("HDEL").arg(segment().orders()).arg(order.field()).arg(format!("@{user}")));
    let _: i64 = edge.run(cmd("HINCRBY").arg(segment().stock()).arg("phone").arg(1));
    books.empty.store(true, Ordering::Relaxed);
}

#[test]
fn an_accepted_order_has_a_receipt_that_the_published_keys_verify() {
    let (mut edge, _books) = gate();
    let token = edge.token("demo", "alice");
    let told = edge.buy("demo", "alice", &token, ONE).json();
    let text = told["receipt"].as_str().unwrap();
    let published = edge.connect().call("GET", "/v1/receipt-keys", &[], "");
    assert_eq!((published.status, published.field("content-type")), (200, Some("application/json")));
    let key = published.json()["keys"][0].clone();
    assert_eq!((&key["kid"], &key["crv"], key.get("d")), (&json!("r1"), &json!("Ed25519"), None));
    // With nothing of ours, as a shop would: decode, look the key up, verify.
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let parts: Vec<&str> = text.split('.').collect();
    let header: Value = serde_json::from_slice(&decode(parts[0])).unwrap();
    assert_eq!((&header["alg"], &header["kid"]), (&json!("EdDSA"), &key["kid"]));
    let public = UnparsedPublicKey::new(&ED25519, decode(key["x"].as_str().unwrap()));
    let signed = format!("{}.{}", parts[0], parts[1]);
    public.verify(signed.as_bytes(), &decode(parts[2])).unwrap();
    let said: Value = serde_json::from_slice(&decode(parts[1])).unwrap();
    assert_eq!(
        (&said["order_id"], &said["sub"], &said["sale"]),
        (&told["order_id"], &json!("alice"), &json!("demo"))
    );
    assert_eq!(said["lines"], json!([{"sku": "phone", "quantity": 1}]));
    assert_eq!((&said["epoch"], &said["seq"]), (&json!(1), &json!(1)));
    let record = edge
        .run::<String>(cmd("HGET").arg(segment().orders()).arg(keys().verify(text).unwrap().order.field()));
    assert_eq!(record.split('|').nth(3).unwrap(), keys().verify(text).unwrap().accepted.0.to_string());
    // Again, and while nothing is sold: the same.
    let again = edge.buy("demo", "alice", &token, ONE);
    assert_eq!(
        (again.field("idempotent-replayed"), &again.json()["receipt"]),
        (Some("true"), &told["receipt"])
    );
    edge.step("demo", SaleStep::Paused);
    assert_eq!(edge.buy("demo", "alice", &token, ONE).json()["receipt"], told["receipt"]);
    let head = edge.connect().call("HEAD", "/v1/receipt-keys", &[], "");
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[test]
fn a_gate_without_keys_gives_no_receipt_and_honours_none() {
    let edge = Edge::selling(&[]);
    let told = edge.buy("demo", "alice", &edge.token("demo", "alice"), ONE);
    assert_eq!((told.status, told.json().get("receipt")), (202, None));
    assert_eq!(edge.connect().call("GET", "/v1/receipt-keys", &[], "").json(), json!({"keys": []}));
    assert_eq!(claim(&edge, "alice", "a.b.c").code(), "receipt_invalid");
}

#[test]
fn a_claim_shows_the_order_while_any_store_knows_it() {
    let (edge, books) = gate();
    let (text, receipt) = bought(&edge, "alice");
    let (path, alice) = (format!("/v1/orders/{}", receipt.order), bearer("alice"));
    let shown = edge.connect().call("GET", &path, &[("Authorization", &alice)], "");
    let claimed = claim(&edge, "alice", &text);
    assert_eq!((claimed.status, claimed.json()), (200, shown.json()));
    // Redis has forgotten it, the books have not.
    let _: i64 = edge.run(cmd("HDEL").arg(segment().orders()).arg(receipt.order.field()));
    let claimed = claim(&edge, "alice", &text);
    assert_eq!((claimed.status, &claimed.json()["state"]), (200, &json!("paid")));
    let asked = books.orders().pop().unwrap();
    assert_eq!((asked.method.as_str(), asked.path.clone()), ("GET", format!("/internal{path}")));
    assert_eq!(asked.all("x-sluice-user"), ["alice"]);
    assert_eq!(asked.all("x-request-id"), [claimed.field("x-request-id").unwrap()]);
    // Whether they have it cannot be told: nothing is taken.
    let before = left(&edge);
    books.away.store(true, Ordering::Relaxed);
    assert_eq!(claim(&edge, "alice", &text).code(), "unavailable");
    assert_eq!(left(&edge), before);
}

#[test]
fn a_lost_order_is_taken_again_once_by_its_receipt() {
    let (edge, books) = gate();
    let ((text, receipt), _) = (bought(&edge, "alice"), bought(&edge, "bob"));
    lose(&edge, &books, &receipt.order, "alice");
    assert_eq!(left(&edge), 99);
    for _ in 0..3 {
        let claimed = claim(&edge, "alice", &text);
        let body = claimed.json();
        assert_eq!((claimed.status, &body["order_id"]), (200, &json!(receipt.order)), "{body}");
        assert_eq!(
            (&body["state"], &body["lines"]),
            (&json!("accepted"), &json!([{"sku": "phone", "quantity": 1}]))
        );
        assert_eq!(left(&edge), 98);
    }
    let mark: String = edge.run(cmd("HGET").arg(segment().orders()).arg("@alice"));
    assert_eq!(mark, "phone=1");
    // It stands where the script put it now.
    let record: String = edge.run(cmd("HGET").arg(segment().orders()).arg(receipt.order.field()));
    assert_eq!(record.split('|').nth(2), Some("3"));
    assert!(edge.log().contains("taken again by its receipt"), "{}", edge.log());
    let metrics = crate::client::Connection::open(edge.admin).call("GET", "/metrics", &[], "");
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(metrics.contains("sluice_http_accepted_total{kind=\"honoured\"} 1\n"), "{metrics}");
}

#[test]
fn a_claim_that_the_sale_refuses_is_in_the_books_before_the_buyer_is_told() {
    let (mut edge, books) = gate();
    let ((text, receipt), _) = (bought(&edge, "alice"), bought(&edge, "bob"));
    lose(&edge, &books, &receipt.order, "alice");
    let refused = |edge: &Edge, reason: &str| {
        let claimed = claim(edge, "alice", &text);
        assert_eq!((claimed.status, claimed.code().as_str()), (409, "not_honoured"));
        let noted = books.orders().pop().unwrap();
        assert_eq!((noted.method.as_str(), noted.all("x-sluice-user")), ("POST", vec!["alice"]));
        assert_eq!(noted.path, format!("/internal/v1/orders/{}/claim", receipt.order));
        let body: Value = serde_json::from_str(&noted.body).unwrap();
        let expected = json!({
            "sale": "demo", "lines": "phone=1", "epoch": 1, "seq": 1,
            "accepted_at": receipt.accepted.to_text(), "reason": reason,
        });
        assert_eq!(body, expected);
    };
    let stock = |edge: &Edge, n: i64| {
        let _: i64 = edge.run(cmd("HSET").arg(segment().stock()).arg("phone").arg(n));
    };
    stock(&edge, 0);
    refused(&edge, "sold_out");
    stock(&edge, 5);
    // The claim of one who holds all that he may already.
    let (_, more) = (bought(&edge, "alice"), bought(&edge, "alice"));
    assert_eq!(more.1.user.as_str(), "alice");
    refused(&edge, "purchase_limit");
    edge.step("demo", SaleStep::Paused);
    refused(&edge, "paused");
    edge.step("demo", SaleStep::Closed);
    refused(&edge, "ended");
    // What the books cannot keep is not refused for good.
    books.away.store(true, Ordering::Relaxed);
    assert_eq!(claim(&edge, "alice", &text).code(), "unavailable");
    books.away.store(false, Ordering::Relaxed);
    edge.freeze("demo");
    assert_eq!(claim(&edge, "alice", &text).code(), "frozen");
}

#[test]
fn a_claim_is_judged_by_identity_then_body_then_receipt() {
    let (edge, books) = gate();
    let (text, receipt) = bought(&edge, "alice");
    let good = json!({ "receipt": text }).to_string();
    let call = |fields: &[(&str, &str)], body: &str| {
        let mut connection = edge.connect();
        let answer = connection.call("POST", CLAIM, fields, body);
        (answer.status, answer.code())
    };
    assert_eq!(call(&[], &good), (401, "unauthenticated".to_owned()));
    let alice = bearer("alice");
    let by_alice = [("Authorization", alice.as_str())];
    for body in
        ["", "{", "[]", "{}", r#"{"receipt":1}"#, r#"{"receipt":"a","receipt":"b"}"#, r#"{"recipe":"a"}"#]
    {
        assert_eq!(call(&by_alice, body), (400, "bad_request".to_owned()), "{body}");
    }
    let large = json!({ "receipt": "a".repeat(5000) }).to_string();
    assert_eq!(call(&by_alice, &large), (413, "body_too_large".to_owned()));
    let plain = [("Authorization", alice.as_str()), ("Content-Type", "text/plain")];
    assert_eq!(call(&plain, &good), (415, "unsupported_media_type".to_owned()));
    let mut other = ReceiptKeys::default();
    other.add("r1", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8").unwrap();
    let forged = other.sign(&receipt).unwrap();
    let unsigned = format!("{}.", text.rsplit_once('.').unwrap().0);
    for bad in ["", "a.b.c", &text[1..], &text[..text.len() - 1], &forged, &unsigned, &"a".repeat(4000)] {
        let refused = claim(&edge, "alice", bad);
        assert_eq!((refused.status, refused.code().as_str()), (400, "receipt_invalid"), "{bad}");
    }
    let refused = claim(&edge, "mallory", &text);
    assert_eq!((refused.status, refused.code().as_str()), (400, "receipt_invalid"));
    assert!(books.orders().is_empty(), "nobody behind the gate was asked");
    assert_eq!(left(&edge), 99);
}
