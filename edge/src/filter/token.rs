//! The sale token: who may come to this sale, and with which order id.

use sluice_shared::ids::UserId;
use sluice_shared::sale::SaleView;
use sluice_shared::token::{Claim, TokenKeys};
use sluice_shared::verdict::{Code, Rejection};

use crate::fields::Fields;

/// Carries the sale token.
pub const SALE_TOKEN: &str = "x-sale-token";

/// Verifies the request's token for this sale and user. Whether it has expired is judged behind
/// the search for a replay.
pub fn claim(
    keys: &TokenKeys,
    fields: &(impl Fields + ?Sized),
    sale: &SaleView,
    user: &UserId,
) -> Result<Claim, Rejection> {
    let mut tokens = fields.all(SALE_TOKEN);
    let token = tokens.next().unwrap_or_default();
    if token.is_empty() {
        let detail = "send X-Sale-Token with a token from POST /v1/sales/{sale}/token";
        return Err(Rejection::new(Code::TokenMissing, detail));
    }
    let text = std::str::from_utf8(token).ok().filter(|_| tokens.next().is_none());
    let claim = text.and_then(|text| keys.verify(text, &sale.sale, sale.number, sale.segments, user));
    claim.ok_or_else(|| Rejection::new(Code::TokenInvalid, "the token is not one of this user for this sale"))
}
