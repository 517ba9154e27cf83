//! What the payment provider tells, and what it does to an order: one transaction.

use sqlx::PgConnection;

use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Refund};

use super::orders::{OrderRow, RawOrder, columns, sell, take_back};
use super::{Store, StoreError, outbox};

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

/// What the books know of a payment.
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

impl Store {
    /// Judges and books a notice; repeats change nothing.
    pub async fn notice(&self, notice: &PaymentNotice) -> Result<NoticeOutcome, StoreError> {
        let mut writing = self.pool.begin().await?;
        // The order's row is the lock: notices, expiry and cancellation of one order come one by one.
        let raw: Option<RawOrder> =
            sqlx::query_as(concat!("SELECT ", columns!(), " FROM orders WHERE id = $1 FOR UPDATE"))
                .bind(notice.order.to_string())
                .fetch_optional(&mut *writing)
                .await?;
        let Some(raw) = raw else { return Ok(NoticeOutcome::UnknownOrder) };
        let row = OrderRow::try_from(raw)?;
        if (row.amount, row.currency.as_str()) != (notice.amount, notice.currency.as_str()) {
            return Ok(NoticeOutcome::AmountMismatch);
        }
        let known = match payment(&mut writing, notice).await? {
            Known::OfAnotherOrder => return Ok(NoticeOutcome::OtherOrder),
            Known::New => None,
            Known::As(payment) => Some(payment),
        };
        let effect = effect(notice.status, known, row.state);
        let row = apply(&mut writing, notice, row, effect).await?;
        writing.commit().await?;
        Ok(NoticeOutcome::Noted(Box::new(row)))
    }
}

enum Known {
    New,
    As(Payment),
    OfAnotherOrder,
}

async fn payment(writing: &mut PgConnection, notice: &PaymentNotice) -> Result<Known, StoreError> {
    // Two notices of one new payment for two orders: the second waits here for the first.
    let inserted = sqlx::query(
        "INSERT INTO payments (payment_id, order_id, amount, currency, state)
         VALUES ($1, $2, $3, $4, 'failed') ON CONFLICT DO NOTHING",
    )
    .bind(&notice.payment_id)
    .bind(notice.order.to_string())
    .bind(notice.amount)
    .bind(&notice.currency)
    .execute(&mut *writing)
    .await?;
    if inserted.rows_affected() == 1 {
        return Ok(Known::New);
    }
    let (order, state): (String, String) =
        sqlx::query_as("SELECT order_id, state FROM payments WHERE payment_id = $1 FOR UPDATE")
            .bind(&notice.payment_id)
            .fetch_one(writing)
            .await?;
    if order != notice.order.to_string() {
        return Ok(Known::OfAnotherOrder);
    }
    let state = Payment::parse(&state);
    state.map(Known::As).ok_or_else(|| StoreError::Broken("a payment in a bad state".to_owned()))
}

async fn apply(
    writing: &mut PgConnection,
    notice: &PaymentNotice,
    row: OrderRow,
    effect: Effect,
) -> Result<OrderRow, StoreError> {
    let state = match effect {
        Effect::Nothing => return Ok(row),
        Effect::Record(payment) => payment,
        Effect::Pay => Payment::Captured,
        Effect::Surplus => Payment::Surplus,
        Effect::TakeBack | Effect::Settle => Payment::Refunded,
    };
    sqlx::query("UPDATE payments SET state = $2, updated_at = now() WHERE payment_id = $1")
        .bind(&notice.payment_id)
        .bind(state.as_str())
        .execute(&mut *writing)
        .await?;
    match effect {
        Effect::Nothing | Effect::Record(_) => Ok(row),
        Effect::Pay => {
            let row = update(writing, &row, OrderState::Paid, row.refund, true).await?;
            sell(writing, &row, &notice.payment_id).await?;
            Ok(row)
        }
        Effect::Surplus => tell(writing, &row, Refund::Due).await,
        Effect::Settle => {
            let refund = if owed(writing, &row).await? { Refund::Due } else { Refund::Done };
            tell(writing, &row, refund).await
        }
        Effect::TakeBack => {
            let refund = if owed(writing, &row).await? { Refund::Due } else { Refund::Done };
            let keeps = !sale_runs(writing, &row).await?;
            let row = update(writing, &row, OrderState::Refunded, refund, keeps).await?;
            take_back(writing, &row, "by the payment provider").await?;
            Ok(row)
        }
    }
}

/// Whether other money for this order still has to go back.
async fn owed(writing: &mut PgConnection, row: &OrderRow) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM payments WHERE order_id = $1
                        AND (state = 'surplus' OR state = 'captured' AND $2))",
    )
    .bind(row.id.to_string())
    .bind(row.state == OrderState::Refunded)
    .fetch_one(writing)
    .await?)
}

/// Whether units that come back can be sold again.
async fn sale_runs(writing: &mut PgConnection, row: &OrderRow) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT now() < ends_at AND step <> 'closed' FROM sales WHERE sale = $1")
        .bind(row.sale.as_str())
        .fetch_one(writing)
        .await?)
}

async fn tell(writing: &mut PgConnection, row: &OrderRow, refund: Refund) -> Result<OrderRow, StoreError> {
    if row.refund == refund {
        return Ok(row.clone());
    }
    let row = update(writing, row, row.state, refund, row.live).await?;
    outbox::push(writing, outbox::CHANGED, &[row.event(false)]).await?;
    Ok(row)
}

async fn update(
    writing: &mut PgConnection,
    row: &OrderRow,
    state: OrderState,
    refund: Refund,
    live: bool,
) -> Result<OrderRow, StoreError> {
    let raw: RawOrder = sqlx::query_as(concat!(
        "UPDATE orders SET state = $3, refund = $4, live = $5, updated_at = now()
         WHERE id = $1 AND state = $2 RETURNING ",
        columns!()
    ))
    .bind(row.id.to_string())
    .bind(row.state.as_str())
    .bind(state.as_str())
    .bind(refund.as_str())
    .bind(live)
    .fetch_one(writing)
    .await?;
    OrderRow::try_from(raw)
}
