//! Orders that were claimed by their receipts and have not been honoured: what the audit asks.

use sluice_shared::ids::OrderId;

use super::{Books, order};
use crate::store::StoreError;

/// Claims that are read by name, at the most.
const NAMED: i64 = 1_000;

/// A sale's claims by receipt.
#[derive(Debug, Clone, Default)]
pub struct ClaimFacts {
    /// All there are.
    pub all: usize,
    /// Those without a row and without an operator's word, the first ones: the order, and why it was
    /// refused.
    pub open: Vec<(OrderId, String)>,
}

impl Books {
    /// The claims that could not be honoured when they came.
    pub async fn claims(&mut self) -> Result<ClaimFacts, StoreError> {
        let all: i64 = sqlx::query_scalar("SELECT count(*) FROM claims WHERE sale = $1")
            .bind(self.sale.as_str())
            .fetch_one(&mut *self.snapshot)
            .await?;
        let open: Vec<(String, String)> = sqlx::query_as(
            "SELECT order_id, reason FROM claims c
             WHERE sale = $1 AND resolved_at IS NULL
               AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = c.order_id)
             ORDER BY order_id LIMIT $2",
        )
        .bind(self.sale.as_str())
        .bind(NAMED)
        .fetch_all(&mut *self.snapshot)
        .await?;
        let open = open.into_iter().map(|(name, reason)| Ok((order(&name)?, reason)));
        let all = usize::try_from(all).unwrap_or(0);
        Ok(ClaimFacts { all, open: open.collect::<Result<_, StoreError>>()? })
    }
}
