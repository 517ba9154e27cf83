//! The audit log: every write of the back office, in the same transaction as its effect.

use serde_json::{Value, json};
use sluice_shared::ids::OrderId;
use sqlx::PgConnection;

use super::orders::{OrderRow, RawOrder, Refunded, columns, lock_offers, take_back};
use super::{Store, StoreError};

/// Who does something, and in which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The name in the JWT, or the admin token's.
    pub who: String,
    /// The role that was used.
    pub role: &'static str,
    /// The request that did it.
    pub request_id: String,
}

/// What was done.
#[derive(Debug, Clone)]
pub(crate) struct Deed<'a> {
    /// `sale.open`, `stock.change`, …
    pub(crate) action: &'a str,
    /// `sale:demo`, `order:…`.
    pub(crate) target: String,
    /// How the target was.
    pub(crate) before: Option<Value>,
    /// How it is since.
    pub(crate) after: Option<Value>,
}

/// Writes one line of the log.
pub(crate) async fn note(
    transaction: &mut PgConnection,
    actor: &Actor,
    deed: Deed<'_>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_log (who, role, action, target, before, after, request_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&actor.who)
    .bind(actor.role)
    .bind(deed.action)
    .bind(deed.target)
    .bind(deed.before)
    .bind(deed.after)
    .bind(&actor.request_id)
    .execute(transaction)
    .await?;
    Ok(())
}

impl Store {
    /// Refunds a paid order by somebody's decision; with `restock` its units go back on the shelf, if
    /// there still is one. The money is due until the provider's notice.
    pub async fn refund_by(
        &self,
        actor: &Actor,
        order: &OrderId,
        restock: bool,
        reason: &str,
    ) -> Result<Refunded, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let refunded: Option<RawOrder> = sqlx::query_as(concat!(
            "UPDATE orders SET state = 'refunded', refund = 'due', \
             refund_round = refund_round + (refund = 'done')::int, updated_at = now(), \
             live = NOT ($2 AND EXISTS (SELECT 1 FROM sales s WHERE s.sale = orders.sale AND NOT \
             (s.step = 'closed' AND greatest(s.ends_at, s.updated_at) < now() - interval '24 hours'))) \
             WHERE id = $1 AND state = 'paid' RETURNING ",
            columns!()
        ))
        .bind(order.to_string())
        .bind(restock)
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(raw) = refunded else {
            drop(transaction);
            return Ok(self.order(order).await?.map_or(Refunded::Unknown, Refunded::WrongState));
        };
        let row = OrderRow::try_from(raw)?;
        let mut ledger = lock_offers(&mut transaction, [&row]).await?;
        take_back(&mut transaction, &mut ledger, &row, reason).await?;
        ledger.write(&mut transaction).await?;
        let deed = Deed {
            action: "order.refund",
            target: format!("order:{order}"),
            before: Some(json!({ "state": "paid" })),
            after: Some(json!({ "state": "refunded", "restock": !row.live, "reason": reason })),
        };
        note(&mut transaction, actor, deed).await?;
        transaction.commit().await?;
        self.ring();
        Ok(Refunded::Done(row))
    }
}
