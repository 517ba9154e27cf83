//! Cancelling for buyers, many at a time: one transaction, whose offers are taken once.

use std::collections::{HashMap, HashSet};

use sqlx::{AssertSqlSafe, PgConnection};

use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::message::Accepted;
use sluice_shared::record::OrderState;

use super::moves::{log, note, undo};
use super::write::{Draft, Sorted, offers, sort};
use super::{Cancelled, OrderRow, RawOrder, columns};
use crate::store::ledger::{Kind, Ledger};
use crate::store::{Locked, Store, StoreError, outbox};

/// How often one is looked at again that another transaction has just written.
const ATTEMPTS: u32 = 3;

/// A buyer's wish to have an order cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The order.
    pub order: OrderId,
    /// Who asks.
    pub user: UserId,
}

impl Store {
    /// Cancels an order for its buyer, if it is not paid.
    pub async fn cancel(&self, order: &OrderId, user: &UserId) -> Result<Cancelled, StoreError> {
        let wish = Wish { order: *order, user: user.clone() };
        for _ in 0..ATTEMPTS {
            let told = self.cancel_rows(std::slice::from_ref(&wish), Locked::Await).await?.pop().flatten();
            if let Some(told) = told {
                return Ok(told);
            }
        }
        Err(StoreError::Away("the order is being changed again and again".to_owned()))
    }

    /// Cancels orders for their buyers in one transaction; answers in their order. `None`: somebody else is
    /// working on the order.
    pub async fn cancel_some(&self, wishes: &[Wish]) -> Result<Vec<Option<Cancelled>>, StoreError> {
        self.cancel_rows(wishes, Locked::Skip).await
    }

    async fn cancel_rows(
        &self,
        wishes: &[Wish],
        locked: Locked,
    ) -> Result<Vec<Option<Cancelled>>, StoreError> {
        let mut writing = self.begin(locked).await?;
        let rows = cancel(&mut writing, wishes, locked).await?;
        undo(&mut writing, &rows, "cancel", "by the buyer").await?;
        if rows.is_empty() {
            drop(writing);
        } else {
            writing.commit().await?;
            self.ring();
        }
        let done: HashMap<OrderId, OrderRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        let others: Vec<OrderId> =
            wishes.iter().map(|wish| wish.order).filter(|order| !done.contains_key(order)).collect();
        let others = if others.is_empty() { Vec::new() } else { self.orders_of(&others).await? };
        let others: HashMap<OrderId, OrderRow> = others.into_iter().map(|row| (row.id, row)).collect();
        let told = |Wish { order, user }: &Wish| {
            let mine = |row: &&OrderRow| row.user == *user;
            if let Some(row) = done.get(order).filter(mine) {
                return Some(Cancelled::Done(row.clone()));
            }
            let Some(row) = others.get(order).filter(mine) else { return Some(Cancelled::Unknown) };
            match row.state {
                OrderState::PendingPayment => None,
                OrderState::Paid | OrderState::Refunded => Some(Cancelled::NotCancellable(row.clone())),
                _ => Some(Cancelled::Over(row.clone())),
            }
        };
        Ok(wishes.iter().map(told).collect())
    }

    /// Cancels an order that only Redis knows yet: it is inserted as cancelled, with its take, its
    /// release and the event, so that its late message changes nothing. When the row has come
    /// meanwhile, it is cancelled like any other. `Unknown`: it was taken in an epoch that is over, or
    /// the books do not know its sale, so it never was an order.
    pub async fn cancel_unwritten(&self, accepted: &Accepted) -> Result<Cancelled, StoreError> {
        match self.insert_cancelled(std::slice::from_ref(accepted), Locked::Await).await?.pop().flatten() {
            Some(cancelled) => Ok(cancelled),
            None => self.cancel(&accepted.order, &accepted.user).await,
        }
    }

    /// The same for many in one transaction; answers in their order. `None`: this one is not to be inserted.
    pub async fn cancel_some_unwritten(
        &self,
        accepted: &[Accepted],
    ) -> Result<Vec<Option<Cancelled>>, StoreError> {
        if accepted.is_empty() {
            return Ok(Vec::new());
        }
        self.insert_cancelled(accepted, Locked::Skip).await
    }

