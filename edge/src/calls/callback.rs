//! `POST /v1/payments/callback`: the payment provider's notice, for the workers.

use super::Asked;
use crate::chain::Next;
use crate::exchange::{Exchange, Stop, Target};
use crate::gate::Gate;

/// Takes from the bucket that the address has for notices; the workers judge the signature.
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, _: Asked<'_>) -> Result<Next, Stop> {
    let (fields, context) = exchange.split();
    context.client = gate.trusted.client(context.peer, fields);
    gate.rates.notice(context.client, &mut context.rate)?;
    exchange.context.target = Target::Callback;
    Ok(Next::Forward)
}
