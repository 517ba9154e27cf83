//! Accepted orders into the books: rows, ledger, saga and outbox of a batch in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::PgConnection;
use time::OffsetDateTime;

use sluice_shared::failpoint;
use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::message::{Accepted, OrderEvent};
use sluice_shared::record::{OrderState, Refund};

use crate::store::ledger::{Kind, Ledger};
use crate::store::{Store, StoreError, millis, moment, outbox};

/// What buyers are told of an order that the books have no units for.
const NO_UNITS: &str = "not enough units in the books";

/// What became of a batch of accepted orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteReport {
    /// Orders written now, those that failed among them.
    pub written: usize,
    /// Orders that were there already.
    pub repeated: usize,
    /// Messages of an epoch that is over: they left no order.
    pub fenced: usize,
    /// Orders written as failed: the books had no units for them. Must never happen.
    pub failed: Vec<OrderId>,
    /// Messages that cannot become an order: index in the batch, and why.
    pub parked: Vec<(usize, String)>,
}

impl WriteReport {
    fn add(&mut self, part: Self, offset: usize) {
        self.written += part.written;
        self.repeated += part.repeated;
        self.fenced += part.fenced;
        self.failed.extend(part.failed);
        self.parked.extend(part.parked.into_iter().map(|(at, why)| (offset + at, why)));
    }
}

/// One message on its way to a row.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) accepted: &'a Accepted,
    pub(super) accepted_at: OffsetDateTime,
    pub(super) epoch: i64,
    pub(super) seq: i64,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) pay_within: i32,
    /// Why the order cannot be carried out, although it was accepted: it is written as failed.
    flaw: Option<&'static str>,
}

/// What the books say about messages before anything is written.
#[derive(Debug, Default)]
pub(super) struct Sorted<'a> {
    pub(super) drafts: Vec<Draft<'a>>,
    pub(super) fenced: Vec<&'a Accepted>,
    parked: Vec<(usize, String)>,
}

impl Store {
    /// Writes accepted orders; messages that come again change nothing. Should the data of one make
    /// the database refuse the batch, it is found by halving, and the others are written.
    pub async fn write_orders(&self, batch: &[Accepted]) -> Result<WriteReport, StoreError> {
        let mut report = WriteReport::default();
        let mut parts = vec![(0, batch.len())];
        while let Some((start, end)) = parts.pop() {
            match self.write_part(&batch[start..end]).await {
                Ok(written) => report.add(written, start),
                Err(StoreError::Broken(why)) if end - start == 1 => report.parked.push((start, why)),
                Err(StoreError::Broken(_)) => {
                    let middle = start.midpoint(end);
                    // The stack's top comes next: the order of messages stays.
                    parts.push((middle, end));
                    parts.push((start, middle));
                }
                Err(away) => return Err(away),
            }
        }
        Ok(report)
    }

    async fn write_part(&self, batch: &[Accepted]) -> Result<WriteReport, StoreError> {
        let mut writing = self.pool.begin().await?;
        let Sorted { drafts, fenced, parked } = sort(&mut writing, batch).await?;
        let mut report = WriteReport { parked, ..WriteReport::default() };
        report.fenced = note_fenced(&mut writing, &fenced).await?;
        let due = insert(&mut writing, &drafts).await?;
        let mut new = HashMap::with_capacity(due.len());
        new.extend(due);
        report.repeated = drafts.len() - new.len();
        report.written = new.len();
        let mut seen = BTreeSet::new();
        let fresh = |draft: &&Draft<'_>| {
            let order = draft.accepted.order;
            new.contains_key(&order.to_string()) && seen.insert(order)
        };
        let fresh: Vec<&Draft<'_>> = drafts.iter().filter(fresh).collect();
        let (created, failed) = take_units(&mut writing, &fresh, &new).await?;
        outbox::push(&mut writing, outbox::CREATED, &created).await?;
        outbox::push(&mut writing, outbox::RELEASE, &failed).await?;
        report.failed = failed.iter().map(|event| event.order).collect();
        failpoint::reach("F54.before-commit");
        writing.commit().await?;
        if report.written > 0 {
            self.ring();
        }
        Ok(report)
    }
}

type Terms = (String, i16, i64, i32, i32);

