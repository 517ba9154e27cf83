//! The books as an auditor reads them: one snapshot, page by page, nothing written.

use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use sqlx::{Postgres, Transaction};

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId, UserId};
use sluice_shared::lines::{Lines, LinesPool};
use sluice_shared::record::{OrderState, Refund};
use sluice_shared::sale::SaleStep;

use super::orders::Standing;
use super::stamp::Stamp;
use super::{Store, StoreError};
use crate::store::{id, unsigned};

mod lost;
mod moves;
mod offers;
mod strays;
mod trail;

pub use lost::ClaimFacts;
pub use moves::{MoveFact, PaymentTotals};
pub use offers::{ChangeFact, OfferFact};
pub use trail::Trace;

/// What an [`OrderLine`] is read by.
macro_rules! fact_columns {
    () => {
        "SELECT id, state, live, lines, user_id, epoch, seq, amount, currency,
                CASE WHEN refund_round > 1 AND refund <> '-' THEN refund || refund_round ELSE refund END,
                created_at, updated_at, pay_before, accepted_at
         FROM orders"
    };
}

/// Rows a page.
const PAGE: i64 = 5_000;

/// What an audit needs to know about an order's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderFact {
    /// Its state.
    pub state: OrderState,
    /// Whether its units count in the offers.
    pub live: bool,
    /// What it took.
    pub lines: Lines,
    /// Whose it is.
    pub user: UserId,
    /// Epoch of the reply that took the units.
    pub epoch: u64,
    /// Place in the sequence of its segment.
    pub seq: u64,
    /// What it costs.
    pub amount: i64,
    /// In which currency.
    pub currency: Currency,
    /// Money to give back.
    pub refund: Refund,
    /// When the units were taken.
    pub accepted: Millis,
    /// When the row was written.
    pub created: Millis,
    /// When it last changed.
    pub updated: Millis,
    /// When payment is due.
    pub pay_before: Millis,
}

impl OrderFact {
    /// What its record should say.
    pub(crate) fn standing(&self) -> Standing {
        Standing { state: self.state, live: self.live, refund: self.refund }
    }
}

/// An ISO 4217 code.
pub type Currency = [u8; 3];

/// A sale's row.
#[derive(Debug, Clone)]
pub struct SaleFact {
    /// The sale.
    pub sale: SaleId,
    /// Its number in order ids.
    pub number: u32,
    /// Where it is in its life.
    pub step: SaleStep,
    /// Epoch of each segment.
    pub epochs: Vec<u64>,
    /// Whether it was ever put on the shelf.
    pub shelved: bool,
    /// The version of its configuration.
    pub cfg: u64,
    /// When it begins and ends.
    pub span: [Millis; 2],
    /// The longest time to pay that it ever gave.
    pub pay_within: Duration,
    /// When it ended, or was closed after that.
    pub over: Millis,
    /// PostgreSQL's clock at the snapshot.
    pub now: Millis,
}

/// A line of an offer's ledger.
#[derive(Debug, Clone)]
pub struct LedgerFact {
    /// Its place in the offer's chain.
    pub line: u64,
    /// What happened.
    pub kind: String,
    /// The order, if one was the cause.
    pub order: Option<String>,
    /// The stock change, if one was.
    pub change: Option<String>,
    /// Units.
    pub quantity: u64,
    /// When, in microseconds.
    pub at_micros: i128,
    /// Hash over this line and all before.
    pub hash: Vec<u8>,
}

/// A payment's row.
#[derive(Debug, Clone)]
pub struct PaymentFact {
    /// The provider's id.
    pub payment: String,
    /// Its order.
    pub order: OrderId,
    /// How much.
    pub amount: i64,
    /// In which currency.
    pub currency: Currency,
    /// captured, surplus, refunded or failed.
    pub state: String,
}

/// One snapshot of one sale's books.
#[derive(Debug)]
pub struct Books {
    snapshot: Transaction<'static, Postgres>,
    sale: SaleId,
    pool: LinesPool,
}

type SaleLine = (i32, String, i16, i64, i64, i64, i64, i64, i32);
type OrderLine =
    (String, String, bool, String, String, i64, i64, i64, String, String, Stamp, Stamp, Stamp, Stamp);
type LedgerLine = (i64, String, Option<String>, Option<String>, i64, Stamp, Vec<u8>);

impl Store {
    /// Every sale that has books: preloaded or later.
    pub async fn booked_sales(&self) -> Result<Vec<SaleId>, StoreError> {
        let sales: Vec<String> = sqlx::query_scalar(
            "SELECT sale FROM sales s
                 WHERE step <> 'created' OR EXISTS (SELECT 1 FROM orders o WHERE o.sale = s.sale)
                 ORDER BY sale",
        )
        .fetch_all(&self.pool)
        .await?;
        sales.iter().map(|sale| id(SaleId::parse(sale))).collect()
    }

    /// Opens the books of a sale: everything read from them is of one instant.
    pub async fn books(&self, sale: &SaleId) -> Result<Books, StoreError> {
        let mut snapshot = self.pool.begin().await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *snapshot)
            .await?;
        Ok(Books { snapshot, sale: sale.clone(), pool: LinesPool::default() })
    }
}