    async fn insert_cancelled(
        &self,
        accepted: &[Accepted],
        locked: Locked,
    ) -> Result<Vec<Option<Cancelled>>, StoreError> {
        let mut writing = self.begin(locked).await?;
        let Sorted { drafts, .. } = sort(&mut writing, accepted).await?;
        let rows = insert(&mut writing, &drafts).await?;
        if !rows.is_empty() {
            let new: HashSet<OrderId> = rows.iter().map(|row| row.id).collect();
            let offers = accepted.iter().filter(|one| new.contains(&one.order)).flat_map(offers);
            let offers: std::collections::BTreeSet<_> = offers.collect();
            let mut ledger = Ledger::lock(&mut writing, offers).await?;
            for row in &rows {
                for kind in [Kind::Take, Kind::Release] {
                    note(&mut ledger, row, kind)?;
                }
            }
            ledger.write(&mut writing).await?;
            follow(&mut writing, &rows).await?;
            writing.commit().await?;
            self.ring();
        }
        let rows: HashMap<OrderId, OrderRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        Ok(accepted.iter().map(|one| rows.get(&one.order).cloned().map(Cancelled::Done)).collect())
    }
}

/// Cancels the rows of those wishes that can be granted now.
async fn cancel(
    writing: &mut PgConnection,
    wishes: &[Wish],
    locked: Locked,
) -> Result<Vec<OrderRow>, StoreError> {
    let skip = if locked == Locked::Skip { "SKIP LOCKED" } else { "" };
    let query = format!(
        "UPDATE orders SET state = 'cancelled', live = false, updated_at = now()
         WHERE state = 'pending_payment' AND id IN (
             SELECT id FROM orders
             WHERE (id, user_id) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND state = 'pending_payment'
             ORDER BY id FOR UPDATE {skip})
         RETURNING {}",
        columns!()
    );
    let raw: Vec<RawOrder> = sqlx::query_as(AssertSqlSafe(query))
        .bind(wishes.iter().map(|wish| wish.order.to_string()).collect::<Vec<_>>())
        .bind(wishes.iter().map(|wish| wish.user.as_str().to_owned()).collect::<Vec<_>>())
        .fetch_all(writing)
        .await?;
    raw.into_iter().map(OrderRow::try_from).collect()
}

/// Inserts orders as cancelled; answers those that were not there.
async fn insert(writing: &mut PgConnection, drafts: &[Draft<'_>]) -> Result<Vec<OrderRow>, StoreError> {
    if drafts.is_empty() {
        return Ok(Vec::new());
    }
    let text = |of: fn(&Accepted) -> String| drafts.iter().map(|d| of(d.accepted)).collect::<Vec<_>>();
    let raw: Vec<RawOrder> = sqlx::query_as(concat!(
        "INSERT INTO orders (id, sale, user_id, state, live, amount, currency, lines, epoch, seq,
                             accepted_at, pay_before)
         SELECT id, sale, user_id, 'cancelled', false, amount, currency, lines, epoch, seq, accepted_at,
                date_trunc('milliseconds', now()) + make_interval(secs => pay_within)
         FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[],
                     $7::bigint[], $8::bigint[], $9::timestamptz[], $10::integer[])
              AS m (id, sale, user_id, amount, currency, lines, epoch, seq, accepted_at, pay_within)
         ORDER BY id
         ON CONFLICT DO NOTHING
         RETURNING ",
        columns!()
    ))
    .bind(text(|m| m.order.to_string()))
    .bind(text(|m| m.sale.to_string()))
    .bind(text(|m| m.user.to_string()))
    .bind(drafts.iter().map(|d| d.amount).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.currency.as_str()).collect::<Vec<_>>())
    .bind(text(|m| m.lines.to_string()))
    .bind(drafts.iter().map(|d| d.epoch).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.seq).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.accepted_at).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.pay_within).collect::<Vec<_>>())
    .fetch_all(writing)
    .await?;
    raw.into_iter().map(OrderRow::try_from).collect()
}

/// What follows from orders that were inserted as cancelled, but for their ledger.
async fn follow(writing: &mut PgConnection, rows: &[OrderRow]) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO saga (order_id, state, step) SELECT id, 'undoing', 'release' FROM unnest($1::text[]) AS m (id)",
    )
    .bind(rows.iter().map(|row| row.id.to_string()).collect::<Vec<_>>())
    .execute(&mut *writing)
    .await?;
    let done: Vec<_> = rows.iter().map(|row| (row, "before it was written")).collect();
    log(&mut *writing, &done, "cancel").await?;
    let events: Vec<_> = rows.iter().map(|row| row.event(true)).collect();
    outbox::push(writing, outbox::RELEASE, &events).await
}
