//! `GET` and `DELETE /v1/orders/{order}`: a buyer's order, looked at or cancelled.

use http::Method;
use sluice_shared::ids::OrderId;

use super::Asked;
use crate::chain::{self, Next};
use crate::exchange::{Exchange, Stop, Target};
use crate::gate::Gate;
use crate::respond::Reply;
use crate::route::nothing_here;
use crate::view;

/// Answers from Redis where it knows the order, else by the workers.
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, asked: Asked<'_>) -> Result<Next, Stop> {
    let id = OrderId::parse(asked.id).ok_or_else(nothing_here)?;
    let user = chain::customer(gate, exchange)?;
    let cancels = exchange.head().method == Method::DELETE;
    match gate.record(&id).await {
        Ok(Some((record, _))) if record.user != user => return Err(nothing_here().into()),
        Ok(Some((record, sale))) if !cancels => {
            return Ok(Next::Reply(Reply::json(200, view::order(&id, &record, &sale.view))));
        }
        Ok(None) if gate.engine.lacks(&id).await => return Err(nothing_here().into()),
        Err(refused) if !cancels => return Err(refused.into()),
        // The workers' word counts: they cancel also while Redis is away.
        Ok(_) | Err(_) => {}
    }
    exchange.context.lookup = Some(gate.lookups.take()?);
    exchange.context.target = Target::Order(id);
    Ok(Next::Forward)
}
