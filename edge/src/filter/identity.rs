//! Who the buyer is: a verified JWT, remembered until it expires.

use http::header::AUTHORIZATION;
use quick_cache::sync::Cache;
use siphasher::sip128::SipHasher13;
use sluice_shared::clock::Millis;
use sluice_shared::ids::UserId;
use sluice_shared::jwt::{JWT_MAX, Verifier};
use sluice_shared::verdict::{Code, Rejection};

use crate::fields::Fields;

/// What a token is remembered by: SipHash-1-3 of 128 bits under a key of this process' own. Nobody
/// who does not know the key can make two tokens that share one.
type Digest = u128;

#[derive(Debug, Clone)]
struct Known {
    user: UserId,
    good_until: Millis,
}

/// Verifies bearer tokens. Only good ones are remembered, by their digest, so a flood of forged
/// ones fills nothing, and what is remembered has a size.
#[derive(Debug)]
pub struct Identity {
    verifier: Verifier,
    hasher: SipHasher13,
    known: Cache<Digest, Known>,
}

impl Identity {
    /// With keys, and how many tokens to remember.
    pub fn new(verifier: Verifier, capacity: usize) -> Self {
        let hasher = SipHasher13::new_with_key(&rand::random());
        Self { verifier, hasher, known: Cache::new(capacity) }
    }

    /// The user of a request's bearer token.
    pub fn user(&self, fields: &(impl Fields + ?Sized), now: Millis) -> Result<UserId, Rejection> {
        let refuse = |detail: String| Rejection::new(Code::Unauthenticated, detail);
        let token = bearer(fields)
            .ok_or_else(|| Rejection::new(Code::Unauthenticated, "send Authorization: Bearer with a JWT"))?;
        if token.len() > JWT_MAX {
            return Err(refuse(format!("the JWT is longer than {JWT_MAX} bytes")));
        }
        let key = self.hasher.hash(token.as_bytes()).as_u128();
        if let Some(known) = self.known.get(&key) {
            return if now < known.good_until {
                Ok(known.user)
            } else {
                Err(Rejection::new(Code::Unauthenticated, "the JWT has expired"))
            };
        }
        let claims = self.verifier.verify(token, now).map_err(|bad| refuse(bad.to_string()))?;
        let user = claims.sub.as_deref().and_then(|sub| UserId::parse(sub).ok());
        let user = user.ok_or_else(|| {
            Rejection::new(Code::Unauthenticated, "the JWT's sub must match ^[!-~]{1,128}$")
        })?;
        self.known.insert(key, Known { user: user.clone(), good_until: claims.good_until });
        Ok(user)
    }

    /// Tokens remembered.
    pub fn known(&self) -> u64 {
        self.known.len() as u64
    }
}

/// The token of `Authorization: Bearer …`; the scheme's case does not matter (RFC 9110 §11.1).
pub fn bearer(fields: &(impl Fields + ?Sized)) -> Option<&str> {
    let value = std::str::from_utf8(fields.field(AUTHORIZATION.as_str())?).ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_start_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use serde_json::json;
    use sluice_shared::jwt::sign_hs256;

    const SECRET: &str = "0123456789abcdef";

    fn identity() -> Identity {
        Identity::new(Verifier::new(Some(SECRET), None).unwrap(), 100)
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_remembered_token_expires_all_the_same() {
        let identity = identity();
        let token = sign_hs256(SECRET, &json!({"sub": "alice", "exp": 1000}));
        let headers = headers(&format!("bearer {token}"));
        for now in [0, 1_000_000, 1_029_999] {
            assert_eq!(identity.user(&headers, Millis(now)).unwrap().as_str(), "alice");
        }
        let refused = identity.user(&headers, Millis(1_030_000)).unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated);
    }

    #[test]
    fn only_a_good_token_names_a_user() {
        let identity = identity();
        let forged = sign_hs256("another secret, long", &json!({"sub": "alice", "exp": 1000}));
        let blank = sign_hs256(SECRET, &json!({"sub": "a b", "exp": 1000}));
        let none = sign_hs256(SECRET, &json!({"exp": 1000}));
        for bad in [&forged, &blank, &none, "", "x"] {
            let refused = identity.user(&headers(&format!("Bearer {bad}")), Millis(0));
            assert_eq!(refused.unwrap_err().code, Code::Unauthenticated, "{bad}");
        }
        assert!(identity.user(&headers("Basic abc"), Millis(0)).is_err());
        assert!(identity.user(&HeaderMap::new(), Millis(0)).is_err());
        assert_eq!(identity.known(), 0);
    }
}
