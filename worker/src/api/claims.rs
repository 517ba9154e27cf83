//! Claims by receipt that cannot be honoured: edges note them, the back office sees to them.

use std::sync::Arc;

use serde::Serialize;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::lines::Lines;
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::json::TIME;
use super::locate::Located;
use super::order_sheet::{Line, OrderSheet, lines};
use super::page::{Page, Query};
use super::reply::{self, Answer, not_found};
use crate::store::claims::{Claim, ClaimRow, Standing};

const REASON_MAX: usize = 500;

/// A claim as the back office sees it.
#[derive(Debug, Serialize)]
struct ClaimSheet {
    order_id: OrderId,
    state: &'static str,
    sale: SaleId,
    user: UserId,
    lines: Vec<Line>,
    epoch: u64,
    seq: u64,
    accepted_at: String,
    reason: String,
    times: u64,
    claimed_at: String,
    last_at: String,
    resolved_at: Option<String>,
    resolved_why: Option<String>,
}

impl ClaimSheet {
    fn of(row: ClaimRow) -> Self {
        let ClaimRow { claim, standing, times, claimed_at, last_at, resolved } = row;
        let (resolved_at, resolved_why) = resolved.map(|(at, why)| (at.to_text(), why)).unzip();
        Self {
            order_id: claim.order,
            state: standing.as_str(),
            lines: lines(&claim.lines),
            sale: claim.sale,
            user: claim.user,
            epoch: claim.epoch,
            seq: claim.seq,
            accepted_at: claim.accepted.to_text(),
            reason: claim.reason,
            times,
            claimed_at: claimed_at.to_text(),
            last_at: last_at.to_text(),
            resolved_at,
            resolved_why,
        }
    }
}

/// `POST /internal/v1/orders/{order}/claim`: keeps a claim that the edge cannot honour, unless the order
/// is found after all.
pub async fn note(api: Arc<Api>, call: Call) -> Answer {
    let claim = read(&call)?;
    match api.look_ups.ask(claim.order).await? {
        Located::Row(row) if row.user == claim.user => return reply::json(200, &OrderSheet::of_row(&row)),
        Located::Record(sale, record) if record.user == claim.user => {
            return reply::json(200, &OrderSheet::of_record(claim.order, &sale, &record));
        }
        _ => {}
    }
    let sale = api.store.sale_of_number(claim.order.sale).await.map_err(reply::store)?;
    if sale.as_ref() != Some(&claim.sale) {
        return Err(not_found("there is no such sale"));
    }
    api.store.note_claim(&claim).await.map_err(reply::store)?;
    let Claim { order, reason, .. } = &claim;
    tracing::error!(%order, reason, "an order that was accepted is lost, and its claim is not honoured");
    Err(Rejection::new(Code::NotHonoured, format!("the claim is noted; it was refused as {reason}")))
}

fn read(call: &Call) -> Result<Claim, Rejection> {
    let (order, user, mut body) = (call.order()?, call.buyer()?, call.members()?);
    let sale = body.parsed("sale", "must match ^[A-Za-z0-9_-]{1,64}$", |text| SaleId::parse(text).ok())?;
    let sale = body.need("sale", sale)?;
    let lines = body.parsed("lines", "must be like a=1,b=2", |text| Lines::parse(text).ok())?;
    let lines = body.need("lines", lines)?;
    let mut number = |name: &str| {
        let number = body.integer(name, 0..=i64::MAX)?;
        body.need(name, number).map(i64::unsigned_abs)
    };
    let (epoch, seq) = (number("epoch")?, number("seq")?);
    let accepted = body.parsed("accepted_at", TIME, Millis::from_text)?;
    let accepted = body.need("accepted_at", accepted)?;
    let code = |text: &str| Code::ALL.iter().any(|code| code.as_str() == text).then(|| text.to_owned());
    let reason = body.parsed("reason", "must be a code of a refusal", code)?;
    let reason = body.need("reason", reason)?;
    body.finish()?;
    Ok(Claim { order, sale, user, lines, epoch, seq, accepted, reason })
}

/// `GET /admin/v1/claims`
pub async fn list(api: Arc<Api>, call: Call) -> Answer {
    let mut query = Query::of(&call.uri)?;
    let sale = query.parsed("sale", "must match ^[A-Za-z0-9_-]{1,64}$", |text| SaleId::parse(text).ok())?;
    let state = query.parsed("state", "must be open, honoured or resolved", Standing::parse)?;
    let limit = query.limit()?;
    let after = query.after(OrderId::parse)?;
    query.finish()?;
    let found = api.store.claims(sale.as_ref(), state, after.as_ref(), limit + 1).await;
    let page = Page::cut(found.map_err(reply::store)?, limit, |row| row.claim.order.to_string());
    reply::json(200, &page.map(ClaimSheet::of))
}

/// `POST /admin/v1/claims/{order}/resolve`
pub async fn resolve(api: Arc<Api>, call: Call) -> Answer {
    let (order, mut body) = (call.order()?, call.members()?);
    let reason = body.prose("reason", REASON_MAX)?;
    let reason = body.need("reason", reason)?;
    body.finish()?;
    match api.store.resolve_claim(&call.actor()?, &order, &reason).await.map_err(reply::store)? {
        Some(row) => reply::json(200, &ClaimSheet::of(row)),
        None => Err(not_found("nobody has claimed this order in vain")),
    }
}
