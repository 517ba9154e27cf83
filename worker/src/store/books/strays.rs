//! Orders that fell between two stores: what the warden asks when it looks for them.

use std::time::Duration;

use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::message::OrderEvent;

use super::order;
use crate::store::orders::{OrderRow, RawOrder, columns};
use crate::store::{Store, StoreError, outbox};
use crate::store::{id, unsigned};

impl Store {
    /// Which of these orders have a row.
    pub async fn written(&self, orders: &[OrderId]) -> Result<Vec<OrderId>, StoreError> {
        let ids: Vec<String> = orders.iter().map(ToString::to_string).collect();
        let rows: Vec<String> = sqlx::query_scalar("SELECT id FROM orders WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| order(row)).collect()
    }

    /// The next rows of a sale after an order, in the order of ids, that have stood as they are for `span`;
    /// or those of them whose units are back. Asked for as in [`super::orders_after`].
    pub async fn rows_after(
        &self,
        sale: &SaleId,
        after: Option<OrderId>,
        span: Duration,
        dead: bool,
        limit: u32,
    ) -> Result<Vec<OrderRow>, StoreError> {
        let rows: Vec<RawOrder> = sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM orders WHERE (sale, id) > ($1, $2) AND sale <= $1
                AND updated_at <= now() - make_interval(secs => $3) AND (NOT $4 OR NOT live)
              ORDER BY sale, id LIMIT $5"
        ))
        .bind(sale.as_str())
        .bind(after.map(|order| order.to_string()).unwrap_or_default())
        .bind(span.as_secs_f64())
        .bind(dead)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(OrderRow::try_from).collect()
    }

    /// Puts into the outbox once more what was told before, and lost: changes, and releases of units.
    pub async fn tell_again(
        &self,
        changes: &[OrderEvent],
        releases: &[OrderEvent],
    ) -> Result<(), StoreError> {
        let mut writing = self.pool.begin().await?;
        outbox::push(&mut writing, outbox::CHANGED, changes).await?;
        outbox::push(&mut writing, outbox::RELEASE, releases).await?;
        writing.commit().await?;
        self.ring();
        Ok(())
    }

    /// Units that live orders hold, by sale and SKU.
    pub async fn taken(&self, sale: &SaleId) -> Result<Vec<(SkuId, u64)>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT sku, taken FROM offers WHERE sale = $1")
            .bind(sale.as_str())
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(|(sku, n)| Ok((id(SkuId::parse(&sku))?, unsigned(n)))).collect()
    }
}
