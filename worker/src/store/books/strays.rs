//! Orders that fell between two stores: what the warden asks when it looks for them.

use std::time::Duration;

use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::message::OrderEvent;

use super::{OrderFact, OrderLine, fact, order};
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

    /// Which of these orders are dead in the books since `span`, so that their units should be back.
    pub async fn dead_since(
        &self,
        orders: &[OrderId],
        span: Duration,
    ) -> Result<Vec<(OrderId, OrderFact)>, StoreError> {
        let ids: Vec<String> = orders.iter().map(ToString::to_string).collect();
        let rows: Vec<OrderLine> = sqlx::query_as(
            "SELECT id, state, live, lines, user_id, epoch, seq, amount, refund,
                    (extract(epoch from created_at) * 1000)::bigint,
                    (extract(epoch from updated_at) * 1000)::bigint,
                    (extract(epoch from pay_before) * 1000)::bigint,
                    (extract(epoch from accepted_at) * 1000)::bigint
             FROM orders WHERE id = ANY($1) AND NOT live
               AND updated_at < now() - make_interval(secs => $2)",
        )
        .bind(ids)
        .bind(span.as_secs_f64())
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(fact).collect()
    }

    /// Asks once more for the release of orders that are dead in the books.
    pub async fn release_again(
        &self,
        sale: &SaleId,
        orders: &[(OrderId, OrderFact)],
    ) -> Result<(), StoreError> {
        let event = |(order, fact): &(OrderId, OrderFact)| OrderEvent {
            order: *order,
            sale: sale.clone(),
            state: fact.state,
            pay_before: None,
            refund: fact.refund,
            release: true,
            lines: fact.lines.clone(),
            user: fact.user.clone(),
        };
        let events: Vec<OrderEvent> = orders.iter().map(event).collect();
        let mut writing = self.pool.begin().await?;
        outbox::push(&mut writing, outbox::RELEASE, &events).await?;
        Ok(writing.commit().await?)
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
