//! Moves of an order along its states. Each is one conditional update: whoever finds the order in
//! another state has lost the race, and does nothing further.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::message::Accepted;
use sluice_shared::record::OrderState;

use super::write::{Sorted, offers, sort};
use super::{Cancelled, OrderRow, RawOrder, columns};
use crate::store::ledger::{Kind, Ledger};
use crate::store::{Store, StoreError, outbox};

/// The unpaid orders that fall due, some at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    /// The order.
    pub order: OrderId,
    /// When payment is due.
    pub pay_before: Millis,
}

impl Store {
    /// Cancels an order for its buyer, if it is not paid.
    pub async fn cancel(&self, order: &OrderId, user: &UserId) -> Result<Cancelled, StoreError> {
        let mut writing = self.pool.begin().await?;
        let cancelled: Option<RawOrder> = sqlx::query_as(concat!(
            "UPDATE orders SET state = 'cancelled', live = false, updated_at = now()
             WHERE id = $1 AND user_id = $2 AND state = 'pending_payment'
             RETURNING ",
            columns!()
        ))
        .bind(order.to_string())
        .bind(user.as_str())
        .fetch_optional(&mut *writing)
        .await?;
        if let Some(raw) = cancelled {
            let row = OrderRow::try_from(raw)?;
            undo(&mut writing, std::slice::from_ref(&row), "cancel", "by the buyer").await?;
            writing.commit().await?;
            return Ok(Cancelled::Done(row));
        }
        drop(writing);
        Ok(match self.order(order).await?.filter(|row| row.user == *user) {
            None => Cancelled::Unknown,
            Some(row) if matches!(row.state, OrderState::Paid | OrderState::Refunded) => {
                Cancelled::NotCancellable(row)
            }
            Some(row) => Cancelled::Over(row),
        })
    }