impl Books {
    /// The same snapshot over another connection, so that two parts of it can be read at once.
    pub async fn beside(&mut self, store: &Store) -> Result<Self, StoreError> {
        let name: String =
            sqlx::query_scalar("SELECT pg_export_snapshot()").fetch_one(&mut *self.snapshot).await?;
        let mut books = store.books(&self.sale).await?;
        // The name is PostgreSQL's own: hexadecimal digits and dashes.
        let import = format!("SET TRANSACTION SNAPSHOT '{name}'");
        let imported = sqlx::raw_sql(sqlx::AssertSqlSafe(import)).execute(&mut *books.snapshot).await;
        // Another server answers at this address, or the first connection has ended: no row is to blame.
        imported.map_err(|error| StoreError::Away(format!("sharing a snapshot: {error}")))?;
        Ok(books)
    }

    /// The sale itself; `None` when there is none of that name.
    pub async fn sale(&mut self) -> Result<Option<SaleFact>, StoreError> {
        let row: Option<SaleLine> = sqlx::query_as(
            "SELECT number, step, segments, cfg, (extract(epoch from starts_at) * 1000)::bigint,
                    (extract(epoch from ends_at) * 1000)::bigint,
                    (extract(epoch from greatest(ends_at, updated_at)) * 1000)::bigint,
                    (extract(epoch from now()) * 1000)::bigint,
                    greatest(pay_within_seconds, (
                        SELECT max((before->>'pay_within_seconds')::integer) FROM audit_log
                        WHERE target = 'sale:' || $1))
             FROM sales WHERE sale = $1",
        )
        .bind(self.sale.as_str())
        .fetch_optional(&mut *self.snapshot)
        .await?;
        let Some((number, step, segments, cfg, starts, ends, over, now, pay_within)) = row else {
            return Ok(None);
        };
        let rows: Vec<(i16, i64, bool)> =
            sqlx::query_as("SELECT segment, epoch, shelved_at IS NOT NULL FROM segments WHERE sale = $1")
                .bind(self.sale.as_str())
                .fetch_all(&mut *self.snapshot)
                .await?;
        let shelved = rows.iter().any(|row| row.2);
        let mut epochs = vec![1; usize::try_from(segments).unwrap_or(1)];
        for (segment, epoch, _) in rows {
            if let Some(slot) = usize::try_from(segment).ok().and_then(|at| epochs.get_mut(at)) {
                *slot = unsigned(epoch);
            }
        }
        let step = SaleStep::parse(&step).ok_or_else(|| StoreError::Broken(format!("step {step:?}")))?;
        let number = u32::try_from(number).unwrap_or(0);
        let (sale, over, now) = (self.sale.clone(), Millis(over), Millis(now));
        let (cfg, span) = (unsigned(cfg), [Millis(starts), Millis(ends)]);
        let pay_within = Duration::from_secs(u64::try_from(pay_within).unwrap_or(0));
        Ok(Some(SaleFact { sale, number, step, epochs, shelved, cfg, span, pay_within, over, now }))
    }

    /// The next page of orders after an id (empty: from the first).
    pub async fn orders_after(&mut self, after: &str) -> Result<Vec<(OrderId, OrderFact)>, StoreError> {
        orders_after(&mut self.snapshot, &self.sale, after, &mut self.pool).await
    }

    /// The next page of an offer's ledger after a line.
    pub async fn ledger_after(&mut self, sku: &SkuId, after: u64) -> Result<Vec<LedgerFact>, StoreError> {
        let line = |row: LedgerLine| {
            let (line, kind, order, change, quantity, at, hash) = row;
            let (line, quantity) = (unsigned(line), unsigned(quantity));
            LedgerFact { line, kind, order, change, quantity, at_micros: at.micros(), hash }
        };
        let rows = sqlx::query_as(
            "SELECT line, kind, order_id, change, quantity, at, hash
             FROM ledger WHERE sale = $1 AND sku = $2 AND line > $3 ORDER BY line LIMIT $4",
        )
        .bind(self.sale.as_str())
        .bind(sku.as_str())
        .bind(crate::store::signed(after))
        .bind(PAGE)
        .fetch(&mut *self.snapshot);
        Ok(rows.map_ok(line).try_collect().await?)
    }

    /// Orders of which something stands in the outbox and has not gone out; whether it is a release.
    pub async fn unsent(&mut self) -> Result<Vec<(OrderId, bool)>, StoreError> {
        let rows: Vec<(String, bool)> = sqlx::query_as(
            "SELECT event->>'order', topic = 'stock.release'
             FROM outbox, jsonb_array_elements(payload->'events') event
             WHERE published_at IS NULL AND event->>'sale' = $1",
        )
        .bind(self.sale.as_str())
        .fetch_all(&mut *self.snapshot)
        .await?;
        rows.iter().map(|(name, release)| Ok((order(name)?, *release))).collect()
    }