/// Sorts messages by what the books say about their sale: epoch, prices, time to pay. The epochs stay
/// as they are until the transaction ends: the warden raises them under the same lock.
pub(super) async fn sort<'a>(
    writing: &mut PgConnection,
    batch: &'a [Accepted],
) -> Result<Sorted<'a>, StoreError> {
    let segments: BTreeSet<_> = batch.iter().map(|m| (m.sale.as_str(), m.order.segment)).collect();
    let segment = |n: u16| i16::try_from(n).unwrap_or(i16::MAX);
    let terms: Vec<Terms> = sqlx::query_as(
        "SELECT sale, segment, epoch, number, pay_within_seconds
         FROM segments JOIN sales USING (sale)
         WHERE (sale, segment) IN (SELECT * FROM unnest($1::text[], $2::smallint[]))
         FOR SHARE OF segments",
    )
    .bind(segments.iter().map(|(sale, _)| (*sale).to_owned()).collect::<Vec<_>>())
    .bind(segments.iter().map(|(_, n)| segment(*n)).collect::<Vec<_>>())
    .fetch_all(&mut *writing)
    .await?;
    let terms: BTreeMap<(&str, i16), &Terms> = terms.iter().map(|t| ((t.0.as_str(), t.1), t)).collect();
    let prices = prices(writing, batch).await?;
    let mut sorted = Sorted::default();
    for (at, accepted) in batch.iter().enumerate() {
        let known = terms.get(&(accepted.sale.as_str(), segment(accepted.order.segment)));
        let Some((_, _, epoch, number, pay_within)) = known else {
            sorted.parked.push((at, format!("unknown sale {}", accepted.sale)));
            continue;
        };
        if i64::from(accepted.order.sale) != i64::from(*number) {
            sorted.parked.push((at, format!("the order is not one of sale {}", accepted.sale)));
            continue;
        }
        if i64::try_from(accepted.epoch).is_ok_and(|own| own < *epoch) {
            sorted.fenced.push(accepted);
            continue;
        }
        match draft(accepted, *pay_within, &prices) {
            Ok(draft) => sorted.drafts.push(draft),
            Err(why) => sorted.parked.push((at, why)),
        }
    }
    Ok(sorted)
}

type Prices = HashMap<(SaleId, SkuId), (i64, String)>;

async fn prices(writing: &mut PgConnection, batch: &[Accepted]) -> Result<Prices, StoreError> {
    let wanted: BTreeSet<(&SaleId, &SkuId)> =
        batch.iter().flat_map(|m| m.lines.iter().map(|(sku, _)| (&m.sale, sku))).collect();
    let rows: Vec<(String, String, i64, String)> = sqlx::query_as(
        "SELECT sale, sku, price, currency FROM offers
         WHERE (sale, sku) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
    )
    .bind(wanted.iter().map(|(sale, _)| sale.as_str()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(_, sku)| sku.as_str()).collect::<Vec<_>>())
    .fetch_all(writing)
    .await?;
    let known: HashMap<_, _> = rows
        .iter()
        .map(|(sale, sku, price, currency)| ((sale.as_str(), sku.as_str()), (*price, currency)))
        .collect();
    let price = |(sale, sku): (&SaleId, &SkuId)| {
        let (price, currency) = known.get(&(sale.as_str(), sku.as_str()))?;
        Some(((sale.clone(), sku.clone()), (*price, (*currency).clone())))
    };
    Ok(wanted.into_iter().filter_map(price).collect())
}

fn draft<'a>(accepted: &'a Accepted, pay_within: i32, prices: &Prices) -> Result<Draft<'a>, String> {
    let number = |n: u64, what: &str| i64::try_from(n).map_err(|_| format!("{what} {n} is too large"));
    let (mut amount, mut currency, mut flaw) = (0_i64, String::new(), None);
    for (sku, units) in accepted.lines.iter() {
        let key = (accepted.sale.clone(), sku.clone());
        let (price, code) = prices.get(&key).ok_or_else(|| format!("unknown SKU {sku}"))?;
        amount = amount.saturating_add(price.saturating_mul(i64::from(units)));
        if !currency.is_empty() && currency != *code {
            flaw = Some("the lines have different currencies");
        }
        currency.clone_from(code);
    }
    if amount == i64::MAX {
        flaw = Some("the amount is too large");
    }
    let accepted_at = moment(accepted.at).filter(|at| (1970..=9999).contains(&at.year()));
    Ok(Draft {
        accepted,
        accepted_at: accepted_at.ok_or_else(|| format!("{} is no time", accepted.at.0))?,
        epoch: number(accepted.epoch, "epoch")?,
        seq: number(accepted.seq, "sequence")?,
        amount,
        currency,
        pay_within,
        flaw,
    })
}

