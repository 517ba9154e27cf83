//! `GET /v1/receipt-keys`: the keys that receipts are verified with.

use super::Asked;
use crate::chain::{self, Next};
use crate::exchange::{Exchange, Stop};
use crate::gate::Gate;
use crate::respond::Reply;

/// A JWK set (RFC 7517).
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, _: Asked<'_>) -> Result<Next, Stop> {
    chain::from(gate, exchange)?;
    Ok(Next::Reply(Reply::json(200, gate.receipts.jwks())))
}
