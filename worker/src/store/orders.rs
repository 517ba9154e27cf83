//! Orders: the row of each. [`write`] makes rows of messages, [`moves`] and [`cancel`] move them
//! along their states.

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::lines::Lines;
use sluice_shared::message::OrderEvent;
use sluice_shared::record::{OrderState, Refund};
use time::OffsetDateTime;

use super::ledger::id;
use super::{Store, StoreError, millis};

mod cancel;
mod moves;
mod write;

pub use cancel::Wish;
pub use moves::Deadline;
pub(crate) use moves::{lock_offers, sell, take_back};
pub use write::WriteReport;

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

/// What a row says that its record should say too.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Where the order is in its life.
    pub state: OrderState,
    /// Whether its units count as taken.
    pub live: bool,
    /// Money to give back.
    pub refund: Refund,
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

/// The columns of [`RawOrder`].
macro_rules! columns {
    () => {
        "id, sale, user_id, state, live, amount, currency, lines, epoch, seq, \
         CASE WHEN refund_round > 1 AND refund <> '-' THEN refund || refund_round ELSE refund END AS refund, \
         message, accepted_at, created_at, pay_before, updated_at"
    };
}
pub(crate) use columns;

/// A row as it comes.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct RawOrder {
    id: String,
    sale: String,
    user_id: String,
    state: String,
    live: bool,
    amount: i64,
    currency: String,
    lines: String,
    epoch: i64,
    seq: i64,
    refund: String,
    message: Option<String>,
    accepted_at: OffsetDateTime,
    created_at: OffsetDateTime,
    pay_before: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl TryFrom<RawOrder> for OrderRow {
    type Error = StoreError;

    fn try_from(raw: RawOrder) -> Result<Self, StoreError> {
        let bad = |what: &str| StoreError::Broken(format!("order {}: bad {what} in its row", raw.id));
        Ok(Self {
            id: OrderId::parse(&raw.id).ok_or_else(|| bad("id"))?,
            sale: id(SaleId::parse(&raw.sale))?,
            user: id(UserId::parse(&raw.user_id))?,
            state: OrderState::parse(&raw.state).ok_or_else(|| bad("state"))?,
            live: raw.live,
            amount: raw.amount,
            lines: Lines::parse(&raw.lines).map_err(|_| bad("lines"))?,
            epoch: u64::try_from(raw.epoch).map_err(|_| bad("epoch"))?,
            seq: u64::try_from(raw.seq).map_err(|_| bad("seq"))?,
            refund: Refund::parse(&raw.refund).ok_or_else(|| bad("refund"))?,
            accepted_at: millis(raw.accepted_at),
            created_at: millis(raw.created_at),
            pay_before: millis(raw.pay_before),
            updated_at: millis(raw.updated_at),
            currency: raw.currency,
            message: raw.message,
        })
    }
}

impl OrderRow {
    /// What its record should say.
    pub(crate) fn standing(&self) -> Standing {
        Standing { state: self.state, live: self.live, refund: self.refund }
    }

    /// What is told of this order; `release` when its units go back.
    pub(crate) fn event(&self, release: bool) -> OrderEvent {
        let waiting = self.state == OrderState::PendingPayment;
        OrderEvent {
            order: self.id,
            sale: self.sale.clone(),
            state: self.state,
            pay_before: waiting.then_some(self.pay_before),
            refund: self.refund,
            release,
            lines: self.lines.clone(),
            user: self.user.clone(),
        }
    }
}

impl Store {
    /// One order.
    pub async fn order(&self, order: &OrderId) -> Result<Option<OrderRow>, StoreError> {
        let raw: Option<RawOrder> =
            sqlx::query_as(concat!("SELECT ", columns!(), " FROM orders WHERE id = $1"))
                .bind(order.to_string())
                .fetch_optional(&self.pool)
                .await?;
        raw.map(OrderRow::try_from).transpose()
    }
}
