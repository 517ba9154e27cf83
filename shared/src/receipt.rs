//! The receipt: signed proof that an order was accepted, for the day on which every store that knew the
//! order has lost it.
//!
//! A JWS in its compact form (RFC 7515), signed with Ed25519 (RFC 8037), which anybody verifies with the
//! keys of `GET /v1/receipt-keys`. Signing is deterministic: as long as an order's acceptance stands, it
//! has one receipt. The header is compared, never read: a receipt names its key by beginning as that
//! key's receipts begin, so nobody else chooses an algorithm, a key or a header of his own.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::ids::{OrderId, SaleId, SkuId, UserId};
use crate::lines::Lines;

/// Schema number of the payload.
const VERSION: u16 = 1;
/// Tells a receipt from every other kind of signed token (RFC 8725 §3.11).
const KIND: &str = "sluice-receipt+jws";
/// Bytes of a signing key's seed.
pub const SEED: usize = 32;
/// Longest receipt that is looked at, in bytes; the largest order's has 3,300.
pub const RECEIPT_MAX: usize = 4096;

/// What a receipt says: who was promised what, and where it stands in the sequence of its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The order.
    pub order: OrderId,
    /// Its sale.
    pub sale: SaleId,
    /// Who bought.
    pub user: UserId,
    /// What.
    pub lines: Lines,
    /// Epoch of the reply that took the units.
    pub epoch: u64,
    /// Place in the sequence of its segment.
    pub seq: u64,
    /// When the units were taken, by Redis' clock.
    pub accepted: Millis,
}

/// Why a text is not a receipt of ours. All of them are `receipt_invalid` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReceipt {
    /// Too long.
    #[error("the receipt has more than {RECEIPT_MAX} bytes")]
    Long,
    /// It does not begin as the receipts of any of our keys do.
    #[error("the receipt is not one of a key of this gate")]
    Key,
    /// The signature is not that key's.
    #[error("the receipt's signature is wrong")]
    Signature,
    /// Signed by us, and yet not what this build reads.
    #[error("the receipt cannot be read by this version of the gate")]
    Version,
}

/// Why a text is not a signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// The name does not match.
    #[error("its name must match ^[A-Za-z0-9_-]{{1,32}}$")]
    Name,
    /// The seed is not 32 bytes in base64url.
    #[error("its seed must be {SEED} random bytes as base64url without padding, 43 characters")]
    Seed,
    /// The name is another key's already.
    #[error("its name stands there twice")]
    Twice,
}

/// The keys that sign and verify; the first signs, all verify, so that keys can be rotated. None: there
/// are no receipts.
#[derive(Debug, Default)]
pub struct ReceiptKeys {
    keys: Vec<Key>,
}

/// One key. Ring shows of a pair no more than what is public.
#[derive(Debug)]
struct Key {
    name: String,
    /// How every receipt of this key begins, up to the first dot and with it.
    head: String,
    pair: Ed25519KeyPair,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    kid: &'a str,
    typ: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    v: u16,
    order_id: OrderId,
    sale: SaleId,
    sub: UserId,
    lines: Vec<Line>,
    epoch: u64,
    seq: u64,
    accepted_at: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    sku: SkuId,
    quantity: u32,
}

#[derive(Serialize)]
struct Jwks<'a> {
    keys: Vec<Jwk<'a>>,
}

#[derive(Serialize)]
struct Jwk<'a> {
    kty: &'a str,
    crv: &'a str,
    alg: &'a str,
    #[serde(rename = "use")]
    purpose: &'a str,
    kid: &'a str,
    x: String,
}

impl Receipt {
    fn payload(&self) -> Payload {
        let line = |(sku, quantity): (&SkuId, u32)| Line { sku: sku.clone(), quantity };
        Payload {
            v: VERSION,
            order_id: self.order,
            sale: self.sale.clone(),
            sub: self.user.clone(),
            lines: self.lines.iter().map(line).collect(),
            epoch: self.epoch,
            seq: self.seq,
            accepted_at: self.accepted.to_text(),
        }
    }
}

impl Payload {
    fn read(self) -> Option<Receipt> {
        let lines: Vec<String> =
            self.lines.iter().map(|line| format!("{}={}", line.sku, line.quantity)).collect();
        (self.v == VERSION).then_some(Receipt {
            order: self.order_id,
            sale: self.sale,
            user: self.sub,
            lines: Lines::parse(&lines.join(",")).ok()?,
            epoch: self.epoch,
            seq: self.seq,
            accepted: Millis::from_text(&self.accepted_at)?,
        })
    }
}

impl ReceiptKeys {
    /// Adds a key by its name and its seed (base64url); the first one added signs.
    pub fn add(&mut self, name: &str, seed: &str) -> Result<(), BadKey> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if name.is_empty() || name.len() > 32 || !name.bytes().all(word) {
            return Err(BadKey::Name);
        }
        if self.keys.iter().any(|key| key.name == name) {
            return Err(BadKey::Twice);
        }
        let seed = URL_SAFE_NO_PAD.decode(seed).map_err(|_| BadKey::Seed)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| BadKey::Seed)?;
        let header = Header { alg: "EdDSA", kid: name, typ: KIND };
        let head = format!("{}.", URL_SAFE_NO_PAD.encode(json(&header)));
        self.keys.push(Key { name: name.to_owned(), head, pair });
        Ok(())
    }

    /// Whether there are none, and so no receipts.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Signs a receipt; `None` without a key.
    pub fn sign(&self, receipt: &Receipt) -> Option<String> {
        let key = self.keys.first()?;
        let payload = json(&receipt.payload());
        let mut text = String::with_capacity(key.head.len() + payload.len() * 4 / 3 + 96);
        text.push_str(&key.head);
        URL_SAFE_NO_PAD.encode_string(&payload, &mut text);
        let signature = key.pair.sign(text.as_bytes());
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        Some(text)
    }

    /// Reads a receipt that one of the keys has signed.
    pub fn verify(&self, text: &str) -> Result<Receipt, BadReceipt> {
        if text.len() > RECEIPT_MAX {
            return Err(BadReceipt::Long);
        }
        let key = self.keys.iter().find(|key| text.starts_with(&key.head)).ok_or(BadReceipt::Key)?;
        let (signed, signature) = text.rsplit_once('.').ok_or(BadReceipt::Signature)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| BadReceipt::Signature)?;
        UnparsedPublicKey::new(&ED25519, key.pair.public_key())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| BadReceipt::Signature)?;
        let payload = signed.get(key.head.len()..).ok_or(BadReceipt::Version)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| BadReceipt::Version)?;
        let payload: Payload = serde_json::from_slice(&payload).map_err(|_| BadReceipt::Version)?;
        payload.read().ok_or(BadReceipt::Version)
    }

    /// The public keys as a JWK Set (RFC 7517).
    pub fn jwks(&self) -> Vec<u8> {
        json(&Jwks { keys: self.keys.iter().map(Key::jwk).collect() })
    }
}

impl Key {
    fn jwk(&self) -> Jwk<'_> {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        Jwk { kty: "OKP", crv: "Ed25519", alg: "EdDSA", purpose: "sig", kid: &self.name, x }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Texts, numbers and lists always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "receipt_tests.rs"]
mod tests;
