//! Notices into the books: a group in one transaction, so that a wave of payments for one offer waits
//! for its row and its ledger once, not once each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::PgConnection;

use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Refund};

use super::{Effect, Known, NoticeOutcome, Payment, PaymentNotice, Payments, fits, judge};
use crate::store::ledger::Ledger;
use crate::store::orders::{OrderRow, RawOrder, columns, lock_offers, sell, take_back};
use crate::store::{Store, StoreError, outbox};

/// How often a group is begun again because another transaction has just written one of its payments.
const ATTEMPTS: u32 = 3;

impl Store {
    /// Judges and books one notice; repeats change nothing.
    pub async fn notice(&self, notice: &PaymentNotice) -> Result<NoticeOutcome, StoreError> {
        let outcome = self.notices(std::slice::from_ref(notice)).await?.pop();
        outcome.ok_or_else(|| StoreError::Broken("a notice was not answered".to_owned()))
    }

    /// Judges and books notices in one transaction, each after those before it; answers in their
    /// order. Repeats change nothing.
    pub async fn notices(&self, notices: &[PaymentNotice]) -> Result<Vec<NoticeOutcome>, StoreError> {
        for _ in 0..ATTEMPTS {
            if let Some(outcomes) = self.attempt(notices).await? {
                return Ok(outcomes);
            }
        }
        Err(StoreError::Away("other notices of the same payments are being booked".to_owned()))
    }

    async fn attempt(&self, notices: &[PaymentNotice]) -> Result<Option<Vec<NoticeOutcome>>, StoreError> {
        let mut writing = self.pool.begin().await?;
        // Orders, then payments, then offers, each by name: so does whoever else locks them, and
        // nobody waits for somebody who waits for him.
        let rows = orders(&mut writing, notices).await?;
        let mut payments = known(&mut writing, notices, &rows).await?;
        let judged = judge(notices, &rows, &mut payments);
        if !write_down(&mut writing, &payments, &rows).await? {
            return Ok(None);
        }
        let moves = |effect: &_| matches!(effect, Ok(Effect::Pay | Effect::TakeBack));
        let moving = notices.iter().zip(&judged).filter(|(_, effect)| moves(effect));
        let moving = moving.filter_map(|(notice, _)| rows.get(&notice.order));
        let ledger = lock_offers(&mut writing, moving).await?;
        let mut booking = Booking { writing: &mut writing, ledger, rows, paying: Vec::new() };
        for (notice, effect) in notices.iter().zip(&judged) {
            if let Ok(effect) = effect {
                booking.apply(notice, *effect).await?;
            }
        }
        let rows = booking.finish().await?;
        writing.commit().await?;
        let outcome = |(notice, effect): (&PaymentNotice, Result<Effect, NoticeOutcome>)| {
            let noted = |row: &OrderRow| NoticeOutcome::Noted(Box::new(row.clone()));
            let row = rows.get(&notice.order);
            effect.map_or_else(|refused| refused, |_| row.map_or(NoticeOutcome::UnknownOrder, noted))
        };
        Ok(Some(notices.iter().zip(judged).map(outcome).collect()))
    }
}

/// The rows of the orders that notices name. Each row is a lock: notices, expiry and cancellation of
/// one order come one by one.
async fn orders(
    writing: &mut PgConnection,
    notices: &[PaymentNotice],
) -> Result<HashMap<OrderId, OrderRow>, StoreError> {
    let ids: BTreeSet<String> = notices.iter().map(|notice| notice.order.to_string()).collect();
    let raw: Vec<RawOrder> = sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM orders WHERE id = ANY($1) ORDER BY id FOR UPDATE"
    ))
    .bind(Vec::from_iter(ids))
    .fetch_all(writing)
    .await?;
    raw.into_iter().map(|raw| OrderRow::try_from(raw).map(|row| (row.id, row))).collect()
}

/// What the books know of the payments of notices that fit their orders.
async fn known(
    writing: &mut PgConnection,
    notices: &[PaymentNotice],
    rows: &HashMap<OrderId, OrderRow>,
) -> Result<Payments, StoreError> {
    let fit = notices.iter().filter(|notice| rows.get(&notice.order).is_some_and(|row| fits(notice, row)));
    let ids: BTreeSet<&str> = fit.map(|notice| notice.payment_id.as_str()).collect();
    let old: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT payment_id, order_id, state FROM payments WHERE payment_id = ANY($1)
         ORDER BY payment_id COLLATE \"C\" FOR UPDATE",
    )
    .bind(Vec::from_iter(ids))
    .fetch_all(writing)
    .await?;
    let read = |(id, order, state): (String, String, String)| {
        let bad = || StoreError::Broken(format!("payment {id} is in a bad state or of a bad order"));
        let stood = Some(Payment::parse(&state).ok_or_else(bad)?);
        let order = OrderId::parse(&order).ok_or_else(bad)?;
        Ok((id, Known { order, stood, stands: stood }))
    };
    old.into_iter().map(read).collect()
}

