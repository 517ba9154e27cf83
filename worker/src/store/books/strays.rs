//! Orders that fell between two stores: what the warden asks when it looks for them.

use std::time::Duration;

use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::message::OrderEvent;

use super::order;
use crate::store::orders::{OrderRow, RawOrder, columns};
use crate::store::segments::{id, unsigned};
use crate::store::{Store, StoreError, outbox};

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

    /// The rows of these orders that have stood as they are for `span`.
    pub async fn rows_older_than(
        &self,
        orders: &[OrderId],
        span: Duration,
    ) -> Result<Vec<OrderRow>, StoreError> {
        let rows: Vec<RawOrder> = sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM orders WHERE id = ANY($1) AND updated_at <= now() - make_interval(secs => $2)"
        ))
        .bind(orders.iter().map(ToString::to_string).collect::<Vec<_>>())
        .bind(span.as_secs_f64())
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
