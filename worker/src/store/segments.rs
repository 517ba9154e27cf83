//! Sales as the warden projects them, and the epochs of their segments.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{Postgres, Transaction};

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::keys::Segment;
use sluice_shared::lines::LinesPool;
use sluice_shared::sale::{AcceptAfter, Item, SaleStep};

use super::books::{self, OrderFact};
use super::{Store, StoreError, id, signed, unsigned};

/// A sale as PostgreSQL has it: what Redis and the edges are brought to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The sale.
    pub sale: SaleId,
    /// Its number in order ids.
    pub number: u32,
    /// Preloaded, open, paused or closed.
    pub step: SaleStep,
    /// When selling starts.
    pub starts_at: Millis,
    /// When it ends.
    pub ends_at: Millis,
    /// When an order counts as accepted.
    pub accept_after: AcceptAfter,
    /// Configuration version.
    pub cfg: u64,
    /// Epoch of each segment, and whether it was ever put on the shelf.
    pub segments: Vec<SegmentRow>,
    /// What is sold, with its stock.
    pub items: Vec<(Item, u64)>,
}

/// One segment's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRow {
    /// The epoch that fences it.
    pub epoch: u64,
    /// Whether it was ever put on the shelf.
    pub shelved: bool,
}

impl Projection {
    /// The segment of that number.
    pub fn segment(&self, segment: usize) -> Segment {
        Segment::new(self.sale.clone(), u16::try_from(segment).unwrap_or(u16::MAX))
    }
}

/// What the books say of a sale that Redis has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It belongs there.
    Shelved,
    /// It is closed, and has been over for long enough: it may leave.
    Over,
}

/// The news that sales changed; a lost one is made up for by looking regularly.
#[derive(Debug)]
pub struct SaleNews {
    listener: PgListener,
}

impl SaleNews {
    /// Waits for the next change; answers which sale it was, where that can be read.
    pub async fn next(&mut self) -> Result<Option<SaleId>, StoreError> {
        Ok(SaleId::parse(self.listener.recv().await?.payload()).ok())
    }
}

type SaleLine = (String, i32, String, i64, i64, String, i64, i16);
type ItemLine = (String, String, String, i64, String, i32, i64);

