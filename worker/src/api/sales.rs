//! Sales: make, list, look at, change.

use std::sync::Arc;

use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::page::{Page, Query};
use super::reply::{self, Answer, not_found};
use super::sheet::{SaleSheet, Sheet, unreadable};
use super::spread::until_edges_know;
use crate::store::sales::SaleRow;

/// `POST /admin/v1/sales`
pub async fn create(api: Arc<Api>, call: Call) -> Answer {
    let new = Sheet::read(call.members()?)?.create()?;
    match api.store.create_sale(&new, &call.actor()?).await.map_err(reply::store)? {
        Some(made) => reply::json(201, &SaleSheet::of(&made)),
        None => Err(Rejection::new(Code::AlreadyExists, format!("there is a sale {} already", new.sale))),
    }
}

/// `GET /admin/v1/sales`
pub async fn list(api: Arc<Api>, call: Call) -> Answer {
    let mut query = Query::of(&call.uri)?;
    let limit = query.limit()?;
    let after = query.after(|text| text.parse().ok())?.unwrap_or(0);
    query.finish()?;
    let found = api.store.sales(after, limit + 1).await.map_err(reply::store)?;
    let page = Page::cut(found.iter().collect(), limit, |sale| sale.number.to_string());
    reply::json(200, &page.map(SaleSheet::of))
}

/// `GET /admin/v1/sales/{sale}`
pub async fn get(api: Arc<Api>, call: Call) -> Answer {
    let found = api.store.sale(&call.sale()?).await.map_err(reply::store)?;
    reply::json(200, &SaleSheet::of(&found.ok_or_else(no_such_sale)?))
}

/// `PATCH /admin/v1/sales/{sale}`
pub async fn patch(api: Arc<Api>, call: Call) -> Answer {
    let sale = call.sale()?;
    let sheet = Sheet::read(call.members()?);
    let judge = |before: &SaleRow, now| match &sheet {
        Ok(sheet) => sheet.patch(before, now),
        Err(wrong) => Err(unreadable(wrong, before, now)),
    };
    let changed =
        api.store.change_sale(&sale, &call.actor()?, "sale.change", judge).await.map_err(reply::store)?;
    let row = changed.ok_or_else(no_such_sale)??;
    until_edges_know(&api, &row).await;
    reply::json(200, &SaleSheet::of(&row))
}

/// `not_found` for a sale.
pub fn no_such_sale() -> Rejection {
    not_found("there is no such sale")
}
