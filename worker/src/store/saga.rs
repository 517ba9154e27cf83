//! The purchase saga of each order: where it stands, and what each step and undo did.

use sluice_shared::ids::{OrderId, SaleId};

use super::{Store, StoreError};

/// What a step did, for the log of its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepDone {
    /// The order.
    pub order: OrderId,
    /// What came of it, in a word.
    pub outcome: &'static str,
}

impl Store {
    /// Whether a sale is closed and so long over that its keys in Redis may be gone.
    pub async fn sale_is_over(&self, sale: &SaleId) -> Result<bool, StoreError> {
        let over: Option<bool> = sqlx::query_scalar(
            "SELECT step = 'closed' AND greatest(ends_at, updated_at) < now() - interval '24 hours'
             FROM sales WHERE sale = $1",
        )
        .bind(sale.as_str())
        .fetch_optional(&self.pool)
        .await?;
        Ok(over.unwrap_or(false))
    }

    /// Notes that the last step of these orders is done: their sagas are committed.
    pub async fn saga_committed(&self, step: &'static str, done: &[StepDone]) -> Result<(), StoreError> {
        self.saga_done(step, done, &["running", "stuck"], "committed").await
    }

    /// Notes that the last undo of these orders is done: their sagas are undone.
    pub async fn saga_undone(&self, step: &'static str, done: &[StepDone]) -> Result<(), StoreError> {
        self.saga_done(step, done, &["undoing", "stuck"], "undone").await
    }

    /// Notes that these sagas cannot go on by themselves.
    pub async fn saga_stuck(&self, orders: &[OrderId]) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE saga SET state = 'stuck', updated_at = now()
             WHERE order_id = ANY($1) AND state IN ('running', 'undoing')",
        )
        .bind(orders.iter().map(ToString::to_string).collect::<Vec<_>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn saga_done(
        &self,
        step: &'static str,
        done: &[StepDone],
        from: &[&'static str],
        to: &'static str,
    ) -> Result<(), StoreError> {
        if done.is_empty() {
            return Ok(());
        }
        // Sorted: two workers that note the same orders must not wait for each other.
        let mut done: Vec<(String, &str)> =
            done.iter().map(|one| (one.order.to_string(), one.outcome)).collect();
        done.sort_unstable();
        done.dedup_by(|a, b| a.0 == b.0);
        let (orders, outcomes): (Vec<String>, Vec<&str>) = done.into_iter().unzip();
        sqlx::query(
            "WITH steps AS (
                 INSERT INTO saga_step (order_id, step, outcome)
                 SELECT id, $3, outcome FROM unnest($1::text[], $2::text[]) AS m (id, outcome)
                 ON CONFLICT DO NOTHING),
             mine AS (SELECT order_id FROM saga WHERE order_id = ANY($1) AND state = ANY($4)
                      ORDER BY order_id FOR UPDATE)
             UPDATE saga SET state = $5, step = $3, updated_at = now()
             FROM mine WHERE saga.order_id = mine.order_id",
        )
        .bind(orders)
        .bind(outcomes)
        .bind(step)
        .bind(from)
        .bind(to)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
