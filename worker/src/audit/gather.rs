//! Reads everything an audit judges: Redis first, then one snapshot of PostgreSQL, page by page.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use ahash::RandomState;
use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::keys::{REOPENING, Segment};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::SaleStep;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::AuditError;
use super::chain::Chain;
use super::names::Names;
use super::rows::{About, Page, Rows, SKEW_MS};
use super::segment::Seen;
use crate::store::books::{Books, ChangeFact, ClaimFacts, OfferFact, PaymentTotals, SaleFact};
use crate::store::{Store, StoreError};

/// A closed sale's keys may be gone this long after its end.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// An order of a running sale is mostly written within this time.
const WRITTEN: Duration = Duration::from_millis(500);

/// One sale, from both sides.
#[derive(Debug)]
pub struct Gathered {
    /// Its row.
    pub sale: SaleFact,
    /// Its offers.
    pub offers: Vec<OfferFact>,
    /// The most units a user was ever allowed.
    pub limits: BTreeMap<SkuId, u64>,
    /// What its orders come to.
    pub rows: Rows,
    /// Its ledgers.
    pub chains: BTreeMap<SkuId, Chain>,
    /// Orders in the ledger that have no row, or not this SKU.
    pub strangers: Names,
    /// Payments of orders that bear its number.
    pub payments: PaymentTotals,
    /// Orders that were paid for and have no row.
    pub paying_strangers: Names,
    /// Orders whose release has not left the outbox.
    pub unsent_releases: HashSet<OrderId>,
    /// Orders of which a change has not.
    pub unsent_changes: HashSet<OrderId>,
    /// Messages that came too late and left no row.
    pub fenced: Vec<String>,
    /// Stock changes that are not finished: key, SKU, units, whether the ledger has them.
    pub changes: Vec<(String, SkuId, i64, bool)>,
    /// Every stock change.
    pub stock_changes: Vec<ChangeFact>,
    /// Claims by receipt.
    pub claims: ClaimFacts,
    /// Its segments in Redis; none when only PostgreSQL answers for the sale.
    pub segments: Vec<Seen>,
    /// Segments that are being re-opened.
    pub reopening: Vec<String>,
}

/// Reads a sale.
pub async fn gather(store: &Store, redis: &Redis, sale: &SaleId) -> Result<Gathered, AuditError> {
    let mut books = store.books(sale).await?;
    let fact = books.sale().await?;
    let limits = books.limits().await?.into_iter().collect();
    books.close().await?;
    let fact = fact.ok_or_else(|| AuditError::UnknownSale(sale.clone()))?;
    let (hashes, began) = (RandomState::new(), Instant::now());
    let (segments, reopening) = segments(redis, &fact, &hashes, &limits).await?;
    let redis_took = began.elapsed();
    if segments.iter().any(|seen| !seen.journal.is_empty()) {
        // What was taken while the shelf was read is written by then, and the books can tell of it.
        tokio::time::sleep(WRITTEN).await;
    }
    let began = Instant::now();
    let mut gathered = read(store, sale, &hashes, segments).await?;
    gathered.reopening = reopening;
    let until = sluice_shared::clock::Millis(gathered.sale.now.0 + SKEW_MS);
    for (seen, of) in gathered.segments.iter_mut().zip(&mut gathered.rows.segments) {
        seen.name(redis, &hashes, std::mem::take(&mut of.busy), until).await?;
    }
    tracing::debug!(%sale, orders = gathered.rows.count, ?redis_took, postgres_took = ?began.elapsed(), "read");
    Ok(gathered)
}

async fn segments(
    redis: &Redis,
    sale: &SaleFact,
    hashes: &RandomState,
    limits: &BTreeMap<SkuId, u64>,
) -> Result<(Vec<Seen>, Vec<String>), Fault> {
    let mut segments = Vec::new();
    for segment in 0..sale.epochs.len() {
        let segment = Segment::new(sale.sale.clone(), u16::try_from(segment).unwrap_or(u16::MAX));
        segments.push(Seen::read(redis, segment, hashes, limits).await?);
    }
    let asked: Vec<String> = redis.run("reading", cmd("HKEYS").arg(REOPENING)).await?;
    let ours = |name: &String| Segment::parse(name).is_some_and(|segment| segment.sale == sale.sale);
    let asked = asked.into_iter().filter(ours).collect();
    let kept = i64::try_from(KEYS_KEPT.as_millis()).unwrap_or(i64::MAX);
    let over = sale.step == SaleStep::Closed && sale.now.0 - sale.over.0 > kept;
    let gone = segments.iter().all(|seen| seen.image.keys() == 0);
    if gone && (over || !sale.shelved) {
        segments.clear();
    }
    Ok((segments, asked))
}