    /// Cancels an order that only Redis knows yet: it is inserted as cancelled, with its take, its
    /// release and the event, so that its late message changes nothing. When the row has come
    /// meanwhile, it is cancelled like any other. `Unknown`: it was taken in an epoch that is over, or
    /// the books do not know its sale, so it never was an order.
    pub async fn cancel_unwritten(&self, accepted: &Accepted) -> Result<Cancelled, StoreError> {
        let mut writing = self.pool.begin().await?;
        let Sorted { drafts, .. } = sort(&mut writing, std::slice::from_ref(accepted)).await?;
        let Some(draft) = drafts.first() else {
            drop(writing);
            return self.cancel(&accepted.order, &accepted.user).await;
        };
        let inserted: Option<RawOrder> = sqlx::query_as(concat!(
            "INSERT INTO orders (id, sale, user_id, state, live, amount, currency, lines, epoch, seq,
                                 accepted_at, pay_before)
             VALUES ($1, $2, $3, 'cancelled', false, $4, $5, $6, $7, $8, $9,
                     date_trunc('milliseconds', now()) + make_interval(secs => $10))
             ON CONFLICT DO NOTHING
             RETURNING ",
            columns!()
        ))
        .bind(accepted.order.to_string())
        .bind(accepted.sale.as_str())
        .bind(accepted.user.as_str())
        .bind(draft.amount)
        .bind(&draft.currency)
        .bind(accepted.lines.to_string())
        .bind(draft.epoch)
        .bind(draft.seq)
        .bind(draft.accepted_at)
        .bind(draft.pay_within)
        .fetch_optional(&mut *writing)
        .await?;
        let Some(raw) = inserted else {
            drop(writing);
            return self.cancel(&accepted.order, &accepted.user).await;
        };
        let row = OrderRow::try_from(raw)?;
        let mut ledger = Ledger::lock(&mut writing, offers(accepted)).await?;
        for kind in [Kind::Take, Kind::Release] {
            note(&mut ledger, &row, kind)?;
        }
        ledger.write(&mut writing).await?;
        sqlx::query("INSERT INTO saga (order_id, state, step) VALUES ($1, 'undoing', 'release')")
            .bind(row.id.to_string())
            .execute(&mut *writing)
            .await?;
        log(&mut writing, &[(&row, "before it was written")], "cancel").await?;
        outbox::push(&mut writing, outbox::RELEASE, &[row.event(true)]).await?;
        writing.commit().await?;
        Ok(Cancelled::Done(row))
    }

    /// Expires those of these orders that are unpaid and due; answers which. One that somebody else
    /// is working on is left for the next time.
    pub async fn expire(&self, orders: &[OrderId]) -> Result<Vec<OrderId>, StoreError> {
        let ids: Vec<String> = orders.iter().map(ToString::to_string).collect();
        let mut writing = self.pool.begin().await?;
        let expired: Vec<RawOrder> = sqlx::query_as(concat!(
            "UPDATE orders SET state = 'expired', live = false, updated_at = now()
             WHERE state = 'pending_payment' AND id IN (
                 SELECT id FROM orders
                 WHERE id = ANY($1) AND state = 'pending_payment' AND pay_before <= now()
                 ORDER BY id FOR UPDATE SKIP LOCKED)
             RETURNING ",
            columns!()
        ))
        .bind(ids)
        .fetch_all(&mut *writing)
        .await?;
        let rows = expired.into_iter().map(OrderRow::try_from).collect::<Result<Vec<_>, _>>()?;
        undo(&mut writing, &rows, "expire", "not paid in time").await?;
        writing.commit().await?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }

    /// The unpaid orders whose time is over by PostgreSQL's clock, the longest overdue first.
    pub async fn overdue(&self, most: u32) -> Result<Vec<OrderId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM orders WHERE state = 'pending_payment' AND pay_before <= now()
             ORDER BY pay_before LIMIT $1",
        )
        .bind(i64::from(most))
        .fetch_all(&self.pool)
        .await?;
        Ok(ids.iter().filter_map(|id| OrderId::parse(id)).collect())
    }

    /// The deadlines of those of these orders that are still unpaid.
    pub async fn deadlines(&self, orders: &[OrderId]) -> Result<Vec<Deadline>, StoreError> {
        let ids: Vec<String> = orders.iter().map(ToString::to_string).collect();
        let rows: Vec<(String, time::OffsetDateTime)> = sqlx::query_as(
            "SELECT id, pay_before FROM orders WHERE id = ANY($1) AND state = 'pending_payment'",
        )
        .bind(ids)
        .fetch_all(&self.pool)
        .await?;
        Ok(deadlines(rows))
    }

    /// A page of all deadlines, after an order, in the order of ids.
    pub async fn deadlines_after(
        &self,
        after: Option<&OrderId>,
        most: u32,
    ) -> Result<Vec<Deadline>, StoreError> {
        let rows: Vec<(String, time::OffsetDateTime)> = sqlx::query_as(
            "SELECT id, pay_before FROM orders WHERE state = 'pending_payment' AND id > $1
             ORDER BY id LIMIT $2",
        )
        .bind(after.map(ToString::to_string).unwrap_or_default())
        .bind(i64::from(most))
        .fetch_all(&self.pool)
        .await?;
        Ok(deadlines(rows))
    }
}

fn deadlines(rows: Vec<(String, time::OffsetDateTime)>) -> Vec<Deadline> {
    let deadline = |(id, at): (String, _)| {
        Some(Deadline { order: OrderId::parse(&id)?, pay_before: crate::store::millis(at) })
    };
    rows.into_iter().filter_map(deadline).collect()
}

/// Adds one line an order line.
fn note(ledger: &mut Ledger, row: &OrderRow, kind: Kind) -> Result<(), StoreError> {
    let about = row.id.to_string();
    row.lines.iter().try_for_each(|(sku, n)| ledger.note(&row.sale, sku, kind, &about, i64::from(n)))
}

