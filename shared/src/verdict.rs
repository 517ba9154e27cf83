//! The gate's answers: every refusal with its code and status, and how it is written down.
//!
//! One table decides code, HTTP status and metric label; [`Rejection`] is written as RFC 9457 says.

use std::borrow::Cow;

use crate::clock::Millis;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal $word:literal $title:literal,)*) => {
        /// Every reason to refuse, as the outside contract names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The word in `code`, in `type` and in metric labels.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// A short human title, the same for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// A member, field or header is wrong; `field` names it.
    BadRequest = 400 "bad_request" "The request is not valid",
    /// The callback's amount or currency is not the order's.
    AmountMismatch = 400 "amount_mismatch" "Amount or currency differ from the order's",
    /// Not a receipt of this gate, or another buyer's.
    ReceiptInvalid = 400 "receipt_invalid" "The receipt is not valid here",
    /// No good JWT.
    Unauthenticated = 401 "unauthenticated" "A valid bearer token is required",
    /// The payment notice is not signed as it must be.
    BadSignature = 401 "bad_signature" "The signature is missing, stale or wrong",
    /// The sale has not begun.
    NotStarted = 403 "not_started" "The sale has not started",
    /// No sale token.
    TokenMissing = 403 "token_missing" "A sale token is required",
    /// A sale token that is not one, or another buyer's or sale's.
    TokenInvalid = 403 "token_invalid" "The sale token is not valid here",
    /// A good sale token, too late.
    TokenExpired = 403 "token_expired" "The sale token has expired",
    /// The role does not allow it.
    Forbidden = 403 "forbidden" "The role does not allow this",
    /// No such sale for buyers.
    UnknownSale = 404 "unknown_sale" "There is no such sale",
    /// The sale has no such SKU.
    UnknownSku = 404 "unknown_sku" "The sale has no such SKU",
    /// Nothing at this address.
    NotFound = 404 "not_found" "There is nothing here",
    /// Another method is meant.
    MethodNotAllowed = 405 "method_not_allowed" "The method is not allowed here",
    /// The request did not arrive in time.
    RequestTimeout = 408 "request_timeout" "The request did not arrive in time",
    /// Fewer units are left than were asked for.
    SoldOut = 409 "sold_out" "Not enough units are left",
    /// The buyer would hold more than a buyer may.
    PurchaseLimit = 409 "purchase_limit" "The limit per buyer would be exceeded",
    /// The token's order was released.
    TokenSpent = 409 "token_spent" "The order of this sale token was released",
    /// Paid orders are refunded, not cancelled.
    NotCancellable = 409 "not_cancellable" "The order can no longer be cancelled",
    /// The order was lost, and its units cannot be taken again.
    NotHonoured = 409 "not_honoured" "The order was lost and cannot be honoured at the moment",
    /// The step does not lead from here.
    WrongState = 409 "wrong_state" "The state does not allow this",
    /// There is one already.
    AlreadyExists = 409 "already_exists" "It exists already",
    /// Fewer units are left than shall be withdrawn.
    InsufficientStock = 409 "insufficient_stock" "Not enough units are left to withdraw",
    /// The sale is over.
    Ended = 410 "ended" "The sale has ended",
    /// The body is larger than allowed.
    BodyTooLarge = 413 "body_too_large" "The body is too large",
    /// The request target is longer than allowed.
    UriTooLong = 414 "uri_too_long" "The request target is too long",
    /// Not JSON, or encoded.
    UnsupportedMediaType = 415 "unsupported_media_type" "The body must be JSON, not encoded",
    /// The same token with other lines.
    TokenReused = 422 "token_reused" "The sale token was used for other lines",
    /// The same idempotency key with another body, or none.
    IdempotencyMismatch = 422 "idempotency_mismatch" "The idempotency key was used for another body",
    /// Too fast.
    RateLimited = 429 "rate_limited" "Too many requests",
    /// The head is larger than allowed.
    HeadersTooLarge = 431 "headers_too_large" "The request head is too large",
    /// Promised, not built.
    NotImplemented = 501 "not_implemented" "Not implemented",
    /// The upstream could not be reached or answered nonsense.
    BadGateway = 502 "bad_gateway" "The upstream did not answer properly",
    /// The sale is paused by its operator.
    Paused = 503 "paused" "The sale is paused",
    /// The books are being put right; nothing is sold meanwhile.
    Frozen = 503 "frozen" "The sale is frozen for a moment",
    /// A limit of the gate itself is reached.
    Overloaded = 503 "overloaded" "The gate is at its limit",
    /// The outcome is not known; the same token will tell.
    Unavailable = 503 "unavailable" "The outcome is not known yet",
    /// The upstream took too long.
    GatewayTimeout = 504 "gateway_timeout" "The upstream did not answer in time",
}

/// The members beside the common ones, by code.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Extra {
    /// None.
    #[default]
    None,
    /// Which field of the request is wrong.
    Field(Cow<'static, str>),
    /// When the sale starts.
    StartsAt(Millis),
    /// What the buyer holds of the SKU, and what he may hold.
    Limit {
        /// Units held now, over all his live orders of the sale.
        held: u64,
        /// Units he may hold.
        limit: u64,
    },
    /// Whole seconds until it is worth trying again; also the header `Retry-After`.
    RetryAfter(u32),
}

/// Why a request was turned away. Not an error: the gate did its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The reason.
    pub code: Code,
    /// What to do about it, in one sentence; names the field and the remedy.
    pub detail: Cow<'static, str>,
    /// The member that goes with the code.
    pub extra: Extra,
}

