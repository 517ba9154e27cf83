//! Orders as the back office looks for them.

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::record::OrderState;
use sqlx::{Postgres, QueryBuilder};

use super::orders::{OrderRow, RawOrder, columns};
use super::{Store, StoreError, moment};

/// What is looked for; whatever is `None` may be anything.
#[derive(Debug, Clone, Default)]
pub struct OrderFilter {
    /// Of one sale.
    pub sale: Option<SaleId>,
    /// Of one buyer.
    pub user: Option<UserId>,
    /// In one state.
    pub state: Option<OrderState>,
    /// Accepted at this time or later.
    pub from: Option<Millis>,
    /// Accepted before this time.
    pub to: Option<Millis>,
}

impl Store {
    /// Orders by id, which is by the time of their sale token; those after `after`.
    pub async fn orders(
        &self,
        filter: &OrderFilter,
        after: Option<&OrderId>,
        limit: u32,
    ) -> Result<Vec<OrderRow>, StoreError> {
        let mut query: QueryBuilder<Postgres> =
            QueryBuilder::new(concat!("SELECT ", columns!(), " FROM orders WHERE true"));
        if let Some(sale) = &filter.sale {
            // A range, and the order of the sale's index, for the reason of `books::orders_after`.
            query.push(" AND sale >= ").push_bind(sale.as_str());
            query.push(" AND sale <= ").push_bind(sale.as_str());
        }
        if let Some(user) = &filter.user {
            query.push(" AND user_id = ").push_bind(user.as_str());
        }
        if let Some(state) = filter.state {
            query.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(from) = filter.from.and_then(moment) {
            query.push(" AND accepted_at >= ").push_bind(from);
        }
        if let Some(to) = filter.to.and_then(moment) {
            query.push(" AND accepted_at < ").push_bind(to);
        }
        if let Some(after) = after {
            query.push(" AND id > ").push_bind(after.to_string());
        }
        query.push(if filter.sale.is_some() { " ORDER BY sale, id" } else { " ORDER BY id" });
        query.push(" LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<RawOrder> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(OrderRow::try_from).collect()
    }
}
