//! `POST /v1/sales/{sale}/token`: a sale token, of a visitor whose body is empty.

use sluice_shared::ids::UserId;
use sluice_shared::sale::SaleStep;
use sluice_shared::verdict::Rejection;

use super::{Asked, Judged};
use crate::chain::{self, Next};
use crate::engine::{LiveSale, PublicState};
use crate::exchange::{Context, Exchange, Stop};
use crate::filter::{body, reserve};
use crate::gate::Gate;
use crate::respond::Reply;
use crate::view;

/// With a session.
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, asked: Asked<'_>) -> Result<Next, Stop> {
    let (fields, context) = exchange.split();
    let (sale, user) = chain::visitor(gate, fields, context, asked.id)?;
    body::nothing(&exchange.body(gate.limits.body_bytes, gate.limits.body_timeout).await?)?;
    Ok(Next::Reply(issue(gate, &sale, &user)?))
}

/// Without one.
pub(super) fn short(
    gate: &Gate,
    fields: &[httparse::Header<'_>],
    context: &mut Context,
    asked: Asked<'_>,
    body: &[u8],
) -> Result<Judged, Rejection> {
    let (sale, user) = chain::visitor(gate, fields, context, asked.id)?;
    body::nothing(body)?;
    Ok(Judged::Answer(issue(gate, &sale, &user)))
}

fn issue(gate: &Gate, sale: &LiveSale, user: &UserId) -> Result<Reply, Rejection> {
    let (view, now, keys) = (&sale.view, gate.engine.clock().now(), gate.keys.now());
    let armed = view.step == SaleStep::Open && now.after(keys.token.lead) >= view.starts_at;
    match sale.state(now) {
        PublicState::Frozen => return Err(reserve::frozen()),
        PublicState::Paused => return Err(reserve::paused()),
        PublicState::Ended => return Err(reserve::ended()),
        PublicState::Scheduled if !armed => return Err(reserve::not_started(view)),
        PublicState::Scheduled | PublicState::Open | PublicState::SoldOut => {}
    }
    let expires = view.ends_at.min(now.after(keys.token.max));
    let issued = keys.token.keys.issue(&view.sale, view.number, view.segments, user, expires);
    let (token, order) = issued.ok_or_else(reserve::unknown)?;
    Ok(Reply::json(200, view::token(&token, &order, expires)))
}
