//! What the books have of some orders besides their rows: their ledger lines and their payments; and what they
//! have of orders without a row.

use futures_util::TryStreamExt;
use sluice_shared::ids::{OrderId, SkuId};

use super::{Books, PaymentFact, currency, order, sale_part};
use crate::store::StoreError;
use crate::store::{id, unsigned};

/// Orders without a row that are named, at the most.
const NAMED: i64 = 1_000;

/// A ledger line about an order.
#[derive(Debug, Clone)]
pub struct MoveFact {
    /// The order.
    pub order: OrderId,
    /// The SKU.
    pub sku: SkuId,
    /// What happened.
    pub kind: String,
    /// Units.
    pub quantity: u64,
}

/// The payments of all orders that bear a sale's number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PaymentTotals {
    /// How many there are.
    pub count: usize,
    /// Money that was captured.
    pub captured: i64,
}

impl Books {
    /// The sale's ledger lines about these orders, in the order of the lines.
    pub async fn moves_of(&mut self, orders: &[String]) -> Result<Vec<MoveFact>, StoreError> {
        let mut rows = sqlx::query_as::<_, (String, String, String, i64, i64)>(
            "SELECT order_id, sku, kind, quantity, line FROM ledger WHERE order_id = ANY($1) AND sale = $2",
        )
        .bind(orders)
        .bind(self.sale.as_str())
        .fetch(&mut *self.snapshot);
        let mut moves: Vec<(i64, MoveFact)> = Vec::with_capacity(orders.len() * 2);
        while let Some((name, sku, kind, quantity, line)) = rows.try_next().await? {
            let (order, sku) = (order(&name)?, id(SkuId::parse(&sku))?);
            moves.push((line, MoveFact { order, sku, kind, quantity: unsigned(quantity) }));
        }
        moves.sort_by_key(|(line, _)| *line);
        Ok(moves.into_iter().map(|(_, fact)| fact).collect())
    }

    /// The payments of these orders.
    pub async fn payments_of(&mut self, orders: &[String]) -> Result<Vec<PaymentFact>, StoreError> {
        let mut rows = sqlx::query_as::<_, (String, String, i64, String, String)>(
            "SELECT payment_id, order_id, amount, currency, state FROM payments WHERE order_id = ANY($1)",
        )
        .bind(orders)
        .fetch(&mut *self.snapshot);
        let mut payments = Vec::new();
        while let Some((payment, name, amount, code, state)) = rows.try_next().await? {
            let (order, currency) = (order(&name)?, currency(&code)?);
            payments.push(PaymentFact { order, amount, currency, payment, state });
        }
        Ok(payments)
    }

    /// The payments of all orders that bear the sale's number, whether they have a row or not.
    pub async fn payment_totals(&mut self, number: u32) -> Result<PaymentTotals, StoreError> {
        let (count, captured): (i64, i64) = sqlx::query_as(
            "SELECT count(*), coalesce(sum(amount) FILTER (WHERE state = 'captured'), 0)::bigint
             FROM payments WHERE split_part(order_id, '-', 2) = $1",
        )
        .bind(sale_part(number))
        .fetch_one(&mut *self.snapshot)
        .await?;
        Ok(PaymentTotals { count: usize::try_from(count).unwrap_or(0), captured })
    }

    /// Orders that the ledger names and that have no row, the first ones.
    pub async fn strangers_in_the_ledger(&mut self) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT DISTINCT order_id FROM ledger l
             WHERE sale = $1 AND order_id IS NOT NULL
               AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = l.order_id AND o.sale = l.sale)
             ORDER BY order_id LIMIT $2",
        )
        .bind(self.sale.as_str())
        .bind(NAMED)
        .fetch_all(&mut *self.snapshot)
        .await?)
    }

    /// Orders of the sale's number that were paid for and have no row, the first ones.
    pub async fn strangers_who_paid(&mut self, number: u32) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT DISTINCT order_id FROM payments p
             WHERE split_part(order_id, '-', 2) = $1
               AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = p.order_id AND o.sale = $2)
             ORDER BY order_id LIMIT $3",
        )
        .bind(sale_part(number))
        .bind(self.sale.as_str())
        .bind(NAMED)
        .fetch_all(&mut *self.snapshot)
        .await?)
    }
}