    /// Orders of the sale with a fenced message and no row: accepted by nobody, or lost.
    pub async fn fenced_without_row(&mut self, number: u32) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT DISTINCT f.order_id FROM fenced_messages f
             WHERE split_part(f.order_id, '-', 2) = $1
               AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = f.order_id) LIMIT 100",
        )
        .bind(sale_part(number))
        .fetch_all(&mut *self.snapshot)
        .await?)
    }

    /// Stock changes that are not finished: key, SKU, units, whether the ledger has them.
    pub async fn pending_changes(&mut self) -> Result<Vec<(String, SkuId, i64, bool)>, StoreError> {
        pending_changes(&mut self.snapshot, &self.sale).await
    }

    /// Closes the snapshot.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.snapshot.rollback().await?)
    }
}

/// Stock changes of a sale that are not finished.
pub(super) async fn pending_changes(
    snapshot: &mut Transaction<'static, Postgres>,
    sale: &SaleId,
) -> Result<Vec<(String, SkuId, i64, bool)>, StoreError> {
    let rows: Vec<(String, String, i64, bool)> = sqlx::query_as(
        "SELECT c.key, c.sku, c.delta,
                EXISTS (SELECT 1 FROM ledger l WHERE l.sale = c.sale AND l.sku = c.sku AND l.change = c.key)
         FROM stock_changes c WHERE c.sale = $1 AND c.state = 'pending'",
    )
    .bind(sale.as_str())
    .fetch_all(&mut **snapshot)
    .await?;
    rows.into_iter().map(|(key, sku, n, booked)| Ok((key, id(SkuId::parse(&sku))?, n, booked))).collect()
}

/// A page of a sale's orders after an id, in the order of ids. Asked for in the order of the sale's index,
/// and by a range: with `sale = $1` the planner may take the index of ids alone for the same order, and
/// read the orders of every other sale.
pub(super) async fn orders_after(
    snapshot: &mut Transaction<'static, Postgres>,
    sale: &SaleId,
    after: &str,
    pool: &mut LinesPool,
) -> Result<Vec<(OrderId, OrderFact)>, StoreError> {
    let rows = sqlx::query_as(concat!(
        fact_columns!(),
        " WHERE (sale, id) > ($1, $2) AND sale <= $1 ORDER BY sale, id LIMIT $3"
    ))
    .bind(sale.as_str())
    .bind(after)
    .bind(PAGE)
    .fetch(&mut **snapshot);
    facts(rows, pool).await
}

/// Those of these orders that have a row.
pub(super) async fn orders_of(
    snapshot: &mut Transaction<'static, Postgres>,
    orders: &[OrderId],
    pool: &mut LinesPool,
) -> Result<Vec<(OrderId, OrderFact)>, StoreError> {
    let rows = sqlx::query_as(concat!(fact_columns!(), " WHERE id = ANY($1)"))
        .bind(orders.iter().map(ToString::to_string).collect::<Vec<_>>())
        .fetch(&mut **snapshot);
    facts(rows, pool).await
}

/// One by one, so that each is understood while PostgreSQL finds the next.
async fn facts(
    mut rows: impl Stream<Item = Result<OrderLine, sqlx::Error>> + Unpin,
    pool: &mut LinesPool,
) -> Result<Vec<(OrderId, OrderFact)>, StoreError> {
    let mut page = Vec::new();
    while let Some(row) = rows.try_next().await? {
        page.push(fact(row, pool)?);
    }
    Ok(page)
}

fn fact(line: OrderLine, pool: &mut LinesPool) -> Result<(OrderId, OrderFact), StoreError> {
    let (name, state, live, lines, user, epoch, seq, amount, code, refund, created, updated, due, accepted) =
        line;
    let broken = |what: &str| StoreError::Broken(format!("order {name}: {what}"));
    let fact = OrderFact {
        state: OrderState::parse(&state).ok_or_else(|| broken("state"))?,
        live,
        lines: pool.parse(&lines).map_err(|bad| broken(&bad.to_string()))?,
        user: UserId::parse(&user).map_err(|bad| broken(&bad.to_string()))?,
        epoch: unsigned(epoch),
        seq: unsigned(seq),
        amount,
        currency: currency(&code).map_err(|_| broken("currency"))?,
        refund: Refund::parse(&refund).ok_or_else(|| broken("refund"))?,
        accepted: accepted.millis(),
        created: created.millis(),
        updated: updated.millis(),
        pay_before: due.millis(),
    };
    Ok((order(&name)?, fact))
}

fn currency(code: &str) -> Result<Currency, StoreError> {
    code.as_bytes().try_into().map_err(|_| StoreError::Broken(format!("{code:?} is no currency")))
}

/// What the ids of a sale's orders have between their dashes.
fn sale_part(number: u32) -> String {
    let any = OrderId { uuid: [0; 16], sale: number, segment: 0 }.to_string();
    any.split('-').nth(1).unwrap_or_default().to_owned()
}

fn order(name: &str) -> Result<OrderId, StoreError> {
    OrderId::parse(name).ok_or_else(|| StoreError::Broken(format!("{name:?} is no order id")))
}
