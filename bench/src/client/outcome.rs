//! What an answer amounts to, in one word.

/// A refusal's code, a success, or what the transport did. Always one of a closed set of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome(pub &'static str);

/// 202: units taken now.
pub const ACCEPTED: Outcome = Outcome("accepted");
/// 202: units taken now, hand-over to the broker not confirmed.
pub const PENDING: Outcome = Outcome("pending");
/// 202 or 201 with `Idempotent-Replayed`: the same order as before.
pub const REPLAYED: Outcome = Outcome("replayed");
/// 201: units taken now and the order written.
pub const WRITTEN: Outcome = Outcome("written");
/// 200.
pub const OK: Outcome = Outcome("ok");
/// Every unit is gone.
pub const SOLD_OUT: Outcome = Outcome("sold_out");
/// The user would hold more than he may.
pub const PURCHASE_LIMIT: Outcome = Outcome("purchase_limit");
/// The token's order gave its units back.
pub const TOKEN_SPENT: Outcome = Outcome("token_spent");
/// A bucket is empty.
pub const RATE_LIMITED: Outcome = Outcome("rate_limited");
/// The outcome is unknown; the same token yields the truth.
pub const UNAVAILABLE: Outcome = Outcome("unavailable");
/// The sale is frozen.
pub const FROZEN: Outcome = Outcome("frozen");
/// Too much is waiting.
pub const OVERLOADED: Outcome = Outcome("overloaded");
/// The connection broke between the request and the end of its answer.
pub const CUT: Outcome = Outcome("cut");
/// No answer in time.
pub const NO_ANSWER: Outcome = Outcome("no_answer");
/// Nobody listens: the request was never sent.
pub const REFUSED: Outcome = Outcome("refused");
/// Bytes that are no answer of this protocol.
pub const MALFORMED: Outcome = Outcome("malformed");
/// A code or status that the contract does not have.
pub const UNHEARD: Outcome = Outcome("unheard_of");

/// Each refusal of the contract with its status.
const CODES: [(&str, u16); 36] = [
    ("sold_out", 409),
    ("purchase_limit", 409),
    ("rate_limited", 429),
    ("token_invalid", 403),
    ("token_expired", 403),
    ("token_missing", 403),
    ("token_spent", 409),
    ("token_reused", 422),
    ("unauthenticated", 401),
    ("unavailable", 503),
    ("frozen", 503),
    ("overloaded", 503),
    ("paused", 503),
    ("bad_request", 400),
    ("amount_mismatch", 400),
    ("receipt_invalid", 400),
    ("bad_signature", 401),
    ("not_started", 403),
    ("forbidden", 403),
    ("unknown_sale", 404),
    ("unknown_sku", 404),
    ("not_found", 404),
    ("method_not_allowed", 405),
    ("request_timeout", 408),
    ("not_cancellable", 409),
    ("wrong_state", 409),
    ("already_exists", 409),
    ("insufficient_stock", 409),
    ("ended", 410),
    ("body_too_large", 413),
    ("uri_too_long", 414),
    ("unsupported_media_type", 415),
    ("idempotency_mismatch", 422),
    ("headers_too_large", 431),
    ("bad_gateway", 502),
    ("gateway_timeout", 504),
];

impl Outcome {
    /// Reads a refusal's code; the status must be the one that belongs to it.
    pub fn of_code(code: &str, status: u16) -> Option<Self> {
        CODES.iter().find(|(known, with)| *known == code && *with == status).map(|(known, _)| Self(known))
    }

    /// Reads a word that was written into a log.
    pub fn parse(word: &str) -> Option<Self> {
        let own = [ACCEPTED, PENDING, REPLAYED, WRITTEN, OK, CUT, NO_ANSWER, REFUSED, MALFORMED, UNHEARD];
        own.into_iter()
            .find(|outcome| outcome.0 == word)
            .or_else(|| CODES.iter().find(|(known, _)| *known == word).map(|(known, _)| Self(known)))
    }

    /// Units were taken by this very request.
    pub fn is_taken(self) -> bool {
        matches!(self, ACCEPTED | PENDING | WRITTEN)
    }

    /// The token has an order that holds its units, taken now or before.
    pub fn is_held(self) -> bool {
        self.is_taken() || self == REPLAYED
    }

    /// Whether units were taken cannot be told from this answer.
    pub fn is_unknown(self) -> bool {
        matches!(self, CUT | NO_ANSWER | UNAVAILABLE | MALFORMED | UNHEARD)
            || matches!(self.0, "bad_gateway" | "gateway_timeout")
    }

    /// Nothing was judged: worth another attempt with the same token.
    pub fn is_transient(self) -> bool {
        self.is_unknown() || matches!(self, FROZEN | OVERLOADED | REFUSED | RATE_LIMITED)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_belongs_to_one_status() {
        assert_eq!(Outcome::of_code("sold_out", 409), Some(SOLD_OUT));
        assert_eq!(Outcome::of_code("sold_out", 410), None);
        assert_eq!(Outcome::of_code("sold_out_", 409), None);
    }

    #[test]
    fn every_word_of_a_log_is_read_back() {
        for (word, _) in CODES {
            assert_eq!(Outcome::parse(word).map(|outcome| outcome.0), Some(word));
        }
        for own in [ACCEPTED, PENDING, REPLAYED, WRITTEN, OK, CUT, NO_ANSWER, REFUSED, MALFORMED, UNHEARD] {
            assert_eq!(Outcome::parse(own.0), Some(own));
        }
        assert_eq!(Outcome::parse("fine"), None);
    }
}
