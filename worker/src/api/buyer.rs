//! What edges ask for buyers: an order that Redis no longer knows, and a cancellation.

use std::sync::Arc;

use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::locate::Located;
use super::order_sheet::OrderSheet;
use super::reply::{self, Answer, no_such_order};
use crate::store::orders::{Cancelled, Wish};

/// The order, if it is the watcher's; another's is none.
pub async fn show(api: &Api, order: &OrderId, watcher: Option<&UserId>) -> Result<OrderSheet, Rejection> {
    let may = |user: &UserId| watcher.is_none_or(|watcher| watcher == user);
    match api.look_ups.ask(*order).await? {
        Located::Row(row) if may(&row.user) => Ok(OrderSheet::of_row(&row)),
        Located::Record(sale, record) if may(&record.user) => {
            Ok(OrderSheet::of_record(*order, &sale, &record))
        }
        _ => Err(no_such_order()),
    }
}

/// `GET /internal/v1/orders/{order}`
pub async fn get(api: Arc<Api>, call: Call) -> Answer {
    reply::json(200, &show(&api, &call.order()?, call.watcher()?.as_ref()).await?)
}

/// `DELETE /internal/v1/orders/{order}`
pub async fn cancel(api: Arc<Api>, call: Call) -> Answer {
    let wish = Wish { order: call.order()?, user: call.buyer()? };
    match api.cancels.ask(wish).await? {
        Cancelled::Done(row) | Cancelled::Over(row) => reply::json(202, &OrderSheet::of_row(&row)),
        Cancelled::NotCancellable(_) => {
            let detail = "the order is paid; ask the shop for a refund";
            Err(Rejection::new(Code::NotCancellable, detail))
        }
        Cancelled::Unknown => Err(no_such_order()),
    }
}
