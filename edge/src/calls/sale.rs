//! `GET /v1/sales/{sale}`: what a sale is like.

use sluice_shared::verdict::Rejection;

use super::{Asked, Judged};
use crate::chain::{self, Next};
use crate::exchange::{Context, Exchange, Stop};
use crate::fields::Fields;
use crate::gate::Gate;
use crate::respond::Reply;
use crate::view;

/// With a session.
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, asked: Asked<'_>) -> Result<Next, Stop> {
    let (fields, context) = exchange.split();
    Ok(Next::Reply(show(gate, fields, context, asked.id)?))
}

/// Without one.
pub(super) fn short(
    gate: &Gate,
    fields: &[httparse::Header<'_>],
    context: &mut Context,
    asked: Asked<'_>,
    _: &[u8],
) -> Result<Judged, Rejection> {
    Ok(Judged::Answer(show(gate, fields, context, asked.id)))
}

fn show(
    gate: &Gate,
    fields: &(impl Fields + ?Sized),
    context: &mut Context,
    id: &str,
) -> Result<Reply, Rejection> {
    let sale = chain::known(gate, id)?;
    chain::address(gate, fields, context)?;
    Ok(Reply::json(200, view::sale(&sale, gate.engine.clock().now())))
}
