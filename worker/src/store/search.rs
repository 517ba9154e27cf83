//! Orders as the back office looks for them.
//!
//! Every search goes along an index in its order, and stops when the page is full: of a sale or of a user by
//! id, else, where a state or a time is asked for, by the time of acceptance within each state.

use std::fmt;

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::record::OrderState;
use sqlx::{Postgres, QueryBuilder};
use time::OffsetDateTime;

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

/// States that a row may be in.
const STATES: [OrderState; 6] = [
    OrderState::PendingPayment,
    OrderState::Paid,
    OrderState::Expired,
    OrderState::Cancelled,
    OrderState::Failed,
    OrderState::Refunded,
];

impl OrderFilter {
    /// Whether orders come by the time of their acceptance instead of by their id.
    fn is_by_time(&self) -> bool {
        let somebody = self.sale.is_some() || self.user.is_some();
        !somebody && (self.state.is_some() || self.from.is_some() || self.to.is_some())
    }
}

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    order: OrderId,
    /// When it was accepted, where orders come by that.
    accepted: Option<Millis>,
}

impl Cursor {
    /// The place of an order among those that a filter finds.
    pub fn of(order: &OrderRow, filter: &OrderFilter) -> Self {
        Self { order: order.id, accepted: filter.is_by_time().then_some(order.accepted_at) }
    }

    /// Reads what [`fmt::Display`] writes for the same filter.
    pub fn parse(text: &str, filter: &OrderFilter) -> Option<Self> {
        if !filter.is_by_time() {
            return Some(Self { order: OrderId::parse(text)?, accepted: None });
        }
        let (at, order) = text.split_once('.')?;
        let at = at.parse().ok().filter(|at: &u64| at.to_string().len() <= 15);
        let accepted = i64::try_from(at?).ok().map(Millis);
        Some(Self { order: OrderId::parse(order)?, accepted })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.accepted {
            Some(at) => write!(f, "{}.{}", at.0, self.order),
            None => write!(f, "{}", self.order),
        }
    }
}

impl Store {
    /// Orders that a filter finds, those after `after`.
    pub async fn orders(
        &self,
        filter: &OrderFilter,
        after: Option<&Cursor>,
        limit: u32,
    ) -> Result<Vec<OrderRow>, StoreError> {
        let mut query = QueryBuilder::new("");
        if filter.is_by_time() {
            by_time(&mut query, filter, after, limit);
        } else {
            by_id(&mut query, filter, after, limit);
        }
        let rows: Vec<RawOrder> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(OrderRow::try_from).collect()
    }
}

fn by_id(query: &mut QueryBuilder<Postgres>, filter: &OrderFilter, after: Option<&Cursor>, limit: u32) {
    let user = filter.user.as_ref().map(|user| ("user_id", user.as_str()));
    let owner = user.or(filter.sale.as_ref().map(|sale| ("sale", sale.as_str())));
    let after = after.map(|after| after.order.to_string()).unwrap_or_default();
    query.push(concat!("SELECT ", columns!(), " FROM orders WHERE "));
    match owner {
        // A range, and the order of the index, for the reason of `books::orders_after`; both columns say where in
        // the index the page begins.
        Some((column, owner)) => {
            query.push(format!("({column}, id) > (")).push_bind(owner.to_owned()).push(", ").push_bind(after);
            query.push(format!(") AND {column} <= ")).push_bind(owner.to_owned());
        }
        None => {
            query.push("id > ").push_bind(after);
        }
    }
    if let (Some(_), Some(sale)) = (&filter.user, &filter.sale) {
        query.push(" AND sale = ").push_bind(sale.as_str().to_owned());
    }
    if let Some(state) = filter.state {
        query.push(" AND state = ").push_bind(state.as_str());
    }
    accepted(query, filter);
    let order = owner.map_or("id".to_owned(), |(column, _)| format!("{column}, id"));
    query.push(format!(" ORDER BY {order} LIMIT ")).push_bind(i64::from(limit));
}

/// The first of each state, and of these the first.
fn by_time(query: &mut QueryBuilder<Postgres>, filter: &OrderFilter, after: Option<&Cursor>, limit: u32) {
    let states = filter.state.map_or_else(|| STATES.to_vec(), |state| vec![state]);
    let mut union = "SELECT * FROM (";
    for state in states {
        query.push(union).push(concat!("(SELECT ", columns!(), " FROM orders WHERE state = "));
        query.push_bind(state.as_str());
        accepted(query, filter);
        if let Some((after, at)) = after.and_then(|after| Some((after, moment(after.accepted?)?))) {
            query.push(" AND accepted_at >= ").push_bind(at);
            query.push(" AND (accepted_at, id) > (").push_bind(at);
            query.push(", ").push_bind(after.order.to_string()).push(")");
        }
        query.push(" ORDER BY accepted_at, id LIMIT ").push_bind(i64::from(limit)).push(")");
        union = " UNION ALL ";
    }
    query.push(") found ORDER BY accepted_at, id LIMIT ").push_bind(i64::from(limit));
}

fn accepted(query: &mut QueryBuilder<Postgres>, filter: &OrderFilter) {
    let time = |at: Option<Millis>| -> Option<OffsetDateTime> { at.and_then(moment) };
    if let Some(from) = time(filter.from) {
        query.push(" AND accepted_at >= ").push_bind(from);
    }
    if let Some(to) = time(filter.to) {
        query.push(" AND accepted_at < ").push_bind(to);
    }
}
