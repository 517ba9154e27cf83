//! JSON Web Tokens (RFC 7519), verified: HS256 with a shared secret, or RS256, ES256 and EdDSA with
//! keys of a JWKS (RFC 7517, 8037). The algorithm is fixed by the key, never by the token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hmac, signature};
use serde::Deserialize;

use crate::clock::Millis;

/// Longest token that is looked at, in bytes.
pub const JWT_MAX: usize = 4096;
/// Clocks may differ by this much, in milliseconds.
const LEEWAY_MS: i64 = 30_000;

/// Why a text is not a good token. All of them are `unauthenticated` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadJwt {
    /// Not three base64url parts of JSON, or too long.
    #[error("the bearer token is not a JWT of at most {JWT_MAX} bytes")]
    Form,
    /// No key of ours has this algorithm and id.
    #[error("the JWT is signed with a key or algorithm that is not accepted here")]
    Key,
    /// The signature is wrong.
    #[error("the JWT's signature is wrong")]
    Signature,
    /// `exp` is missing or over.
    #[error("the JWT has expired or has no exp")]
    Expired,
    /// `nbf` is in the future.
    #[error("the JWT is not valid yet")]
    NotYet,
}

/// The claims that matter here.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Who it is about.
    pub sub: Option<String>,
    /// Who it is for.
    pub aud: Vec<String>,
    /// Role in the back office.
    pub role: Option<String>,
    /// Until when the token is good, leeway included.
    pub good_until: Millis,
}

/// Why keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKeys(String);

#[derive(Debug)]
enum Key {
    Hs256(hmac::Key),
    Public { kid: Option<String>, algorithm: &'static str, key: PublicKey },
}

#[derive(Debug)]
enum PublicKey {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Other(signature::UnparsedPublicKey<Vec<u8>>),
}

/// The keys that tokens are verified with.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawClaims {
    sub: Option<serde_json::Value>,
    aud: Option<serde_json::Value>,
    role: Option<serde_json::Value>,
    exp: Option<f64>,
    nbf: Option<f64>,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Verifier {
    /// Keys from a shared secret (its UTF-8 bytes), a JWKS document, or both.
    pub fn new(secret: Option<&str>, jwks: Option<&str>) -> Result<Self, BadKeys> {
        let mut keys = Vec::new();
        if let Some(secret) = secret {
            keys.push(Key::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())));
        }
        if let Some(jwks) = jwks {
            let jwks: Jwks = serde_json::from_str(jwks)
                .map_err(|error| BadKeys(format!("not a JWKS document: {error}")))?;
            for jwk in &jwks.keys {
                keys.push(jwk.read()?);
            }
        }
        if keys.is_empty() {
            return Err(BadKeys("neither a secret nor a key to verify JWTs with".to_owned()));
        }
        Ok(Self { keys })
    }

    /// Verifies a token at a time.
    pub fn verify(&self, token: &str, now: Millis) -> Result<Claims, BadJwt> {
        if token.len() > JWT_MAX {
            return Err(BadJwt::Form);
        }
        let (signed, mac) = token.rsplit_once('.').ok_or(BadJwt::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(BadJwt::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| BadJwt::Form);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| BadJwt::Form)?;
        if header.crit.is_some() {
            return Err(BadJwt::Form);
        }
        let mac = decode(mac)?;
        let mut tried = false;
        let good = self.keys.iter().filter(|key| key.fits(&header)).any(|key| {
            tried = true;
            key.verifies(signed.as_bytes(), &mac)
        });
        if !good {
            return Err(if tried { BadJwt::Signature } else { BadJwt::Key });
        }
        let claims: RawClaims = serde_json::from_slice(&decode(claims)?).map_err(|_| BadJwt::Form)?;
        claims.judge(now)
    }
}

impl RawClaims {
    fn judge(self, now: Millis) -> Result<Claims, BadJwt> {
        // Far-away times end at the largest i64, which is far enough.
        #[allow(clippy::cast_possible_truncation)]
        let millis = |seconds: f64| (seconds * 1000.0) as i64;
        let exp = self.exp.map(millis).ok_or(BadJwt::Expired)?;
        let good_until = Millis(exp.saturating_add(LEEWAY_MS));
        if now >= good_until {
            return Err(BadJwt::Expired);
        }
        if self.nbf.is_some_and(|nbf| now.0.saturating_add(LEEWAY_MS) < millis(nbf)) {
            return Err(BadJwt::NotYet);
        }
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => Ok(text),
            _ => Err(BadJwt::Form),
        };
        let aud = match self.aud {
            None => Vec::new(),
            Some(serde_json::Value::Array(list)) => list.into_iter().map(text).collect::<Result<_, _>>()?,
            Some(one) => vec![text(one)?],
        };
        let (sub, role) = (self.sub.map(text).transpose()?, self.role.map(text).transpose()?);
        Ok(Claims { sub, aud, role, good_until })
    }
}

impl Key {
    fn fits(&self, header: &Header) -> bool {
        match self {
            Self::Hs256(_) => header.alg == "HS256",
            Self::Public { kid, algorithm, .. } => {
                header.alg == *algorithm && (header.kid.is_none() || header.kid == *kid)
            }
        }
    }

    fn verifies(&self, signed: &[u8], mac: &[u8]) -> bool {
        match self {
            Self::Hs256(key) => hmac::verify(key, signed, mac).is_ok(),
            Self::Public { key: PublicKey::Rsa { n, e }, .. } => {
                let key = signature::RsaPublicKeyComponents { n, e };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed, mac).is_ok()
            }
            Self::Public { key: PublicKey::Other(key), .. } => key.verify(signed, mac).is_ok(),
        }
    }
}

impl Jwk {
    fn read(&self) -> Result<Key, BadKeys> {
        let name = self.kid.clone().unwrap_or_else(|| "without kid".to_owned());
        let part = |what: &str, value: &Option<String>| {
            let text = value.as_deref().ok_or_else(|| BadKeys(format!("key {name}: no {what}")))?;
            let bytes = URL_SAFE_NO_PAD.decode(text);
            bytes.map_err(|_| BadKeys(format!("key {name}: {what} is not base64url")))
        };
        let (algorithm, key) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => ("RS256", PublicKey::Rsa { n: part("n", &self.n)?, e: part("e", &self.e)? }),
            ("EC", Some("P-256")) => {
                let point = [vec![4], part("x", &self.x)?, part("y", &self.y)?].concat();
                let verify = &signature::ECDSA_P256_SHA256_FIXED;
                ("ES256", PublicKey::Other(signature::UnparsedPublicKey::new(verify, point)))
            }
            ("OKP", Some("Ed25519")) => {
                let key = signature::UnparsedPublicKey::new(&signature::ED25519, part("x", &self.x)?);
                ("EdDSA", PublicKey::Other(key))
            }
            (kty, crv) => {
                return Err(BadKeys(format!("key {name}: kty {kty:?} crv {crv:?} is not supported")));
            }
        };
        Ok(Key::Public { kid: self.kid.clone(), algorithm, key })
    }
}

/// Signs claims with HS256: for demo buyers, load generators and tests.
pub fn sign_hs256(secret: &str, claims: &serde_json::Value) -> String {
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mac = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{mac}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "jwt_tests.rs"]
mod tests;
