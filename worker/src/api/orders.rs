//! Orders for the back office: search, one, its time-line, refund; and a sale's books.

use std::sync::Arc;

use sluice_shared::clock::Millis;
use sluice_shared::ids::{SaleId, UserId};
use sluice_shared::record::OrderState;
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::json::TIME;
use super::locate::Located;
use super::order_sheet::StaffSheet;
use super::page::{Page, Query};
use super::reply::{self, Answer, no_such_order};
use super::sales::no_such_sale;
use crate::explain::{ExplainError, time_line};
use crate::store::orders::Refunded;
use crate::store::search::{Cursor, OrderFilter};

const REASON_MAX: usize = 500;

/// `GET /admin/v1/orders`
pub async fn list(api: Arc<Api>, call: Call) -> Answer {
    let mut query = Query::of(&call.uri)?;
    let filter = OrderFilter {
        sale: query.parsed("sale", "must match ^[A-Za-z0-9_-]{1,64}$", |text| SaleId::parse(text).ok())?,
        user: query.parsed("user", "must match ^[!-~]{1,128}$", |text| UserId::parse(text).ok())?,
        state: query.parsed("state", "must be a state of an order", OrderState::parse)?,
        from: query.parsed("from", TIME, Millis::from_text)?,
        to: query.parsed("to", TIME, Millis::from_text)?,
    };
    let limit = query.limit()?;
    let after = query.after(|text| Cursor::parse(text, &filter))?;
    query.finish()?;
    let found = api.store.orders(&filter, after.as_ref(), limit + 1).await.map_err(reply::store)?;
    let page = Page::cut(found, limit, |order| Cursor::of(order, &filter).to_string());
    reply::json(200, &page.map(|order| StaffSheet::of_row(&order)))
}

/// `GET /admin/v1/orders/{order}`
pub async fn get(api: Arc<Api>, call: Call) -> Answer {
    let order = call.order()?;
    let shown = match api.locator.find(&order).await? {
        Located::Row(row) => StaffSheet::of_row(&row),
        Located::Record(sale, record) => StaffSheet::of_record(order, &sale, &record),
        Located::Nowhere => return Err(no_such_order()),
    };
    reply::json(200, &shown)
}

/// `GET /admin/v1/orders/{order}/explain`
pub async fn explain(api: Arc<Api>, call: Call) -> Answer {
    let line = time_line(&api.store, &api.redis, &call.order()?).await.map_err(|error| match error {
        ExplainError::Store(error) => reply::store(error),
        ExplainError::Redis(fault) => reply::redis(fault),
    })?;
    if line.known { reply::json(200, &line) } else { Err(no_such_order()) }
}

/// `GET /admin/v1/sales/{sale}/audit`
pub async fn audit(api: Arc<Api>, call: Call) -> Answer {
    let sale = call.sale()?;
    // Asked here, so that no process is started for nothing.
    let known = api.store.sale(&sale).await.map_err(reply::store)?;
    known.ok_or_else(no_such_sale)?;
    reply::json(200, &*api.auditor.report(&sale).await?)
}

/// `POST /admin/v1/orders/{order}/refund`
pub async fn refund(api: Arc<Api>, call: Call) -> Answer {
    let order = call.order()?;
    let mut body = call.members()?;
    let reason = body.prose("reason", REASON_MAX)?;
    let reason = body.need("reason", reason)?;
    let restock = body.flag("restock")?.unwrap_or(true);
    body.finish()?;
    match api.store.refund_by(&call.actor()?, &order, restock, &reason).await.map_err(reply::store)? {
        Refunded::Done(row) => reply::json(200, &StaffSheet::of_row(&row)),
        Refunded::WrongState(row) => {
            let detail = format!("only a paid order is refunded; this one is {}", row.state.as_str());
            Err(Rejection::new(Code::WrongState, detail))
        }
        Refunded::Unknown => Err(no_such_order()),
    }
}