impl Store {
    /// Follows `NOTIFY sluice_sales`.
    pub async fn sale_news(&self) -> Result<SaleNews, StoreError> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen("sluice_sales").await?;
        Ok(SaleNews { listener })
    }

    /// Every sale that belongs into Redis, or those of `only`: preloaded or later, and not over for more
    /// than `kept`.
    pub async fn projections(
        &self,
        kept: Duration,
        only: Option<&[&str]>,
    ) -> Result<Vec<Projection>, StoreError> {
        let mut snapshot = self.pool.begin().await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *snapshot)
            .await?;
        let sales: Vec<SaleLine> = sqlx::query_as(
            "SELECT sale, number, step,
                    (extract(epoch from greatest(starts_at, '0001-01-01')) * 1000)::bigint,
                    (extract(epoch from least(ends_at, '9999-12-31')) * 1000)::bigint,
                    accept_after, cfg, segments
             FROM sales
             WHERE step <> 'created'
               AND NOT (step = 'closed'
                        AND greatest(ends_at, updated_at) < now() - make_interval(secs => $1))
               AND ($2::text[] IS NULL OR sale = ANY($2))
             ORDER BY sale",
        )
        .bind(kept.as_secs_f64())
        .bind(only)
        .fetch_all(&mut *snapshot)
        .await?;
        let names: Vec<&str> = sales.iter().map(|sale| sale.0.as_str()).collect();
        let items: Vec<ItemLine> = sqlx::query_as(
            "SELECT sale, sku, title, price, currency, per_user, stock FROM offers
             WHERE sale = ANY($1) ORDER BY sale, place, sku",
        )
        .bind(&names)
        .fetch_all(&mut *snapshot)
        .await?;
        let epochs: Vec<(String, i16, i64, bool)> = sqlx::query_as(
            "SELECT sale, segment, epoch, shelved_at IS NOT NULL FROM segments WHERE sale = ANY($1)",
        )
        .bind(&names)
        .fetch_all(&mut *snapshot)
        .await?;
        snapshot.rollback().await?;
        let mut items = by_sale(items, |item| item.0.clone());
        let mut epochs = by_sale(epochs, |row| row.0.clone());
        let mut taken = |sale: SaleLine| {
            let items = items.remove(&sale.0).unwrap_or_default();
            projection(&sale, &items, &epochs.remove(&sale.0).unwrap_or_default())
        };
        sales.into_iter().map(&mut taken).collect()
    }

    /// What the books say of these sales with these numbers. One that is not in the answer they do not
    /// know, or not as one that was ever on the shelf: then Redis knows more than they do.
    pub async fn words(
        &self,
        sales: &[(SaleId, u32)],
        kept: Duration,
    ) -> Result<BTreeMap<SaleId, Word>, StoreError> {
        let rows: Vec<(String, bool)> = sqlx::query_as(
            "SELECT sale, step = 'closed'
                          AND greatest(ends_at, updated_at) < now() - make_interval(secs => $3)
             FROM sales JOIN unnest($1::text[], $2::bigint[]) AS m (sale, number) USING (sale, number)
             WHERE step <> 'created'",
        )
        .bind(sales.iter().map(|(sale, _)| sale.to_string()).collect::<Vec<_>>())
        .bind(sales.iter().map(|(_, number)| i64::from(*number)).collect::<Vec<_>>())
        .bind(kept.as_secs_f64())
        .fetch_all(&self.pool)
        .await?;
        let word = |over: bool| if over { Word::Over } else { Word::Shelved };
        rows.into_iter().map(|(sale, over)| Ok((id(SaleId::parse(&sale))?, word(over)))).collect()
    }

    /// How many sales belong into Redis.
    pub async fn sales_on_the_shelf(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM sales
             WHERE step <> 'created'
               AND NOT (step = 'closed' AND greatest(ends_at, updated_at) < now() - interval '24 hours')",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(unsigned(count))
    }

    /// Sales that are not closed although they ended, and have not been touched, for so long; with none of
    /// their orders unpaid and no stock change under way.
    pub async fn ended(&self, since: Duration) -> Result<Vec<SaleId>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT sale FROM sales
             WHERE step IN ('preloaded', 'open', 'paused')
               AND greatest(ends_at, updated_at) < now() - make_interval(secs => $1)
               AND NOT EXISTS (SELECT 1 FROM orders o
                               WHERE o.sale = sales.sale AND o.state = 'pending_payment')
               AND NOT EXISTS (SELECT 1 FROM stock_changes c
                               WHERE c.sale = sales.sale AND c.state = 'pending')
             ORDER BY number LIMIT 100",
        )
        .bind(since.as_secs_f64())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|sale| id(SaleId::parse(sale))).collect()
    }

    /// Notes, once for ever, that a segment is put on the shelf now. `false`: it was before, or it
    /// has an epoch or orders already, so that nothing may be preloaded from nothing.
    pub async fn shelve(&self, segment: &Segment) -> Result<bool, StoreError> {
        let mut writing = self.pool.begin().await?;
        sqlx::query("INSERT INTO segments (sale, segment) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(segment.sale.as_str())
            .bind(segment_number(segment))
            .execute(&mut *writing)
            .await?;
        let done = sqlx::query(
            "UPDATE segments SET shelved_at = now()
             WHERE sale = $1 AND segment = $2 AND shelved_at IS NULL AND epoch = 1
               AND NOT EXISTS (SELECT 1 FROM orders WHERE sale = $1)",
        )
        .bind(segment.sale.as_str())
        .bind(segment_number(segment))
        .execute(&mut *writing)
        .await?;
        writing.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// The epoch of a segment.
    pub async fn epoch(&self, segment: &Segment) -> Result<Option<u64>, StoreError> {
        let epoch: Option<i64> =
            sqlx::query_scalar("SELECT epoch FROM segments WHERE sale = $1 AND segment = $2")
                .bind(segment.sale.as_str())
                .bind(segment_number(segment))
                .fetch_optional(&self.pool)
                .await?;
        Ok(epoch.map(unsigned))
    }

    /// Begins to end an epoch: nothing of it is written from here on, unless the transaction is
    /// given up. `None`: another warden was faster.
    pub async fn begin_raise(&self, segment: &Segment, epoch: u64) -> Result<Option<Raising>, StoreError> {
        let mut writing = self.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(format!("sluice:epoch:{}", segment.name()))
            .execute(&mut *writing)
            .await?;
        // Waits for every writer that has the present epoch in its hands (FOR SHARE).
        let raised = sqlx::query(
            "UPDATE segments SET epoch = epoch + 1, shelved_at = coalesce(shelved_at, now())
             WHERE sale = $1 AND segment = $2 AND epoch = $3",
        )
        .bind(segment.sale.as_str())
        .bind(segment_number(segment))
        .bind(signed(epoch))
        .execute(&mut *writing)
        .await?;
        Ok((raised.rows_affected() == 1).then(|| Raising {
            writing,
            segment: segment.clone(),
            store: self.clone(),
            pool: LinesPool::default(),
        }))
    }
}

/// An epoch that is being raised: the books as they will stand when the new one begins.
#[derive(Debug)]
pub struct Raising {
    writing: Transaction<'static, Postgres>,
    segment: Segment,
    store: Store,
    pool: LinesPool,
}

impl Raising {
    /// The next page of the sale's orders after an id (empty: from the first).
    pub async fn orders_after(&mut self, after: &str) -> Result<Vec<(OrderId, OrderFact)>, StoreError> {
        let page = books::orders_after(&mut self.writing, &self.segment.sale, after, &mut self.pool);
        self.store.bounded(page).await
    }

    /// Those of these orders that have a row, as it is now.
    pub async fn orders_of(&mut self, orders: &[OrderId]) -> Result<Vec<(OrderId, OrderFact)>, StoreError> {
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        let rows = books::orders_of(&mut self.writing, orders, &mut self.pool);
        self.store.bounded(rows).await
    }

    /// The stock of each SKU of the sale, over all its segments.
    pub async fn stocks(&mut self) -> Result<Vec<(SkuId, u64)>, StoreError> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT sku, stock FROM offers WHERE sale = $1 ORDER BY sku")
                .bind(self.segment.sale.as_str())
                .fetch_all(&mut *self.writing)
                .await?;
        rows.into_iter().map(|(sku, stock)| Ok((id(SkuId::parse(&sku))?, unsigned(stock)))).collect()
    }

    /// Stock changes that are not finished: key, SKU, units, whether the ledger has them.
    pub async fn pending_changes(&mut self) -> Result<Vec<(String, SkuId, i64, bool)>, StoreError> {
        books::pending_changes(&mut self.writing, &self.segment.sale).await
    }

    /// Whether stock was ever added or withdrawn: then the shares of segments are not even.
    pub async fn stock_was_changed(&mut self) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM ledger WHERE sale = $1 AND kind IN ('add', 'withdraw'))",
        )
        .bind(self.segment.sale.as_str())
        .fetch_one(&mut *self.writing)
        .await?)
    }

    /// The new epoch begins.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.writing.commit().await?)
    }
}

