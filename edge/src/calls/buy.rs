//! `POST /v1/sales/{sale}/orders`: the purchase.

use http::HeaderValue;
use sluice_shared::lines::Lines;
use sluice_shared::receipt::Receipt;
use sluice_shared::verdict::{Code, Rejection};

use super::{Asked, Judged};
use crate::chain::{self, Buyer, Next};
use crate::engine::Ask;
use crate::exchange::{Context, Exchange, Stop};
use crate::filter::reserve::Taken;
use crate::filter::{body, latch, reserve};
use crate::gate::Gate;
use crate::respond::Reply;
use crate::view;

const TRUE: HeaderValue = HeaderValue::from_static("true");

/// With a session.
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, asked: Asked<'_>) -> Result<Next, Stop> {
    let (fields, context) = exchange.split();
    let buyer = chain::buyer(gate, fields, context, asked.id)?;
    let lines = body::lines(&exchange.body(gate.limits.body_bytes, gate.limits.body_timeout).await?)?;
    Ok(Next::Reply(take(gate, buyer, lines).await?))
}

/// Without one, up to what has to be waited for.
pub(super) fn short(
    gate: &Gate,
    fields: &[httparse::Header<'_>],
    context: &mut Context,
    asked: Asked<'_>,
    body: &[u8],
) -> Result<Judged, Rejection> {
    let buyer = chain::buyer(gate, fields, context, asked.id)?;
    Ok(Judged::Take(buyer, body::lines(body)?))
}

/// Takes the units, unless it is plain that there are none.
pub async fn take(gate: &Gate, buyer: Buyer, lines: Lines) -> Result<Reply, Rejection> {
    let (Buyer { sale, user, claim }, now) = (buyer, gate.engine.clock().now());
    if sale.turns_away() {
        return Err(reserve::frozen());
    }
    latch::judge(&sale, &claim, &lines, now)?;
    let bought = (!gate.receipts.is_empty()).then(|| (user.clone(), lines.clone()));
    let ask = Ask { uuid: claim.order.uuid, user, lines, expired: now >= claim.expires };
    let taken = reserve::judge(gate.engine.reserve(&sale, ask).await, &sale.view);
    let taken = taken.map_err(|refused| match refused.code {
        // What waits now is gone by then.
        Code::Overloaded => refused.after(gate.engine.estimate()),
        _ => refused,
    })?;
    gate.metrics.accepted(taken.replayed);
    let receipt = bought.and_then(|(user, lines)| {
        let Taken { epoch, seq, at: accepted, .. } = taken;
        let (order, sale) = (claim.order, sale.view.sale.clone());
        gate.receipts.sign(&Receipt { order, sale, user, lines, epoch, seq, accepted })
    });
    let status_url = format!("/v1/orders/{}", claim.order);
    let ticket = gate.ticket(&claim.order);
    let (seconds, receipt) = (gate.engine.estimate(), receipt.as_deref());
    let body = view::accepted(&claim.order, taken.state, &status_url, &ticket, seconds, receipt);
    // An order id is plain ASCII.
    let location = HeaderValue::from_str(&status_url).unwrap_or(HeaderValue::from_static("/v1/orders"));
    let reply = Reply::json(202, body).with("Location", location);
    Ok(if taken.replayed { reply.with("Idempotent-Replayed", TRUE) } else { reply })
}