/// Locks the offers that these orders name.
pub(crate) async fn lock_offers<'a>(
    writing: &mut PgConnection,
    rows: impl IntoIterator<Item = &'a OrderRow>,
) -> Result<Ledger, StoreError> {
    let offers = |row: &'a OrderRow| row.lines.iter().map(|(sku, _)| (row.sale.clone(), sku.clone()));
    let offers: BTreeSet<_> = rows.into_iter().flat_map(offers).collect();
    Ledger::lock(writing, offers).await
}

/// What follows from orders that have just ended unpaid: their units go back in the books now, and on
/// the shelf by the outbox.
async fn undo(
    writing: &mut PgConnection,
    rows: &[OrderRow],
    step: &'static str,
    why: &str,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut ledger = lock_offers(&mut *writing, rows).await?;
    rows.iter().try_for_each(|row| note(&mut ledger, row, Kind::Release))?;
    ledger.write(&mut *writing).await?;
    let done: Vec<_> = rows.iter().map(|row| (row, why)).collect();
    saga(&mut *writing, &done, "undoing", "release").await?;
    log(&mut *writing, &done, step).await?;
    let events: Vec<_> = rows.iter().map(|row| row.event(true)).collect();
    outbox::push(writing, outbox::RELEASE, &events).await
}

/// What follows from payments: the units of these orders are sold. Whoever has locked their offers
/// writes the ledger.
pub(crate) async fn sell(
    writing: &mut PgConnection,
    ledger: &mut Ledger,
    paid: &[(&OrderRow, &str)],
) -> Result<(), StoreError> {
    paid.iter().try_for_each(|(row, _)| note(ledger, row, Kind::Sold))?;
    saga(&mut *writing, paid, "running", "settle").await?;
    log(&mut *writing, paid, "pay").await?;
    let events: Vec<_> = paid.iter().map(|(row, _)| row.event(false)).collect();
    outbox::push(writing, outbox::CHANGED, &events).await
}

/// What follows from the refund of a paid order; the row says whether its units stay with the buyer.
/// Whoever has locked its offers writes the ledger.
pub(crate) async fn take_back(
    writing: &mut PgConnection,
    ledger: &mut Ledger,
    row: &OrderRow,
    why: &str,
) -> Result<(), StoreError> {
    note(ledger, row, Kind::Refund)?;
    if !row.live {
        note(ledger, row, Kind::Release)?;
    }
    log(&mut *writing, &[(row, why)], "refund").await?;
    if row.live {
        return outbox::push(writing, outbox::CHANGED, &[row.event(false)]).await;
    }
    saga(&mut *writing, &[(row, why)], "undoing", "release").await?;
    outbox::push(writing, outbox::RELEASE, &[row.event(true)]).await
}

fn ids(rows: &[(&OrderRow, &str)]) -> Vec<String> {
    rows.iter().map(|(row, _)| row.id.to_string()).collect()
}

async fn saga(
    writing: &mut PgConnection,
    rows: &[(&OrderRow, &str)],
    state: &'static str,
    step: &'static str,
) -> Result<(), StoreError> {
    // In the order of ids, like whoever else locks sagas.
    sqlx::query(
        "WITH mine AS (SELECT order_id FROM saga
                       WHERE order_id = ANY($1) AND state IN ('running', 'committed')
                       ORDER BY order_id FOR UPDATE)
         UPDATE saga SET state = $2, step = $3, updated_at = now()
         FROM mine WHERE saga.order_id = mine.order_id",
    )
    .bind(ids(rows))
    .bind(state)
    .bind(step)
    .execute(writing)
    .await?;
    Ok(())
}

/// Notes what a step did to each of these orders.
async fn log(
    writing: &mut PgConnection,
    done: &[(&OrderRow, &str)],
    step: &'static str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO saga_step (order_id, step, outcome)
         SELECT id, $3, outcome FROM unnest($1::text[], $2::text[]) AS done (id, outcome)
         ON CONFLICT (order_id, step) DO NOTHING",
    )
    .bind(ids(done))
    .bind(done.iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>())
    .bind(step)
    .execute(writing)
    .await?;
    Ok(())
}
