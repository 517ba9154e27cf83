use serde_json::{Value, json};

use super::*;

const SEED_1: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
const SEED_2: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

fn keys(all: &[(&str, &str)]) -> ReceiptKeys {
    let mut keys = ReceiptKeys::default();
    for (name, seed) in all {
        keys.add(name, seed).unwrap();
    }
    keys
}

fn receipt() -> Receipt {
    Receipt {
        order: OrderId::parse("0190163d8694739b9f8a1c5c2b2b2b2b-1-0").unwrap(),
        sale: SaleId::parse("demo").unwrap(),
        user: UserId::parse("alice\"\\").unwrap(),
        lines: Lines::parse("case=20000,phone=1").unwrap(),
        epoch: 7,
        seq: 12,
        accepted: Millis(1_795_233_600_123),
    }
}

fn part(text: &str, at: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

/// A receipt with this header and payload, signed by the first key.
fn forged(header: &Value, payload: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(payload));
    let pair = Ed25519KeyPair::from_seed_unchecked(&URL_SAFE_NO_PAD.decode(SEED_1).unwrap()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes())))
}

#[test]
fn a_receipt_says_what_was_signed_and_is_the_same_each_time() {
    let keys = keys(&[("r1", SEED_1)]);
    let text = keys.sign(&receipt()).unwrap();
    assert_eq!(keys.verify(&text), Ok(receipt()));
    assert_eq!(keys.sign(&receipt()).unwrap(), text);
    assert_eq!(part(&text, 0), json!({"alg": "EdDSA", "kid": "r1", "typ": "sluice-receipt+jws"}));
    let said = json!({
        "v": 1, "order_id": "0190163d8694739b9f8a1c5c2b2b2b2b-1-0", "sale": "demo", "sub": "alice\"\\",
        "lines": [{"sku": "case", "quantity": 20000}, {"sku": "phone", "quantity": 1}],
        "epoch": 7, "seq": 12, "accepted_at": "2026-11-21T04:00:00.123Z",
    });
    assert_eq!(part(&text, 1), said);
    let url_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    assert!(text.bytes().all(url_safe));
}

/// RFC 8037, appendix A: the key of this seed.
#[test]
fn the_key_set_shows_the_public_half_of_each_key_and_no_more() {
    let keys = keys(&[("r1", SEED_1), ("r0", SEED_2)]);
    let set: Value = serde_json::from_slice(&keys.jwks()).unwrap();
    let first = json!({
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "r1",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    });
    assert_eq!((&set["keys"][0], &set["keys"][1]["kid"]), (&first, &json!("r0")));
    let debug = format!("{keys:?}");
    for seed in [SEED_1, SEED_2] {
        let bytes = URL_SAFE_NO_PAD.decode(seed).unwrap();
        assert!(
            !debug.contains(seed)
                && !debug.contains(&hex::encode(&bytes))
                && !debug.contains(&format!("{bytes:?}"))
        );
    }
    assert_eq!(ReceiptKeys::default().jwks(), b"{\"keys\":[]}");
}

#[test]
fn no_byte_of_a_receipt_can_be_changed_and_none_left_out() {
    let keys = keys(&[("r1", SEED_1)]);
    let text = keys.sign(&receipt()).unwrap();
    for at in 0..text.len() {
        for other in [b'A', b'B', b'.', b'-', b'='] {
            let mut bytes = text.clone().into_bytes();
            if bytes[at] == other {
                continue;
            }
            bytes[at] = other;
            assert!(keys.verify(std::str::from_utf8(&bytes).unwrap()).is_err(), "byte {at}");
        }
        assert!(
            keys.verify(&text[..at]).is_err()
                && keys.verify(&format!("{}{}", &text[..at], &text[at + 1..])).is_err()
        );
    }
    for more in [format!("{text}="), format!("{text}A"), format!(" {text}"), format!("{text}.{text}")] {
        assert!(keys.verify(&more).is_err(), "{more}");
    }
}

#[test]
fn a_header_of_anybody_elses_is_refused_whatever_signs_it() {
    let keys = keys(&[("r1", SEED_1)]);
    let (good, payload) = (json!({"alg": "EdDSA", "kid": "r1", "typ": "sluice-receipt+jws"}), {
        let text = keys.sign(&receipt()).unwrap();
        part(&text, 1)
    });
    assert_eq!(keys.verify(&forged(&good, &payload)), Ok(receipt()));
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let with = |name: &str, value: Value| {
        let mut header = good.clone();
        header[name] = value;
        header
    };
    for header in [
        with("alg", json!("none")),
        with("alg", json!("HS256")),
        with("alg", json!("ES256")),
        with("kid", json!("r2")),
        with("typ", json!("JWT")),
        with("jwk", jwk),
        with("jku", json!("https://mallory.example/keys")),
        with("x5u", json!("https://mallory.example/cert")),
        with("crit", json!(["exp"])),
        json!({"alg": "EdDSA"}),
        json!({}),
    ] {
        assert_eq!(keys.verify(&forged(&header, &payload)), Err(BadReceipt::Key), "{header}");
    }
    let text = keys.sign(&receipt()).unwrap();
    let (signed, _) = text.rsplit_once('.').unwrap();
    let zero = URL_SAFE_NO_PAD.encode([0; 64]);
    for signature in ["", zero.as_str(), SEED_1] {
        assert_eq!(keys.verify(&format!("{signed}.{signature}")), Err(BadReceipt::Signature));
    }
    for nothing in ["", ".", "..", "a.b.c", signed] {
        assert!(keys.verify(nothing).is_err(), "{nothing}");
    }
}