/// Rows by their sale, each in the order that they came in.
fn by_sale<T>(rows: Vec<T>, sale: impl Fn(&T) -> String) -> HashMap<String, Vec<T>> {
    let mut of: HashMap<String, Vec<T>> = HashMap::new();
    for row in rows {
        of.entry(sale(&row)).or_default().push(row);
    }
    of
}

fn projection(
    line: &SaleLine,
    items: &[ItemLine],
    epochs: &[(String, i16, i64, bool)],
) -> Result<Projection, StoreError> {
    let (sale, number, step, starts_at, ends_at, accept_after, cfg, segments) = line;
    let fresh = SegmentRow { epoch: 1, shelved: false };
    let mut rows = vec![fresh; usize::try_from(*segments).unwrap_or(1)];
    for (_, segment, epoch, shelved) in epochs {
        if let Some(row) = usize::try_from(*segment).ok().and_then(|at| rows.get_mut(at)) {
            *row = SegmentRow { epoch: unsigned(*epoch), shelved: *shelved };
        }
    }
    let items = items.iter().map(|item| {
        let (_, sku, title, price, currency, per_user, stock) = item;
        let item = Item {
            sku: id(SkuId::parse(sku))?,
            title: title.clone(),
            price: *price,
            currency: currency.clone(),
            per_user: u32::try_from(*per_user).unwrap_or(0),
        };
        Ok((item, unsigned(*stock)))
    });
    Ok(Projection {
        sale: id(SaleId::parse(sale))?,
        number: u32::try_from(*number).unwrap_or(0),
        step: SaleStep::parse(step).ok_or_else(|| StoreError::Broken(format!("step {step:?}")))?,
        starts_at: Millis(*starts_at),
        ends_at: Millis(*ends_at),
        accept_after: if accept_after == "broker" { AcceptAfter::Broker } else { AcceptAfter::Journal },
        cfg: unsigned(*cfg),
        segments: rows,
        items: items.collect::<Result<_, StoreError>>()?,
    })
}

/// An identifier that a row holds; one that is none means that somebody wrote the table by hand.
fn segment_number(segment: &Segment) -> i16 {
    i16::try_from(segment.index).unwrap_or(i16::MAX)
}
