//! Buyers: who they are and the requests that they send, as bytes.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::jwt::sign_hs256;
use sluice_shared::token::TokenKeys;

use crate::environment::Environment;

/// How long a buyer's JWT is good.
const JWT_SECONDS: i64 = 6 * 3600;

/// The people of one drill, all distinct.
#[derive(Debug)]
pub struct Buyers {
    host: String,
    name: String,
    sale: SaleId,
    sku: String,
    jwts: Vec<String>,
    stranger: String,
    keys: TokenKeys,
    number: u32,
    payment_secret: String,
}

/// What buyers have to know of their sale.
#[derive(Debug, Clone)]
pub struct Target {
    /// The sale.
    pub sale: SaleId,
    /// Its only SKU.
    pub sku: String,
    /// Its number in order ids.
    pub number: u32,
}

impl Buyers {
    /// `count` buyers whose names begin with `name`.
    pub fn new(environment: &Environment, target: &Target, name: &str, count: u32) -> Self {
        let sign = |secret: &str, user: &str| {
            sign_hs256(secret, &json!({"sub": user, "exp": Millis::now().seconds() + JWT_SECONDS}))
        };
        let jwt = |buyer: u32| sign(&environment.jwt_secret, &format!("{name}-{buyer}"));
        Self {
            host: environment.edge.to_string(),
            name: name.to_owned(),
            sale: target.sale.clone(),
            sku: target.sku.clone(),
            jwts: (0..count).map(jwt).collect(),
            stranger: sign("a secret of nobody's", name),
            keys: TokenKeys::new([environment.token_secret.as_bytes()]),
            number: target.number,
            payment_secret: environment.payment_secret.clone(),
        }
    }

    /// How many.
    pub fn count(&self) -> u32 {
        u32::try_from(self.jwts.len()).unwrap_or(u32::MAX)
    }

    /// A buyer's name.
    pub fn user(&self, buyer: u32) -> String {
        format!("{}-{buyer}", self.name)
    }

    /// The buyer of that name.
    pub fn buyer(&self, user: &str) -> Option<u32> {
        user.strip_prefix(self.name.as_str())?.strip_prefix('-')?.parse().ok()
    }

    fn jwt(&self, buyer: u32) -> &str {
        self.jwts.get(buyer as usize).map_or("", String::as_str)
    }

    /// Asks for a sale token.
    pub fn token_request(&self, buyer: u32) -> Bytes {
        let Self { host, sale, .. } = self;
        let jwt = self.jwt(buyer);
        Bytes::from(format!(
            "POST /v1/sales/{sale}/token HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {jwt}\r\n\
             Content-Length: 0\r\n\r\n"
        ))
    }

    /// Orders units with a sale token.
    pub fn order_request(&self, buyer: u32, token: &str, units: u32) -> Bytes {
        self.order_as(self.jwt(buyer), token, units)
    }

    /// Orders with a JWT that nobody signed.
    pub fn stranger_request(&self, token: &str) -> Bytes {
        self.order_as(&self.stranger, token, 1)
    }

