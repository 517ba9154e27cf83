//! Where an order is: in the books, only on the shelf yet, or nowhere. "Nowhere" is said only when
//! both were asked and could know.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Shelf;
use sluice_shared::record::Record;
use sluice_shared::redis::cmd;
use sluice_shared::script::ShelfScripts;
use sluice_shared::verdict::{Code, Rejection};

use super::{Api, reply};
use crate::store::orders::OrderRow;

/// Which sale has which number. A number is never given twice, so what was learnt holds for ever, and
/// there are only as many entries as sales.
#[derive(Debug, Default)]
pub struct Numbers {
    known: RwLock<HashMap<u32, SaleId>>,
}

impl Numbers {
    fn get(&self, number: u32) -> Option<SaleId> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    fn learn(&self, number: u32, sale: &SaleId) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(number, sale.clone());
    }
}

/// Where an order is.
#[derive(Debug)]
pub enum Located {
    /// In the books.
    Row(Box<OrderRow>),
    /// On the shelf only.
    Record(SaleId, Box<Record>),
    /// Neither knows it.
    Nowhere,
}

async fn sale_of(api: &Api, order: &OrderId) -> Result<Option<SaleId>, Rejection> {
    if let Some(sale) = api.numbers.get(order.sale) {
        return Ok(Some(sale));
    }
    let sale = api.store.sale_of_number(order.sale).await.map_err(reply::store)?;
    if let Some(sale) = &sale {
        api.numbers.learn(order.sale, sale);
    }
    Ok(sale)
}

/// The order's record on the shelf.
async fn record(api: &Api, shelf: &Shelf, order: &OrderId) -> Result<Option<Record>, Rejection> {
    let mut ask = cmd("HGET");
    ask.arg(shelf.orders()).arg(order.field());
    let text: Option<String> =
        api.redis.run("reading an order's record", &ask).await.map_err(reply::redis)?;
    text.map(|text| {
        Record::parse(&text).ok_or_else(|| {
            tracing::error!(%order, "the order's record is torn");
            Rejection::new(Code::Unavailable, "the order cannot be read now")
        })
    })
    .transpose()
}

/// Looks for an order. When the books are away the shelf alone may still show it.
pub async fn locate(api: &Api, order: &OrderId) -> Result<Located, Rejection> {
    let row = api.store.order(order).await.map_err(reply::store);
    if let Ok(Some(row)) = row {
        return Ok(Located::Row(Box::new(row)));
    }
    let Some(sale) = sale_of(api, order).await? else { return Ok(Located::Nowhere) };
    let shelf = Shelf::new(sale, order.segment);
    if let Some(found) = record(api, &shelf, order).await? {
        return Ok(Located::Record(shelf.sale, Box::new(found)));
    }
    row?;
    nowhere(api, &shelf).await
}

/// A shelf that has lost its data, or may have, knows nothing: then an edge or the broker may still
/// hold the order.
async fn nowhere(api: &Api, shelf: &Shelf) -> Result<Located, Rejection> {
    let Some(epoch) = api.store.epoch(shelf).await.map_err(reply::store)? else {
        return Ok(Located::Nowhere);
    };
    if ShelfScripts::new(shelf.clone(), epoch).loaded(&api.redis).await.map_err(reply::redis)? {
        return Ok(Located::Nowhere);
    }
    let sale = api.store.sale(&shelf.sale).await.map_err(reply::store)?;
    if sale.is_none_or(|sale| sale.is_cleared(Millis::now())) {
        return Ok(Located::Nowhere);
    }
    Err(Rejection::new(Code::Unavailable, "the sale is frozen; whether there is such an order is not known"))
}
