//! What the payment provider tells, and what it does to an order: one transaction.

use sluice_shared::ids::OrderId;

use super::orders::OrderRow;
use super::{Store, StoreError};

/// What a notice says about the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeStatus {
    /// The money is there.
    Succeeded,
    /// It did not come.
    Failed,
    /// It went back.
    Refunded,
}

/// A notice whose signature and body are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentNotice {
    /// The provider's transaction.
    pub payment_id: String,
    /// The order that it names.
    pub order: OrderId,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What happened.
    pub status: NoticeStatus,
}

/// What came of a notice. Only `Noted` is a 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoticeOutcome {
    /// Taken note of, now or before; the order as it is since.
    Noted(Box<OrderRow>),
    /// The books have no such order.
    UnknownOrder,
    /// Amount or currency are not the order's.
    AmountMismatch,
    /// The payment belongs to another order.
    OtherOrder,
}

impl Store {
    /// Judges and books a notice.
    pub async fn notice(&self, _notice: &PaymentNotice) -> Result<NoticeOutcome, StoreError> {
        Ok(NoticeOutcome::UnknownOrder)
    }
}
