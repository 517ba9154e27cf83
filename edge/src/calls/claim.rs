//! `POST /v1/orders/claim`: who shows the receipt of an order gets the order. Where every store has lost
//! it, its units are taken again under its own id; where they cannot be, the books keep the claim.

use bytes::Bytes;
use http::Method;
use serde::Serialize;
use sluice_shared::ids::{SaleId, UserId};
use sluice_shared::lines::Lines;
use sluice_shared::receipt::Receipt;
use sluice_shared::verdict::{Code, Rejection};

use super::Asked;
use crate::chain::{self, Next};
use crate::engine::Ask;
use crate::exchange::{Context, Exchange, Stop};
use crate::filter::{body, reserve};
use crate::gate::Gate;
use crate::respond::Reply;
use crate::view;

/// A claim that cannot be honoured, as the books keep it.
#[derive(Serialize)]
struct Claim<'a> {
    sale: &'a SaleId,
    lines: &'a Lines,
    epoch: u64,
    seq: u64,
    accepted_at: String,
    reason: &'static str,
}

/// Judges the claim of a customer.
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, _: Asked<'_>) -> Result<Next, Stop> {
    let user = chain::customer(gate, exchange)?;
    let body = exchange.body(gate.limits.body_bytes, gate.limits.body_timeout).await?;
    Ok(Next::Reply(claim(gate, exchange.context, &user, &body).await?))
}

/// Judges a customer's claim. Safe to repeat: an order that was lost is taken again once, by its id.
async fn claim(gate: &Gate, context: &Context, user: &UserId, body: &[u8]) -> Result<Reply, Rejection> {
    let invalid = |why: String| Rejection::new(Code::ReceiptInvalid, why);
    let receipt = gate.receipts.verify(&body::receipt(body)?).map_err(|bad| invalid(bad.to_string()))?;
    if receipt.user != *user {
        return Err(invalid("the receipt is another buyer's".to_owned()));
    }
    if let Some(shown) = shelved(gate, &receipt).await? {
        return Ok(shown);
    }
    let path = format!("/internal/v1/orders/{}", receipt.order);
    match ask(gate, context, Method::GET, &path, b"").await? {
        (200, order) => Ok(Reply::json(200, order)),
        (404, _) => take_again(gate, context, &receipt).await,
        _ => Err(unknown()),
    }
}

/// The order as Redis has it.
async fn shelved(gate: &Gate, receipt: &Receipt) -> Result<Option<Reply>, Rejection> {
    let found = gate.record(&receipt.order).await?.filter(|(record, _)| record.user == receipt.user);
    Ok(found.map(|(record, sale)| Reply::json(200, view::order(&receipt.order, &record, &sale.view))))
}

/// Both stores have answered, and neither knows the order: it is lost. The sale's rules hold for it as
/// for any other, and the script takes an order once, whoever else asks for it.
async fn take_again(gate: &Gate, context: &Context, receipt: &Receipt) -> Result<Reply, Rejection> {
    let sale = gate.engine.sale_by_number(receipt.order.sale);
    let Some(sale) = sale.filter(|sale| sale.view.sale == receipt.sale) else {
        return match gate.engine.knows_sales() {
            true => refuse(gate, context, receipt, &reserve::ended()).await,
            false => Err(unknown()),
        };
    };
    let Receipt { order, user, lines, .. } = receipt;
    let ask = Ask { uuid: order.uuid, user: user.clone(), lines: lines.clone(), expired: false };
    match reserve::judge(gate.engine.reserve(&sale, ask).await, &sale.view) {
        Ok(taken) => {
            if !taken.replayed {
                gate.metrics.honoured();
                tracing::warn!(%order, "every store had lost this order; it was taken again by its receipt");
            }
        }
        Err(refused) => match refused.code {
            // Somebody has put it there meanwhile.
            Code::TokenSpent | Code::TokenReused => {}
            Code::SoldOut
            | Code::PurchaseLimit
            | Code::Paused
            | Code::Ended
            | Code::NotStarted
            | Code::UnknownSku => return refuse(gate, context, receipt, &refused).await,
            _ => return Err(refused),
        },
    }
    shelved(gate, receipt).await?.ok_or_else(unknown)
}

/// Puts the claim into the books; only then it is refused.
async fn refuse(
    gate: &Gate,
    context: &Context,
    receipt: &Receipt,
    refused: &Rejection,
) -> Result<Reply, Rejection> {
    let Receipt { order, sale, lines, epoch, seq, accepted, .. } = receipt;
    let (reason, accepted_at) = (refused.code.as_str(), accepted.to_text());
    let claim = Claim { sale, lines, epoch: *epoch, seq: *seq, accepted_at, reason };
    // Texts and numbers always serialise.
    let claim = serde_json::to_vec(&claim).unwrap_or_default();
    let path = format!("/internal/v1/orders/{order}/claim");
    match ask(gate, context, Method::POST, &path, &claim).await? {
        (200, order) => Ok(Reply::json(200, order)),
        (404, _) => {
            Err(Rejection::new(Code::ReceiptInvalid, "the receipt is one of a sale that is not known here"))
        }
        (409, _) => {
            let why = &refused.detail;
            let detail =
                format!("the order was accepted and lost, and the claim is in the books; now: {why}");
            Err(Rejection::new(Code::NotHonoured, detail))
        }
        _ => Err(unknown()),
    }
}

/// Asks the workers for the context's buyer.
async fn ask(
    gate: &Gate,
    context: &Context,
    method: Method,
    path: &str,
    body: &[u8],
) -> Result<(u16, Bytes), Rejection> {
    let _place = gate.lookups.take()?;
    gate.peers.ask(context, method, path, body).await.map_err(|why| {
        tracing::debug!(%why, "the workers did not answer a claim");
        unknown()
    })
}

fn unknown() -> Rejection {
    Rejection::new(Code::Unavailable, "whether there is the order is not known now; send the receipt again")
}