    fn order_as(&self, jwt: &str, token: &str, units: u32) -> Bytes {
        let Self { host, sale, sku, .. } = self;
        let body = format!("{{\"sku\":\"{sku}\",\"quantity\":{units}}}");
        let length = body.len();
        Bytes::from(format!(
            "POST /v1/sales/{sale}/orders HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {jwt}\r\n\
             X-Sale-Token: {token}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// Looks at an order.
    pub fn look_request(&self, buyer: u32, order: &OrderId) -> Bytes {
        self.order_call("GET", buyer, order)
    }

    /// Gives an order up.
    pub fn cancel_request(&self, buyer: u32, order: &OrderId) -> Bytes {
        self.order_call("DELETE", buyer, order)
    }

    fn order_call(&self, method: &str, buyer: u32, order: &OrderId) -> Bytes {
        let (host, jwt) = (&self.host, self.jwt(buyer));
        Bytes::from(format!(
            "{method} /v1/orders/{order} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {jwt}\r\n\r\n"
        ))
    }

    /// A sale token as an edge would have issued it, good until `expires`.
    pub fn mint(&self, buyer: u32, expires: Millis) -> Option<(String, OrderId)> {
        let user = UserId::parse(&self.user(buyer)).ok()?;
        self.keys.issue(&self.sale, self.number, 1, &user, expires)
    }

    /// A sale token that is not one: the last character of a good one is another.
    pub fn forge(&self, buyer: u32) -> Option<String> {
        let (mut token, _) = self.mint(buyer, Millis(i64::from(u32::MAX) * 1000))?;
        let last = token.pop()?;
        // Two letters apart: the lowest bits of the last one are padding.
        token.push(if last == 'A' { 'Q' } else { 'A' });
        Some(token)
    }

    /// The provider's notice about a payment, signed now.
    pub fn notice_request(&self, notice: &Notice<'_>) -> Bytes {
        self.signed(&notice.body(), Millis::now().seconds(), &self.payment_secret)
    }

    /// A notice signed at another time or with another secret.
    pub fn signed(&self, body: &str, seconds: i64, secret: &str) -> Bytes {
        let mac = signature(secret, seconds, body);
        self.notice_as(body, Some(&format!("t={seconds},v1={mac}")))
    }

    /// A notice with any signature header, or none.
    pub fn notice_as(&self, body: &str, signature: Option<&str>) -> Bytes {
        let (host, length) = (&self.host, body.len());
        let field = signature.map(|text| format!("X-Payment-Signature: {text}\r\n")).unwrap_or_default();
        Bytes::from(format!(
            "POST /v1/payments/callback HTTP/1.1\r\nHost: {host}\r\n{field}Content-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// The provider's secret.
    pub fn payment_secret(&self) -> &str {
        &self.payment_secret
    }
}

/// `v1` of `X-Payment-Signature`.
pub fn signature(secret: &str, seconds: i64, body: &str) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    mac.update(format!("{seconds}.{body}").as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// What a payment provider tells.
#[derive(Debug, Clone, Copy)]
pub struct Notice<'a> {
    /// Its transaction.
    pub payment: &'a str,
    /// The order that was paid.
    pub order: OrderId,
    /// Minor units of the currency.
    pub amount: i64,
    /// ISO 4217.
    pub currency: &'a str,
    /// `succeeded`, `failed` or `refunded`.
    pub status: &'a str,
}

impl Notice<'_> {
    /// Its JSON.
    pub fn body(&self) -> String {
        json!({
            "payment_id": self.payment,
            "order_id": self.order,
            "amount": self.amount,
            "currency": self.currency,
            "status": self.status,
        })
        .to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn buyers() -> Buyers {
        let sale = SaleId::parse("drill-1").unwrap();
        Buyers {
            host: "127.0.0.1:1".to_owned(),
            name: "b".to_owned(),
            sale,
            sku: "phone".to_owned(),
            jwts: vec!["j.w.t".to_owned()],
            stranger: "x.y.z".to_owned(),
            keys: TokenKeys::new([b"secret".as_slice()]),
            number: 7,
            payment_secret: "pay".to_owned(),
        }
    }

    #[test]
    fn a_minted_token_is_good_and_a_forged_one_is_not() {
        let buyers = buyers();
        let user = UserId::parse("b-0").unwrap();
        let (token, order) = buyers.mint(0, Millis(5)).unwrap();
        let claim = buyers.keys.verify(&token, &buyers.sale, 7, 1, &user).unwrap();
        assert_eq!((claim.order, claim.expires), (order, Millis(5)));
        for _ in 0..200 {
            assert_eq!(buyers.keys.verify(&buyers.forge(0).unwrap(), &buyers.sale, 7, 1, &user), None);
        }
    }

    #[test]
    fn a_notice_is_signed_as_providers_do() {
        // echo -n '7.{}' | openssl dgst -sha256 -hmac pay
        let mac = "e342f8f5c0a0271955aa2a9eb82d130dab1c1f0e86cf710bd2c3fa52915947b7";
        assert_eq!(signature("pay", 7, "{}"), mac);
        let request = buyers().signed("{}", 7, "pay");
        let text = std::str::from_utf8(&request).unwrap();
        assert!(text.contains(&format!("X-Payment-Signature: t=7,v1={mac}\r\n")), "{text}");
    }

    #[test]
    fn names_read_back() {
        let buyers = buyers();
        assert_eq!(buyers.buyer(&buyers.user(17)), Some(17));
        assert_eq!(buyers.buyer("c-17"), None);
    }
}