/// Writes down how payments stand; a new one is bound to its order by that. Whether all could be: what
/// another transaction has written since we looked is to be looked at again.
async fn write_down(
    writing: &mut PgConnection,
    payments: &Payments,
    rows: &HashMap<OrderId, OrderRow>,
) -> Result<bool, StoreError> {
    let (mut new, mut old) = (Columns::default(), Columns::default());
    for (id, known) in payments.iter().filter(|(_, known)| known.stood != known.stands) {
        let (Some(stands), Some(row)) = (known.stands, rows.get(&known.order)) else { continue };
        let columns = if known.stood.is_none() { &mut new } else { &mut old };
        columns.add(id, stands, row);
    }
    let count = new.ids.len() as u64;
    if count > 0 {
        let inserted = sqlx::query(
            "INSERT INTO payments (payment_id, order_id, amount, currency, state)
             SELECT id, of, amount, currency, state
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
                  AS new (id, state, of, amount, currency)
             ON CONFLICT DO NOTHING",
        )
        .bind(new.ids)
        .bind(new.states)
        .bind(new.orders)
        .bind(new.amounts)
        .bind(new.currencies)
        .execute(&mut *writing)
        .await?;
        if inserted.rows_affected() < count {
            return Ok(false);
        }
    }
    if !old.ids.is_empty() {
        sqlx::query(
            "UPDATE payments SET state = new.state, updated_at = now()
             FROM unnest($1::text[], $2::text[]) AS new (id, state) WHERE payment_id = id",
        )
        .bind(old.ids)
        .bind(old.states)
        .execute(writing)
        .await?;
    }
    Ok(true)
}

/// Payments in columns, as they are written.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<&'a str>,
    states: Vec<&'static str>,
    orders: Vec<String>,
    amounts: Vec<i64>,
    currencies: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn add(&mut self, id: &'a str, stands: Payment, row: &'a OrderRow) {
        self.ids.push(id);
        self.states.push(stands.as_str());
        self.orders.push(row.id.to_string());
        self.amounts.push(row.amount);
        self.currencies.push(&row.currency);
    }
}

/// Notices that have been judged, on their way into the books.
struct Booking<'a> {
    writing: &'a mut PgConnection,
    ledger: Ledger,
    rows: HashMap<OrderId, OrderRow>,
    /// Orders to be paid, each with its payment; most notices are such, and are booked together.
    paying: Vec<(OrderId, &'a str)>,
}

impl<'a> Booking<'a> {
    async fn apply(&mut self, notice: &'a PaymentNotice, effect: Effect) -> Result<(), StoreError> {
        if effect == Effect::Pay {
            self.paying.push((notice.order, &notice.payment_id));
            return Ok(());
        }
        if matches!(effect, Effect::Nothing | Effect::Record(_)) {
            return Ok(());
        }
        self.pay().await?;
        let order = notice.order;
        let Some(row) = self.rows.get(&order).cloned() else { return Ok(()) };
        let row = match effect {
            Effect::Nothing | Effect::Record(_) | Effect::Pay => return Ok(()),
            Effect::Surplus => tell(self.writing, &row, row.refund.owed()).await?,
            Effect::Settle => {
                let refund = owed(self.writing, &row).await?;
                tell(self.writing, &row, refund).await?
            }
            Effect::TakeBack => {
                let refund = owed(self.writing, &row).await?;
                let keeps = !sale_runs(self.writing, &row).await?;
                let row = update(self.writing, &row, OrderState::Refunded, refund, keeps).await?;
                take_back(self.writing, &mut self.ledger, &row, "by the payment provider").await?;
                row
            }
        };
        self.rows.insert(order, row);
        Ok(())
    }

    /// Pays the orders that wait for it.
    async fn pay(&mut self) -> Result<(), StoreError> {
        if self.paying.is_empty() {
            return Ok(());
        }
        let paying: BTreeMap<OrderId, &str> = std::mem::take(&mut self.paying).into_iter().collect();
        let raw: Vec<RawOrder> = sqlx::query_as(concat!(
            "UPDATE orders SET state = 'paid', live = true, updated_at = now()
             WHERE id = ANY($1) AND state = 'pending_payment' RETURNING ",
            columns!()
        ))
        .bind(paying.keys().map(ToString::to_string).collect::<Vec<_>>())
        .fetch_all(&mut *self.writing)
        .await?;
        if raw.len() != paying.len() {
            return Err(StoreError::Broken("an order that was locked unpaid is not unpaid".to_owned()));
        }
        let rows = raw.into_iter().map(OrderRow::try_from).collect::<Result<Vec<_>, _>>()?;
        let sold: Vec<(&OrderRow, &str)> =
            rows.iter().filter_map(|row| paying.get(&row.id).map(|payment| (row, *payment))).collect();
        sell(self.writing, &mut self.ledger, &sold).await?;
        self.rows.extend(rows.into_iter().map(|row| (row.id, row)));
        Ok(())
    }

    /// Books what still waits; answers the orders as they are then.
    async fn finish(mut self) -> Result<HashMap<OrderId, OrderRow>, StoreError> {
        self.pay().await?;
        self.ledger.write(self.writing).await?;
        Ok(self.rows)
    }
}

/// Whether other money for this order still has to go back.
async fn owed(writing: &mut PgConnection, row: &OrderRow) -> Result<Refund, StoreError> {
    let owed: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM payments WHERE order_id = $1
                        AND (state = 'surplus' OR state = 'captured' AND $2))",
    )
    .bind(row.id.to_string())
    .bind(row.state == OrderState::Refunded)
    .fetch_one(writing)
    .await?;
    Ok(if owed { row.refund.owed() } else { row.refund.given_back() })
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
        "UPDATE orders SET state = $3, refund = $4, live = $5, refund_round = $6, updated_at = now()
         WHERE id = $1 AND state = $2 RETURNING ",
        columns!()
    ))
    .bind(row.id.to_string())
    .bind(row.state.as_str())
    .bind(state.as_str())
    .bind(refund.as_str())
    .bind(live)
    .bind(i64::from(refund.round()))
    .fetch_one(writing)
    .await?;
    OrderRow::try_from(raw)
}
