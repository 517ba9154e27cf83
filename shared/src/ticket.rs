//! The ticket of an event stream: opens one order's stream to whoever holds the link, for a while.
//!
//! Layout before base64url: expiry (u48, s) · HMAC-SHA256 truncated to 128 bit over it and the id.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::clock::Millis;
use crate::ids::OrderId;

/// The key that signs tickets.
#[derive(Debug)]
pub struct TicketKey(hmac::Key);

impl TicketKey {
    /// A key derived from the secret of the sale tokens, so that one cannot pass for the other.
    pub fn derive(secret: &[u8]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&root, b"sluice order events ticket v1");
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// A ticket for one order.
    pub fn issue(&self, order: &OrderId, expires: Millis) -> String {
        let expiry = &expires.seconds().to_be_bytes()[2..];
        let mut ticket = [0_u8; 22];
        ticket[..6].copy_from_slice(expiry);
        ticket[6..].copy_from_slice(&self.mac(expiry, order).as_ref()[..16]);
        URL_SAFE_NO_PAD.encode(ticket)
    }

    /// Whether the ticket is this order's and still good.
    pub fn verify(&self, ticket: &str, order: &OrderId, now: Millis) -> bool {
        let mut bytes = [0_u8; 22];
        if ticket.len() != 30 || URL_SAFE_NO_PAD.decode_slice(ticket, &mut bytes) != Ok(22) {
            return false;
        }
        let mut expiry = [0_u8; 8];
        expiry[2..].copy_from_slice(&bytes[..6]);
        crate::token::same(&self.mac(&bytes[..6], order).as_ref()[..16], &bytes[6..])
            && now.seconds() <= i64::from_be_bytes(expiry)
    }

    fn mac(&self, expiry: &[u8], order: &OrderId) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(expiry);
        context.update(order.to_string().as_bytes());
        context.sign()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_opens_one_order_until_it_expires() {
        let key = TicketKey::derive(b"secret");
        let (order, other) = (OrderId::mint(1, 0), OrderId::mint(1, 0));
        let ticket = key.issue(&order, Millis(60_000));
        assert!(key.verify(&ticket, &order, Millis(60_000)));
        assert!(!key.verify(&ticket, &order, Millis(61_000)));
        assert!(!key.verify(&ticket, &other, Millis(0)));
        assert!(!TicketKey::derive(b"other").verify(&ticket, &order, Millis(0)));
        assert!(!key.verify("", &order, Millis(0)));
    }
}
