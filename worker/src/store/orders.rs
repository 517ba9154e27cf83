//! Orders: the row of each, and every move of its state.

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::lines::Lines;
use sluice_shared::message::Accepted;
use sluice_shared::record::{OrderState, Refund};

use super::{Store, StoreError};

/// One order as the books have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRow {
    /// The order.
    pub id: OrderId,
    /// Its sale.
    pub sale: SaleId,
    /// Who bought.
    pub user: UserId,
    /// Its state.
    pub state: OrderState,
    /// Whether its units count as taken.
    pub live: bool,
    /// What it costs, in minor units.
    pub amount: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What was bought.
    pub lines: Lines,
    /// Epoch that took the units.
    pub epoch: u64,
    /// Place in its segment's sequence.
    pub seq: u64,
    /// Money to give back.
    pub refund: Refund,
    /// A text for the buyer.
    pub message: Option<String>,
    /// When the units were taken.
    pub accepted_at: Millis,
    /// When the row was written.
    pub created_at: Millis,
    /// When payment is due.
    pub pay_before: Millis,
    /// When the row last changed.
    pub updated_at: Millis,
}

/// What came of a wish to cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// It is cancelled now, and its units go back.
    Done(OrderRow),
    /// It was over already: cancelled, expired or failed.
    Over(OrderRow),
    /// Paid or refunded.
    NotCancellable(OrderRow),
    /// The books have no such order (or it is another user's).
    Unknown,
}

/// What came of an operator's refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refunded {
    /// Refunded; the money is due until the provider's notice.
    Done(OrderRow),
    /// It is not paid.
    WrongState(OrderRow),
    /// The books have no such order.
    Unknown,
}

/// What became of a batch of accepted orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteReport {
    /// Orders written now, those that failed among them.
    pub written: usize,
    /// Orders that were there already.
    pub repeated: usize,
    /// Messages of an epoch that is over: they left no order.
    pub fenced: usize,
    /// Orders written as failed: the books had no units for them. Must never happen.
    pub failed: Vec<OrderId>,
    /// Messages that cannot become an order: index in the batch, and why.
    pub parked: Vec<(usize, String)>,
}

impl Store {
    /// Writes accepted orders: rows, ledger, saga and outbox in one transaction.
    pub async fn write_orders(&self, _batch: &[Accepted]) -> Result<WriteReport, StoreError> {
        Ok(WriteReport::default())
    }

    /// One order.
    pub async fn order(&self, _order: &OrderId) -> Result<Option<OrderRow>, StoreError> {
        Ok(None)
    }

    /// Cancels an order for its buyer, if it is not paid.
    pub async fn cancel(&self, _order: &OrderId, _user: &UserId) -> Result<Cancelled, StoreError> {
        Ok(Cancelled::Unknown)
    }

    /// Cancels an order that only Redis knows yet: it is inserted as cancelled, with its take, its
    /// release and the event, so that its late message changes nothing. When the row has come
    /// meanwhile, it is cancelled like any other.
    pub async fn cancel_unwritten(&self, _accepted: &Accepted) -> Result<Cancelled, StoreError> {
        Ok(Cancelled::Unknown)
    }

    /// Expires those of these orders that are unpaid and due; answers which.
    pub async fn expire(&self, _orders: &[OrderId]) -> Result<Vec<OrderId>, StoreError> {
        Ok(Vec::new())
    }

    /// Refunds a paid order; with `restock` its units go back on the shelf.
    pub async fn refund(
        &self,
        _order: &OrderId,
        _restock: bool,
        _reason: &str,
    ) -> Result<Refunded, StoreError> {
        Ok(Refunded::Unknown)
    }
}