/// Notes messages of an epoch that is over. One whose order stands in the books came again, late, and
/// is nothing to note.
async fn note_fenced(writing: &mut PgConnection, fenced: &[&Accepted]) -> Result<usize, StoreError> {
    if fenced.is_empty() {
        return Ok(0);
    }
    let count: i64 = sqlx::query_scalar(
        "WITH late AS (
             SELECT DISTINCT id, epoch FROM unnest($1::text[], $2::bigint[]) AS m (id, epoch)
             WHERE NOT EXISTS (SELECT 1 FROM orders WHERE orders.id = m.id)),
         noted AS (INSERT INTO fenced_messages (order_id, epoch) SELECT * FROM late
                   ON CONFLICT DO NOTHING)
         SELECT count(*) FROM late",
    )
    .bind(fenced.iter().map(|m| m.order.to_string()).collect::<Vec<_>>())
    .bind(fenced.iter().map(|m| i64::try_from(m.epoch).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .fetch_one(writing)
    .await?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Inserts the orders that are not there yet, with their sagas; answers those, and when each is due.
/// Rows come before stock: else a message that comes again would eat units.
async fn insert(
    writing: &mut PgConnection,
    drafts: &[Draft<'_>],
) -> Result<Vec<(String, OffsetDateTime)>, StoreError> {
    if drafts.is_empty() {
        return Ok(Vec::new());
    }
    let text = |of: fn(&Accepted) -> String| drafts.iter().map(|d| of(d.accepted)).collect::<Vec<_>>();
    Ok(sqlx::query_as(
        "WITH new AS (
             INSERT INTO orders (id, sale, user_id, state, live, amount, currency, lines, epoch, seq,
                                 accepted_at, pay_before)
             SELECT id, sale, user_id, 'pending_payment', true, amount, currency, lines, epoch, seq,
                    accepted_at,
                    date_trunc('milliseconds', now()) + make_interval(secs => pay_within)
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[],
                         $7::bigint[], $8::bigint[], $9::timestamptz[], $10::integer[])
                  AS m (id, sale, user_id, amount, currency, lines, epoch, seq, accepted_at, pay_within)
             ORDER BY id
             ON CONFLICT DO NOTHING
             RETURNING id, pay_before),
         sagas AS (INSERT INTO saga (order_id, step) SELECT id, 'pay' FROM new)
         SELECT id, pay_before FROM new",
    )
    .bind(text(|m| m.order.to_string()))
    .bind(text(|m| m.sale.to_string()))
    .bind(text(|m| m.user.to_string()))
    .bind(drafts.iter().map(|d| d.amount).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.currency.as_str()).collect::<Vec<_>>())
    .bind(text(|m| m.lines.to_string()))
    .bind(drafts.iter().map(|d| d.epoch).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.seq).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.accepted_at).collect::<Vec<_>>())
    .bind(drafts.iter().map(|d| d.pay_within).collect::<Vec<_>>())
    .fetch_all(writing)
    .await?)
}

/// Takes the units of new orders from the books; answers the events of those that got them, and of
/// those that failed.
async fn take_units(
    writing: &mut PgConnection,
    fresh: &[&Draft<'_>],
    due: &HashMap<String, OffsetDateTime>,
) -> Result<(Vec<OrderEvent>, Vec<OrderEvent>), StoreError> {
    let (mut created, mut failed, mut reasons) = (Vec::with_capacity(fresh.len()), Vec::new(), Vec::new());
    if fresh.is_empty() {
        return Ok((created, failed));
    }
    let offers: BTreeSet<_> = fresh.iter().flat_map(|draft| offers(draft.accepted)).collect();
    let mut ledger = Ledger::lock(&mut *writing, offers).await?;
    for draft in fresh {
        let Accepted { order, sale, lines, .. } = draft.accepted;
        let about = order.to_string();
        let fits = lines.iter().all(|(sku, n)| ledger.free(sale, sku).is_some_and(|f| f >= i64::from(n)));
        let reason = draft.flaw.or((!fits).then_some(NO_UNITS));
        for (sku, units) in lines.iter() {
            ledger.note(sale, sku, Kind::Take, &about, i64::from(units))?;
            if reason.is_some() {
                ledger.note(sale, sku, Kind::Release, &about, i64::from(units))?;
            }
        }
        let mut event = OrderEvent {
            order: *order,
            sale: sale.clone(),
            state: OrderState::PendingPayment,
            pay_before: due.get(&about).map(|at| millis(*at)),
            refund: Refund::None,
            release: false,
            lines: lines.clone(),
            user: draft.accepted.user.clone(),
        };
        let Some(reason) = reason else {
            created.push(event);
            continue;
        };
        (event.state, event.pay_before, event.release) = (OrderState::Failed, None, true);
        failed.push(event);
        reasons.push(reason);
    }
    ledger.write(&mut *writing).await?;
    fail(writing, &failed, &reasons).await?;
    Ok((created, failed))
}

/// The offers that an order names.
pub(super) fn offers(accepted: &Accepted) -> impl Iterator<Item = (SaleId, SkuId)> {
    accepted.lines.iter().map(|(sku, _)| (accepted.sale.clone(), sku.clone()))
}

/// Marks orders as failed that have just been inserted; their units go back to a shelf that had given
/// out more than the books have.
async fn fail(
    writing: &mut PgConnection,
    failed: &[OrderEvent],
    reasons: &[&'static str],
) -> Result<(), StoreError> {
    if failed.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH moved AS (
             UPDATE orders SET state = 'failed', live = false, message = reason, updated_at = now()
             FROM unnest($1::text[], $2::text[]) AS m (failed, reason)
             WHERE id = failed AND state = 'pending_payment' RETURNING id)
         UPDATE saga SET state = 'undoing', step = 'release', updated_at = now()
         FROM moved WHERE order_id = moved.id",
    )
    .bind(failed.iter().map(|event| event.order.to_string()).collect::<Vec<_>>())
    .bind(reasons)
    .execute(writing)
    .await?;
    Ok(())
}