#[test]
fn what_a_later_version_says_is_not_guessed_at() {
    let keys = keys(&[("r1", SEED_1)]);
    let text = keys.sign(&receipt()).unwrap();
    let (header, payload) = (part(&text, 0), part(&text, 1));
    let with = |name: &str, value: Value| {
        let mut payload = payload.clone();
        payload[name] = value;
        forged(&header, &payload)
    };
    for text in [
        with("v", json!(2)),
        with("v", json!(null)),
        with("order_id", json!("x")),
        with("lines", json!([])),
        with("lines", json!([{"sku": "b", "quantity": 1}, {"sku": "a", "quantity": 1}])),
        with("epoch", json!(-1)),
        with("accepted_at", json!("yesterday")),
        forged(&header, &json!([])),
    ] {
        assert_eq!(keys.verify(&text), Err(BadReceipt::Version), "{text}");
    }
}

#[test]
fn keys_are_rotated_without_losing_a_receipt() {
    let (old, both) = (keys(&[("r1", SEED_1)]), keys(&[("r2", SEED_2), ("r1", SEED_1)]));
    let (before, after) = (old.sign(&receipt()).unwrap(), both.sign(&receipt()).unwrap());
    assert_eq!(part(&after, 0)["kid"], "r2");
    assert_eq!((both.verify(&before), both.verify(&after)), (Ok(receipt()), Ok(receipt())));
    assert_eq!(old.verify(&after), Err(BadReceipt::Key));
    // The same name with another seed: another key.
    assert_eq!(keys(&[("r1", SEED_2)]).verify(&before), Err(BadReceipt::Signature));
    let none = ReceiptKeys::default();
    assert_eq!((none.sign(&receipt()), none.verify(&before)), (None, Err(BadReceipt::Key)));
}

#[test]
fn a_key_needs_a_name_of_its_own_and_a_whole_seed() {
    let mut keys = keys(&[("r1", SEED_1)]);
    for name in ["", "a b", "é", "a:b", &"a".repeat(33)] {
        assert_eq!(keys.add(name, SEED_2), Err(BadKey::Name), "{name}");
    }
    assert_eq!(keys.add("r1", SEED_2), Err(BadKey::Twice));
    for seed in ["", "short", &SEED_2[1..], &format!("{SEED_2}="), &SEED_2.replace('A', "+")] {
        assert_eq!(keys.add("r2", seed), Err(BadKey::Seed), "{seed}");
    }
    assert_eq!(keys.add("r2", SEED_2), Ok(()));
}

#[test]
fn the_largest_order_has_a_receipt_that_a_body_holds() {
    let keys = keys(&[(&"k".repeat(32), SEED_1)]);
    let line = |n: usize| format!("{n:02}{}=200000", "a".repeat(62));
    let lines: Vec<String> = (0..20).map(line).collect();
    let large = Receipt {
        order: OrderId { uuid: [0xff; 16], sale: u32::MAX, segment: u16::MAX },
        sale: SaleId::parse(&"s".repeat(64)).unwrap(),
        user: UserId::parse(&"\"".repeat(128)).unwrap(),
        lines: Lines::parse(&lines.join(",")).unwrap(),
        epoch: u64::MAX,
        seq: u64::MAX,
        ..receipt()
    };
    let text = keys.sign(&large).unwrap();
    assert_eq!(keys.verify(&text), Ok(large));
    assert!(text.len() + r#"{"receipt":""}"#.len() <= RECEIPT_MAX, "{}", text.len());
    assert_eq!(keys.verify(&format!("{text}{}", "A".repeat(RECEIPT_MAX))), Err(BadReceipt::Long));
}

proptest::proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in ".{0,300}", payload in proptest::collection::vec(0_u8.., 0..200)) {
        let keys = keys(&[("r1", SEED_1)]);
        assert!(keys.verify(&text).is_err());
        // Signed by us, and yet anything.
        let signed = format!("{}{}", keys.keys[0].head, URL_SAFE_NO_PAD.encode(&payload));
        let signature = URL_SAFE_NO_PAD.encode(keys.keys[0].pair.sign(signed.as_bytes()));
        assert_eq!(keys.verify(&format!("{signed}.{signature}")), Err(BadReceipt::Version));
        assert!(keys.verify(&format!("{signed}{text}.{signature}")).is_err());
    }
}
