//! Moves of an order along its states. Each is one conditional update: whoever finds the order in
//! another state has lost the race, and does nothing further.

use std::collections::BTreeSet;

use sqlx::PgConnection;
use time::OffsetDateTime;

use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;

use super::{OrderRow, RawOrder, columns};
use crate::store::ledger::{Kind, Ledger};
use crate::store::{Store, StoreError, moment, outbox};

/// The unpaid orders that fall due, some at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    /// The order.
    pub order: OrderId,
    /// When payment is due.
    pub pay_before: Millis,
}

impl Store {
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
        if !rows.is_empty() {
            self.ring();
        }
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

    /// A page of all deadlines, after one, in the order of the index of unpaid orders: whatever else has been
    /// sold, none of it is read.
    pub async fn deadlines_after(
        &self,
        after: Option<&Deadline>,
        most: u32,
    ) -> Result<Vec<Deadline>, StoreError> {
        let rows: Vec<(String, time::OffsetDateTime)> = sqlx::query_as(
            "SELECT id, pay_before FROM orders
             WHERE state = 'pending_payment' AND pay_before >= $1 AND (pay_before, id) > ($1, $2)
             ORDER BY pay_before, id LIMIT $3",
        )
        .bind(after.map_or(Some(OffsetDateTime::UNIX_EPOCH), |after| moment(after.pay_before)))
        .bind(after.map(|after| after.order.to_string()).unwrap_or_default())
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
pub(super) fn note(ledger: &mut Ledger, row: &OrderRow, kind: Kind) -> Result<(), StoreError> {
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
pub(super) async fn undo(
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
pub(super) async fn log(
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
