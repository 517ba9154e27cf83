//! What the payment provider tells, and what it does to an order. Here is the judgement, without I/O;
//! [`booking`] carries it out.

use std::collections::{BTreeMap, HashMap};

use sluice_shared::ids::OrderId;
use sluice_shared::record::OrderState;

use super::orders::OrderRow;

mod booking;

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

/// How a payment stands in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payment {
    /// It pays its order.
    Captured,
    /// Money for an order that could not take it.
    Surplus,
    /// It went back.
    Refunded,
    /// It did not come.
    Failed,
}

impl Payment {
    fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Surplus => "surplus",
            Self::Refunded => "refunded",
            Self::Failed => "failed",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Captured, Self::Surplus, Self::Refunded, Self::Failed]
            .into_iter()
            .find(|payment| payment.as_str() == word)
    }
}

/// What a notice does, given what is known of its payment and the state of its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It came before, or has nothing to change.
    Nothing,
    /// Only the payment is written down.
    Record(Payment),
    /// The order is paid.
    Pay,
    /// The money has to go back; the order stays as it is.
    Surplus,
    /// The paid order is refunded.
    TakeBack,
    /// Money that was due has gone back.
    Settle,
}

impl Effect {
    /// How the payment stands afterwards.
    fn payment(self) -> Option<Payment> {
        match self {
            Self::Nothing => None,
            Self::Record(payment) => Some(payment),
            Self::Pay => Some(Payment::Captured),
            Self::Surplus => Some(Payment::Surplus),
            Self::TakeBack | Self::Settle => Some(Payment::Refunded),
        }
    }

    /// The order's state afterwards.
    fn order(self) -> Option<OrderState> {
        match self {
            Self::Pay => Some(OrderState::Paid),
            Self::TakeBack => Some(OrderState::Refunded),
            Self::Nothing | Self::Record(_) | Self::Surplus | Self::Settle => None,
        }
    }
}

fn effect(status: NoticeStatus, known: Option<Payment>, order: OrderState) -> Effect {
    use {NoticeStatus as N, Payment as P};
    match (status, known) {
        (N::Succeeded, None | Some(P::Failed)) if order == OrderState::PendingPayment => Effect::Pay,
        (N::Succeeded, None | Some(P::Failed)) => Effect::Surplus,
        // A refund that overtook the news of its payment: the money is gone already.
        (N::Succeeded, Some(P::Captured | P::Surplus | P::Refunded)) => Effect::Nothing,
        (N::Refunded, Some(P::Refunded)) => Effect::Nothing,
        (N::Refunded, Some(P::Captured)) if order == OrderState::Paid => Effect::TakeBack,
        (N::Refunded, _) => Effect::Settle,
        (N::Failed, None) => Effect::Record(P::Failed),
        (N::Failed, Some(_)) => Effect::Nothing,
    }
}

/// A payment: the order that it belongs to, how it stood in the books, and how it stands once the
/// notices have been judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    order: OrderId,
    stood: Option<Payment>,
    stands: Option<Payment>,
}

/// Payments by their id, in its order.
type Payments = BTreeMap<String, Known>;

/// Whether a notice names what its order costs.
fn fits(notice: &PaymentNotice, row: &OrderRow) -> bool {
    (row.amount, row.currency.as_str()) == (notice.amount, notice.currency.as_str())
}

/// What each notice does after those before it; the error is its outcome where it does nothing.
/// Payments that are new are added to those of the books.
fn judge(
    notices: &[&PaymentNotice],
    rows: &HashMap<OrderId, OrderRow>,
    payments: &mut Payments,
) -> Vec<Result<Effect, NoticeOutcome>> {
    let mut states: HashMap<OrderId, OrderState> = rows.iter().map(|(id, row)| (*id, row.state)).collect();
    let one = |notice: &&PaymentNotice| {
        let row = rows.get(&notice.order).ok_or(NoticeOutcome::UnknownOrder)?;
        if !fits(notice, row) {
            return Err(NoticeOutcome::AmountMismatch);
        }
        let new = Known { order: notice.order, stood: None, stands: None };
        let known = payments.entry(notice.payment_id.clone()).or_insert(new);
        if known.order != notice.order {
            return Err(NoticeOutcome::OtherOrder);
        }
        let state = states.entry(notice.order).or_insert(row.state);
        let effect = effect(notice.status, known.stands, *state);
        known.stands = effect.payment().or(known.stands);
        *state = effect.order().unwrap_or(*state);
        Ok(effect)
    };
    notices.iter().map(one).collect()
}