impl Rejection {
    /// A refusal without further members.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let extra = pause(code).map_or(Extra::None, |pause| Extra::RetryAfter(rand::random_range(pause)));
        Self { code, detail: detail.into(), extra }
    }

    /// `bad_request` for one field.
    pub fn field(field: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code: Code::BadRequest, detail: detail.into(), extra: Extra::Field(field.into()) }
    }

    /// This refusal with another extra member.
    pub fn with(mut self, extra: Extra) -> Self {
        self.extra = extra;
        self
    }

    /// This refusal, worth trying again after so many seconds, or up to twice as many: whoever is refused
    /// at the same moment does not come back at the same one.
    pub fn after(self, seconds: u32) -> Self {
        let seconds = seconds.max(1);
        self.with(Extra::RetryAfter(rand::random_range(seconds..=seconds.saturating_mul(2))))
    }

    /// Seconds for `Retry-After`, where there are any.
    pub fn retry_after(&self) -> Option<u32> {
        match self.extra {
            Extra::RetryAfter(seconds) => Some(seconds),
            _ => None,
        }
    }

    /// The body: `application/problem+json` (RFC 9457).
    pub fn to_json(&self) -> Vec<u8> {
        let code = self.code.as_str();
        let mut body = Vec::with_capacity(192 + self.detail.len());
        body.extend_from_slice(b"{\"type\":\"urn:sluice:problem:");
        body.extend_from_slice(code.as_bytes());
        body.extend_from_slice(b"\",\"title\":\"");
        body.extend_from_slice(self.code.title().as_bytes());
        body.extend_from_slice(b"\",\"status\":");
        body.extend_from_slice(self.code.status().to_string().as_bytes());
        body.extend_from_slice(b",\"detail\":");
        push_text(&mut body, &self.detail);
        body.extend_from_slice(b",\"code\":\"");
        body.extend_from_slice(code.as_bytes());
        body.push(b'"');
        match &self.extra {
            Extra::None => {}
            Extra::Field(field) => {
                body.extend_from_slice(b",\"field\":");
                push_text(&mut body, field);
            }
            Extra::StartsAt(at) => {
                body.extend_from_slice(b",\"starts_at\":");
                push_text(&mut body, &at.to_text());
            }
            Extra::Limit { held, limit } => {
                body.extend_from_slice(format!(",\"held\":{held},\"limit\":{limit}").as_bytes());
            }
            Extra::RetryAfter(seconds) => {
                body.extend_from_slice(format!(",\"retry_after\":{seconds}").as_bytes());
            }
        }
        body.push(b'}');
        body
    }
}

/// Within how many seconds it is worth trying again, where nothing more is known than the code.
fn pause(code: Code) -> Option<std::ops::RangeInclusive<u32>> {
    Some(match code {
        // An operator has paused it, and looks at it again in a while.
        Code::Paused => 5..=15,
        // A re-opening takes a second or two.
        Code::Frozen => 1..=3,
        Code::Overloaded => 1..=4,
        // The next try may well be answered.
        Code::Unavailable | Code::RateLimited => 1..=2,
        _ => return None,
    })
}

fn push_text(body: &mut Vec<u8>, text: &str) {
    // A string always serialises; should it not, an empty one keeps the body valid JSON.
    match serde_json::to_vec(text) {
        Ok(quoted) => body.extend_from_slice(&quoted),
        Err(_) => body.extend_from_slice(b"\"\""),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn members(rejection: &Rejection) -> serde_json::Value {
        serde_json::from_slice(&rejection.to_json()).unwrap()
    }

    #[test]
    fn every_code_makes_a_problem_document() {
        for code in Code::ALL {
            let body = members(&Rejection::new(*code, "say \"why\"\n"));
            assert_eq!(body["type"], format!("urn:sluice:problem:{}", code.as_str()));
            assert_eq!(body["status"], code.status());
            assert_eq!(body["code"], code.as_str());
            assert_eq!(body["detail"], "say \"why\"\n");
            let hint = matches!(code.status(), 429 | 503);
            assert_eq!(body.get("retry_after").is_some(), hint, "{code:?}");
        }
    }

    #[test]
    fn those_who_are_refused_together_do_not_come_back_together() {
        let refused = |code| (0..200).map(move |_| Rejection::new(code, "").retry_after().unwrap());
        let frozen: std::collections::BTreeSet<u32> = refused(Code::Frozen).collect();
        assert_eq!(frozen, (1..=3).collect());
        assert!(refused(Code::Paused).all(|seconds| (5..=15).contains(&seconds)));
        let known = (0..200).map(|_| Rejection::new(Code::Overloaded, "").after(10).retry_after().unwrap());
        assert_eq!(known.collect::<std::collections::BTreeSet<u32>>(), (10..=20).collect());
    }

    #[test]
    fn extra_members_follow_the_code() {
        let limit = Rejection::new(Code::PurchaseLimit, "").with(Extra::Limit { held: 1, limit: 2 });
        assert_eq!((&members(&limit)["held"], &members(&limit)["limit"]), (&1.into(), &2.into()));
        assert_eq!(members(&Rejection::field("sku", "x"))["field"], "sku");
        let early = Rejection::new(Code::NotStarted, "").with(Extra::StartsAt(Millis(0)));
        assert_eq!(members(&early)["starts_at"], "1970-01-01T00:00:00.000Z");
    }
}
