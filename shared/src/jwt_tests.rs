use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::json;

use super::*;

const NOW: Millis = Millis(1_000_000_000);

fn token_of(header: &serde_json::Value, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let header = URL_SAFE_NO_PAD.encode(header.to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(sign(signed.as_bytes())))
}

fn hs256(claims: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    token_of(&json!({"alg": "HS256", "kid": "ignored"}), claims, |signed| {
        hmac::sign(&key, signed).as_ref().to_vec()
    })
}

fn verifier() -> Verifier {
    Verifier::new(Some("secret"), None).unwrap()
}

#[test]
fn a_good_token_tells_who_it_is_about() {
    let claims = verifier().verify(&hs256(r#"{"sub":"alice","exp":1000000.5}"#), NOW).unwrap();
    assert_eq!(claims.sub.as_deref(), Some("alice"));
    assert_eq!(claims.good_until, Millis(1_000_030_500));
}

#[test]
fn time_is_judged_with_30_seconds_of_leeway() {
    for (claims, answer) in [
        (r#"{"exp":999971}"#, None),
        (r#"{"exp":999970}"#, Some(BadJwt::Expired)),
        (r#"{"sub":"a"}"#, Some(BadJwt::Expired)),
        (r#"{"exp":2000000,"nbf":1000030}"#, None),
        (r#"{"exp":2000000,"nbf":1000031}"#, Some(BadJwt::NotYet)),
        (r#"{"exp":253402300799}"#, None),
    ] {
        assert_eq!(verifier().verify(&hs256(claims), NOW).err(), answer, "{claims}");
    }
}

#[test]
fn claims_of_the_wrong_type_are_no_claims() {
    for claims in [
        r#"{"sub":["a"],"exp":2000000}"#,
        r#"{"sub":7,"exp":2000000}"#,
        r#"{"sub":"a","exp":"2000000"}"#,
        r#"{"sub":"a","exp":1e400}"#,
        r#"{"sub":"a","sub":"b","exp":2000000}"#,
        r#"{"exp":2000000,"exp":3000000}"#,
        "[]",
        "",
    ] {
        assert_eq!(verifier().verify(&hs256(claims), NOW).err(), Some(BadJwt::Form), "{claims}");
    }
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    let claims = r#"{"sub":"a","exp":2000000}"#;
    for alg in ["none", "None", "nOnE", "HS512", "RS256", ""] {
        let token = token_of(&json!({"alg": alg}), claims, |_| Vec::new());
        assert_eq!(verifier().verify(&token, NOW).err(), Some(BadJwt::Key), "{alg}");
    }
    let embedded = json!({"alg": "HS256", "jwk": {"kty": "oct"}, "jku": "http://x"});
    let token = token_of(&embedded, claims, |_| vec![0; 32]);
    assert_eq!(verifier().verify(&token, NOW).err(), Some(BadJwt::Signature));
    let critical = token_of(&json!({"alg": "HS256", "crit": ["x"]}), claims, |_| vec![0; 32]);
    assert_eq!(verifier().verify(&critical, NOW).err(), Some(BadJwt::Form));
}

#[test]
fn a_torn_or_changed_token_is_refused() {
    let good = hs256(r#"{"sub":"a","exp":2000000}"#);
    assert!(verifier().verify(&good, NOW).is_ok());
    for bad in [&good[1..], &good[..good.len() - 1], "a.b", "..", "", &"a".repeat(5_000)] {
        assert!(verifier().verify(bad, NOW).is_err(), "{bad}");
    }
}

#[test]
fn keys_of_a_jwks_verify_by_algorithm_and_id() {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let ed = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let ec = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
    let point = ec.public_key().as_ref();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwks = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": text(ed.public_key().as_ref())},
        {"kty": "EC", "crv": "P-256", "kid": "ec", "x": text(&point[1..33]), "y": text(&point[33..])},
    ]});
    let verifier = Verifier::new(None, Some(&jwks.to_string())).unwrap();
    let claims = r#"{"sub":"a","exp":2000000}"#;
    let sign_ec = |signed: &[u8]| ec.sign(&random, signed).unwrap().as_ref().to_vec();
    let sign_ed = |signed: &[u8]| ed.sign(signed).as_ref().to_vec();
    let es256 = token_of(&json!({"alg": "ES256", "kid": "ec"}), claims, sign_ec);
    let eddsa = token_of(&json!({"alg": "EdDSA"}), claims, sign_ed);
    assert!(verifier.verify(&es256, NOW).is_ok());
    assert!(verifier.verify(&eddsa, NOW).is_ok());
    let other = token_of(&json!({"alg": "ES256", "kid": "ed"}), claims, sign_ec);
    assert_eq!(verifier.verify(&other, NOW).err(), Some(BadJwt::Key));
    let zero = token_of(&json!({"alg": "ES256", "kid": "ec"}), claims, |_| vec![0; 64]);
    assert_eq!(verifier.verify(&zero, NOW).err(), Some(BadJwt::Signature));
    let public_as_secret = token_of(&json!({"alg": "HS256"}), claims, |signed| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, point), signed).as_ref().to_vec()
    });
    assert_eq!(verifier.verify(&public_as_secret, NOW).err(), Some(BadJwt::Key));
}