async fn read(
    store: &Store,
    sale: &SaleId,
    hashes: &RandomState,
    mut segments: Vec<Seen>,
) -> Result<Gathered, AuditError> {
    let mut books = store.books(sale).await?;
    let fact = books.sale().await?.ok_or_else(|| AuditError::UnknownSale(sale.clone()))?;
    for seen in &mut segments {
        seen.epoch = fact.epochs.get(usize::from(seen.segment.index)).copied().unwrap_or(1);
    }
    let offers = books.offers().await?;
    let limits = books.limits().await?.into_iter().collect();
    let (releases, changes): (Vec<_>, Vec<_>) =
        books.unsent().await?.into_iter().partition(|(_, release)| *release);
    let named = |unsent: Vec<(OrderId, bool)>| unsent.into_iter().map(|(order, _)| order).collect();
    let (unsent_releases, unsent_changes) = (named(releases), named(changes));
    let fenced = books.fenced_without_row(fact.number).await?;
    let changes = books.pending_changes().await?;
    let stock_changes = books.stock_changes().await?;
    let claims = books.claims().await?;
    let payments = books.payment_totals(fact.number).await?;
    // The two long parts at once; a set ends its tasks when this one is given up.
    let mut beside = JoinSet::new();
    beside.spawn(chains(books.beside(store).await?, sale.clone(), offers.clone()));
    let about = About {
        sale: &fact,
        offers: &offers,
        limits: &limits,
        segments: &segments,
        unsent_releases: &unsent_releases,
        unsent_changes: &unsent_changes,
        hashes,
    };
    let (mut books, rows) = rows(books, &about).await?;
    let chains = beside.join_all().await.into_iter().next().transpose()?.unwrap_or_default();
    let (strangers, paying_strangers) = strangers(&mut books, &fact, &rows, &chains, payments).await;
    // What it did not get to matters to nobody.
    drop(books.close().await);
    Ok(Gathered {
        sale: fact,
        offers,
        limits,
        rows,
        chains,
        strangers,
        payments,
        paying_strangers,
        unsent_releases,
        unsent_changes,
        fenced,
        changes,
        stock_changes,
        claims,
        segments,
        reopening: Vec::new(),
    })
}

/// Goes through the rows; a page is read while the one before is judged.
async fn rows(books: Books, about: &About<'_>) -> Result<(Books, Rows), StoreError> {
    let (send, mut pages) = mpsc::channel(1);
    let mut reader = JoinSet::new();
    reader.spawn(pages_of(books, send));
    let mut rows = Rows::new(about);
    while let Some(page) = pages.recv().await {
        rows.take(about, &page);
    }
    let books = reader.join_all().await.into_iter().next().transpose()?;
    let ended = || StoreError::Away("reading the orders ended early".to_owned());
    Ok((books.ok_or_else(ended)?, rows))
}

async fn pages_of(mut books: Books, pages: mpsc::Sender<Page>) -> Result<Books, StoreError> {
    let mut after = String::new();
    loop {
        let orders = books.orders_after(&after).await?;
        let Some((last, _)) = orders.last() else { return Ok(books) };
        after = last.to_string();
        let ids: Vec<String> = orders.iter().map(|(order, _)| order.to_string()).collect();
        let (moves, payments) = (books.moves_of(&ids).await?, books.payments_of(&ids).await?);
        // Whoever asked is gone.
        if pages.send(Page { orders, moves, payments }).await.is_err() {
            return Ok(books);
        }
    }
}

/// Ledger lines and payments of orders without a row: known by their number, and named where they can be.
async fn strangers(
    books: &mut Books,
    sale: &SaleFact,
    rows: &Rows,
    chains: &BTreeMap<SkuId, Chain>,
    payments: PaymentTotals,
) -> (Names, Names) {
    let mut in_ledger = rows.strange_moves.clone();
    chains.values().for_each(|chain| in_ledger.join(&chain.nameless));
    let lines: usize = chains.values().map(|chain| chain.ordered).sum();
    let lines = lines.saturating_sub(rows.moves + rows.strange_moves.count());
    if lines > 0 {
        named(&mut in_ledger, lines, books.strangers_in_the_ledger().await);
    }
    let mut paying = Names::default();
    let unknown = payments.count.saturating_sub(rows.payments);
    if unknown > 0 {
        named(&mut paying, unknown, books.strangers_who_paid(sale.number).await);
    }
    (in_ledger, paying)
}

/// So many more, of whom these are known by name.
fn named(names: &mut Names, count: usize, known: Result<Vec<String>, StoreError>) {
    let known = known.unwrap_or_else(|error| {
        tracing::warn!(%error, "orders without a row cannot be named");
        Vec::new()
    });
    names.nameless(count.saturating_sub(known.len()));
    known.into_iter().for_each(|name| names.push(|| name));
}

async fn chains(
    mut books: Books,
    sale: SaleId,
    offers: Vec<OfferFact>,
) -> Result<BTreeMap<SkuId, Chain>, StoreError> {
    let mut chains = BTreeMap::new();
    for OfferFact { sku, .. } in offers {
        let mut chain = Chain::default();
        loop {
            let page = books.ledger_after(&sku, chain.last).await?;
            if page.is_empty() {
                break;
            }
            for line in page {
                chain.add(&sale, &sku, line);
            }
        }
        chains.insert(sku, chain);
    }
    books.close().await?;
    Ok(chains)
}
