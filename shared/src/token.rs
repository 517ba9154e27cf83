//! The sale token: proof that this user was given this order id for this sale, until some time.
//!
//! Stateless: nothing is stored when it is issued, and the order id inside is the idempotency key
//! that makes it single-use. Layout before base64url: version 1 · key tag · expiry (u48, ms) ·
//! UUID (16) · HMAC-SHA256 truncated to 128 bit (RFC 2104 §5), 40 bytes in all.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::clock::Millis;
use crate::ids::{OrderId, SaleId, UserId};
use crate::place::segment_of;

const VERSION: u8 = 1;
const BODY: usize = 24;
const MAC: usize = 16;
/// Length of a token in characters.
pub const TOKEN_CHARS: usize = 54;

/// The keys that sign and verify; the first signs, all verify, so that keys can be rotated.
#[derive(Debug)]
pub struct TokenKeys {
    keys: Vec<(u8, hmac::Key)>,
}

/// What a good token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The order that the token stands for.
    pub order: OrderId,
    /// Until when it opens the gate; a replay is answered after that too.
    pub expires: Millis,
}

impl TokenKeys {
    /// Keys from their secrets (UTF-8 bytes), the signing one first. At least one; two live at a
    /// time are enough for a rotation.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let key = |secret: &[u8]| {
            let tag = ring::digest::digest(&ring::digest::SHA256, secret).as_ref()[0];
            (tag, hmac::Key::new(hmac::HMAC_SHA256, secret))
        };
        Self { keys: secrets.into_iter().map(key).collect() }
    }

    /// Issues a token and mints its order. `None` without a key.
    pub fn issue(
        &self,
        sale: &SaleId,
        number: u32,
        segments: u16,
        user: &UserId,
        expires: Millis,
    ) -> Option<(String, OrderId)> {
        let (tag, key) = self.keys.first()?;
        let order = OrderId::mint(number, segment_of(user, segments));
        let mut token = [0_u8; BODY + MAC];
        token[0] = VERSION;
        token[1] = *tag;
        token[2..8].copy_from_slice(&expires.0.to_be_bytes()[2..]);
        token[8..BODY].copy_from_slice(&order.uuid);
        let mac = mac(key, &token[..BODY], sale, user);
        token[BODY..].copy_from_slice(&mac.as_ref()[..MAC]);
        Some((URL_SAFE_NO_PAD.encode(token), order))
    }

    /// Verifies a token for this sale and user; `None` when it is not one, or another's.
    /// Expiry is for the caller to judge.
    pub fn verify(
        &self,
        token: &str,
        sale: &SaleId,
        number: u32,
        segments: u16,
        user: &UserId,
    ) -> Option<Claim> {
        let mut bytes = [0_u8; BODY + MAC];
        if token.len() != TOKEN_CHARS
            || URL_SAFE_NO_PAD.decode_slice(token, &mut bytes).ok()? != BODY + MAC
            || bytes[0] != VERSION
        {
            return None;
        }
        let good = self.keys.iter().filter(|(tag, _)| *tag == bytes[1]).any(|(_, key)| {
            let expected = mac(key, &bytes[..BODY], sale, user);
            same(&expected.as_ref()[..MAC], &bytes[BODY..])
        });
        if !good {
            return None;
        }
        let mut expires = [0_u8; 8];
        expires[2..].copy_from_slice(&bytes[2..8]);
        let mut uuid = [0_u8; 16];
        uuid.copy_from_slice(&bytes[8..BODY]);
        let order = OrderId { uuid, sale: number, segment: segment_of(user, segments) };
        Some(Claim { order, expires: Millis(i64::from_be_bytes(expires)) })
    }
}

/// MAC over the body, the sale and the user; the sale's alphabet has no NUL, so none can run over.
fn mac(key: &hmac::Key, body: &[u8], sale: &SaleId, user: &UserId) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(body);
    context.update(sale.as_str().as_bytes());
    context.update(&[0]);
    context.update(user.as_str().as_bytes());
    context.sign()
}

/// Compares in constant time.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    a.ct_eq(b).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names() -> (SaleId, UserId) {
        (SaleId::parse("demo").unwrap(), UserId::parse("alice").unwrap())
    }

    #[test]
    fn a_token_opens_its_own_sale_to_its_own_user_only() {
        let (sale, user) = names();
        let keys = TokenKeys::new([b"secret".as_slice()]);
        let (token, order) = keys.issue(&sale, 7, 1, &user, Millis(1_234)).unwrap();
        let claim = keys.verify(&token, &sale, 7, 1, &user).unwrap();
        assert_eq!(claim, Claim { order, expires: Millis(1_234) });
        assert_eq!(keys.verify(&token, &SaleId::parse("demp").unwrap(), 7, 1, &user), None);
        assert_eq!(keys.verify(&token, &sale, 7, 1, &UserId::parse("alicf").unwrap()), None);
    }

    #[test]
    fn no_bit_of_a_token_can_be_changed() {
        let (sale, user) = names();
        let keys = TokenKeys::new([b"secret".as_slice()]);
        let (token, _) = keys.issue(&sale, 7, 1, &user, Millis(1_234)).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        assert_eq!(token.len(), TOKEN_CHARS);
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let forged = URL_SAFE_NO_PAD.encode(forged);
            assert_eq!(keys.verify(&forged, &sale, 7, 1, &user), None, "bit {bit}");
        }
        assert_eq!(keys.verify(&token[1..], &sale, 7, 1, &user), None);
        assert_eq!(keys.verify("", &sale, 7, 1, &user), None);
    }

    #[test]
    fn two_keys_live_while_one_is_rotated() {
        let (sale, user) = names();
        let old = TokenKeys::new([b"old".as_slice()]);
        let both = TokenKeys::new([b"new".as_slice(), b"old".as_slice()]);
        let new = TokenKeys::new([b"new".as_slice()]);
        let (before, _) = old.issue(&sale, 7, 1, &user, Millis(1)).unwrap();
        let (after, _) = both.issue(&sale, 7, 1, &user, Millis(1)).unwrap();
        assert!(both.verify(&before, &sale, 7, 1, &user).is_some());
        assert!(new.verify(&after, &sale, 7, 1, &user).is_some());
        assert!(new.verify(&before, &sale, 7, 1, &user).is_none());
    }
}
