//! What edges ask for buyers: an order that Redis no longer knows, and a cancellation.

use std::sync::Arc;

use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::keys::Shelf;
use sluice_shared::message::Accepted;
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::locate::{Located, locate};
use super::order_sheet::OrderSheet;
use super::reply::{self, Answer, not_found};
use crate::store::orders::Cancelled;

fn no_such_order() -> Rejection {
    not_found("there is no such order")
}

/// The order, if it is the watcher's; another's is none.
pub async fn show(api: &Api, order: &OrderId, watcher: Option<&UserId>) -> Result<OrderSheet, Rejection> {
    let may = |user: &UserId| watcher.is_none_or(|watcher| watcher == user);
    match locate(api, order).await? {
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
    let (order, user) = (call.order()?, call.buyer()?);
    if let Some(answer) = told(api.store.cancel(&order, &user).await.map_err(reply::store)?) {
        return answer;
    }
    let cancelled = match locate(&api, &order).await? {
        // Written between the two looks.
        Located::Row(row) if row.user == user => api.store.cancel(&order, &user).await,
        Located::Record(sale, record) if record.user == user => {
            let accepted = Accepted::of(&Shelf::new(sale, order.segment), order.sale, order.uuid, &record);
            api.store.cancel_unwritten(&accepted).await
        }
        _ => return Err(no_such_order()),
    };
    // On the shelf, and yet nothing for the books: the sale is being re-opened.
    let moving = || Err(Rejection::new(Code::Unavailable, "the order cannot be cancelled at this moment"));
    told(cancelled.map_err(reply::store)?).unwrap_or_else(moving)
}

fn told(cancelled: Cancelled) -> Option<Answer> {
    match cancelled {
        Cancelled::Done(row) | Cancelled::Over(row) => Some(reply::json(202, &OrderSheet::of_row(&row))),
        Cancelled::NotCancellable(_) => {
            let detail = "the order is paid; ask the shop for a refund";
            Some(Err(Rejection::new(Code::NotCancellable, detail)))
        }
        Cancelled::Unknown => None,
    }
}
