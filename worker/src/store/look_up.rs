//! Orders as buyers look for them: many at a time, whether they are there or not.

use std::collections::{BTreeMap, BTreeSet};

use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Segment;

use super::ledger::id;
use super::orders::{OrderRow, RawOrder, columns};
use super::{Store, StoreError};
use crate::store::unsigned;

/// How a segment stands in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its epoch.
    pub epoch: u64,
    /// Whether its sale is closed and long over, so that its shelf has been cleared.
    pub cleared: bool,
}

impl Store {
    /// Those of these orders that are in the books.
    pub async fn orders_of(&self, orders: &[OrderId]) -> Result<Vec<OrderRow>, StoreError> {
        let ids: BTreeSet<String> = orders.iter().map(ToString::to_string).collect();
        let raw: Vec<RawOrder> =
            sqlx::query_as(concat!("SELECT ", columns!(), " FROM orders WHERE id = ANY($1)"))
                .bind(Vec::from_iter(ids))
                .fetch_all(&self.pool)
                .await?;
        raw.into_iter().map(OrderRow::try_from).collect()
    }

    /// The sales of numbers in order ids; a number that no sale has is left out.
    pub async fn sales_of_numbers(&self, numbers: &[u32]) -> Result<Vec<(u32, SaleId)>, StoreError> {
        let numbers: Vec<i32> = numbers.iter().filter_map(|number| i32::try_from(*number).ok()).collect();
        let rows: Vec<(i32, String)> =
            sqlx::query_as("SELECT number, sale FROM sales WHERE number = ANY($1)")
                .bind(numbers)
                .fetch_all(&self.pool)
                .await?;
        let read = |(number, sale): (i32, String)| Ok((number.unsigned_abs(), id(SaleId::parse(&sale))?));
        rows.into_iter().map(read).collect()
    }

    /// How segments stand; one that the books do not have is left out.
    pub async fn standings(&self, segments: &[&Segment]) -> Result<BTreeMap<Segment, Standing>, StoreError> {
        let segment = |segment: &&Segment| i32::from(segment.index);
        let rows: Vec<(String, i16, i64, bool)> = sqlx::query_as(
            "SELECT sale, segment, epoch,
                    step = 'closed' AND greatest(ends_at, updated_at) < now() - interval '24 hours'
             FROM segments JOIN sales USING (sale)
             WHERE (sale, segment) IN (SELECT * FROM unnest($1::text[], $2::integer[]))",
        )
        .bind(segments.iter().map(|segment| segment.sale.as_str().to_owned()).collect::<Vec<_>>())
        .bind(segments.iter().map(segment).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        let read = |(sale, segment, epoch, cleared): (String, i16, i64, bool)| {
            let segment = Segment::new(id(SaleId::parse(&sale))?, segment.unsigned_abs());
            Ok((segment, Standing { epoch: unsigned(epoch), cleared }))
        };
        rows.into_iter().map(read).collect()
    }
}
