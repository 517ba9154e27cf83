//! Reads everything an audit judges: Redis first, then one snapshot of PostgreSQL.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::keys::{REOPENING, Shelf};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::SaleStep;
use tokio::task::JoinSet;

use super::AuditError;
use crate::store::books::{
    Books, ChangeFact, ClaimFacts, LedgerFact, OfferFact, OrderFact, PaymentFact, SaleFact,
};
use crate::store::ledger::LineText;
use crate::store::{Store, StoreError};
use crate::warden::image::Image;

/// A closed sale's keys may be gone this long after its end.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// An order of a running sale is mostly written within this time.
const WRITTEN: Duration = Duration::from_millis(500);

/// What an order's ledger lines of one SKU add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moves {
    /// Lines and units of `take`.
    pub take: (u32, u64),
    /// Of `release`.
    pub release: (u32, u64),
    /// Of `sold`.
    pub sold: (u32, u64),
    /// Of `refund`.
    pub refund: (u32, u64),
    /// Whether something was given back or sold before it was taken, or refunded before it was sold.
    pub early: bool,
}

impl Moves {
    fn add(&mut self, kind: &str, quantity: u64) {
        self.early |= match kind {
            "release" | "sold" => self.take.0 == 0,
            "refund" => self.sold.0 == 0,
            _ => false,
        };
        let (lines, units) = match kind {
            "take" => &mut self.take,
            "release" => &mut self.release,
            "sold" => &mut self.sold,
            "refund" => &mut self.refund,
            _ => return,
        };
        *lines += 1;
        *units += quantity;
    }
}

/// An offer's ledger.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Units of each kind of line.
    pub sums: BTreeMap<String, i64>,
    /// Lines there are.
    pub lines: i64,
    /// Lines whose number and hash follow from the one before.
    pub sound: i64,
    /// The first line that does not.
    pub broken: Option<u64>,
    /// The last line's hash.
    pub hash: Vec<u8>,
    /// Number of the last line.
    pub last: u64,
    /// Lines of one order of one SKU.
    pub moves: AHashMap<OrderId, Moves>,
    /// What stands in an order's place and is none.
    pub nameless: Vec<String>,
    /// Units that stock changes have added, by their key; withdrawn when negative.
    pub changes: BTreeMap<String, i64>,
}

/// One segment as Redis has it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which.
    pub shelf: Shelf,
    /// All of it.
    pub image: Image,
    /// The epoch in PostgreSQL.
    pub epoch: u64,
}

/// One sale, from both sides.
#[derive(Debug, Clone)]
pub struct Gathered {
    /// Its row.
    pub sale: SaleFact,
    /// Its offers.
    pub offers: Vec<OfferFact>,
    /// The most units a user was ever allowed.
    pub limits: BTreeMap<SkuId, u64>,
    /// Its orders.
    pub orders: AHashMap<OrderId, OrderFact>,
    /// Its ledgers.
    pub chains: BTreeMap<SkuId, Chain>,
    /// Payments of orders that bear its number, by order.
    pub payments: AHashMap<OrderId, Vec<PaymentFact>>,
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
    pub shelves: Vec<Seen>,
    /// Segments that are being re-opened.
    pub reopening: Vec<String>,
}

/// Reads a sale.
pub async fn gather(store: &Store, redis: &Redis, sale: &SaleId) -> Result<Gathered, AuditError> {
    let mut books = store.books(sale).await?;
    let fact = books.sale().await?;
    books.close().await?;
    let fact = fact.ok_or_else(|| AuditError::UnknownSale(sale.clone()))?;
    let began = Instant::now();
    let (shelves, reopening) = shelves(redis, &fact).await?;
    let redis_took = began.elapsed();
    if shelves.iter().any(|(_, image)| !image.journal.is_empty()) {
        // What was taken while the shelf was read is written by then, and the books can tell of it.
        tokio::time::sleep(WRITTEN).await;
    }
    let began = Instant::now();
    let entries = shelves.iter().map(|(_, image)| image.orders.len()).sum();
    let mut gathered = read(store, sale, entries).await?;
    tracing::debug!(%sale, orders = gathered.orders.len(), ?redis_took, postgres_took = ?began.elapsed(), "read");
    for (shelf, image) in shelves {
        let epoch = gathered.sale.epochs.get(usize::from(shelf.segment)).copied().unwrap_or(1);
        gathered.shelves.push(Seen { shelf, image, epoch });
    }
    gathered.reopening = reopening;
    Ok(gathered)
}

type Shelves = (Vec<(Shelf, Image)>, Vec<String>);

async fn shelves(redis: &Redis, sale: &SaleFact) -> Result<Shelves, Fault> {
    let mut shelves = Vec::new();
    for segment in 0..sale.epochs.len() {
        let shelf = Shelf::new(sale.sale.clone(), u16::try_from(segment).unwrap_or(u16::MAX));
        let image = Image::read(redis, &shelf).await?;
        shelves.push((shelf, image));
    }
    let asked: Vec<String> = redis.run("reading", cmd("HKEYS").arg(REOPENING)).await?;
    let ours = |name: &String| Shelf::parse(name).is_some_and(|shelf| shelf.sale == sale.sale);
    let asked = asked.into_iter().filter(ours).collect();
    let kept = i64::try_from(KEYS_KEPT.as_millis()).unwrap_or(i64::MAX);
    let over = sale.step == SaleStep::Closed && sale.now.0 - sale.over.0 > kept;
    let gone = shelves.iter().all(|(_, image)| image.keys == 0);
    if gone && (over || !sale.shelved) {
        shelves.clear();
    }
    Ok((shelves, asked))
}

async fn read(store: &Store, sale: &SaleId, entries: usize) -> Result<Gathered, AuditError> {
    let mut books = store.books(sale).await?;
    let fact = books.sale().await?.ok_or_else(|| AuditError::UnknownSale(sale.clone()))?;
    let offers = books.offers().await?;
    let limits = books.limits().await?.into_iter().collect();
    // The two long parts at once; a set ends its task when this one is given up.
    let ledgers = books.beside(store).await?;
    let mut beside = JoinSet::new();
    beside.spawn(chains(ledgers, sale.clone(), offers.clone(), entries));
    let orders = orders(&mut books, entries).await?;
    let payments = payments(&mut books, fact.number).await?;
    let (releases, changes): (Vec<_>, Vec<_>) =
        books.unsent().await?.into_iter().partition(|(_, release)| *release);
    let named = |unsent: Vec<(OrderId, bool)>| unsent.into_iter().map(|(order, _)| order).collect();
    let (unsent_releases, unsent_changes) = (named(releases), named(changes));
    let fenced = books.fenced_without_row(fact.number).await?;
    let changes = books.pending_changes().await?;
    let stock_changes = books.stock_changes().await?;
    let claims = books.claims().await?;
    books.close().await?;
    let chains = beside.join_all().await.into_iter().next().transpose()?.unwrap_or_default();
    Ok(Gathered {
        sale: fact,
        offers,
        limits,
        orders,
        chains,
        payments,
        unsent_releases,
        unsent_changes,
        fenced,
        changes,
        stock_changes,
        claims,
        shelves: Vec::new(),
        reopening: Vec::new(),
    })
}

/// Reads the orders; there will be about as many as are in Redis.
async fn orders(books: &mut Books, entries: usize) -> Result<AHashMap<OrderId, OrderFact>, StoreError> {
    let (mut orders, mut after) = (AHashMap::with_capacity(entries), String::new());
    loop {
        let page = books.orders_after(&after).await?;
        let Some((last, _)) = page.last() else { return Ok(orders) };
        after = last.to_string();
        orders.extend(page);
    }
}

async fn payments(books: &mut Books, number: u32) -> Result<AHashMap<OrderId, Vec<PaymentFact>>, StoreError> {
    let (mut payments, mut after) = (AHashMap::<_, Vec<_>>::new(), String::new());
    loop {
        let page = books.payments_after(number, &after).await?;
        let Some(last) = page.last() else { return Ok(payments) };
        after.clone_from(&last.payment);
        for payment in page {
            payments.entry(payment.order).or_default().push(payment);
        }
    }
}

async fn chains(
    mut books: Books,
    sale: SaleId,
    offers: Vec<OfferFact>,
    entries: usize,
) -> Result<BTreeMap<SkuId, Chain>, StoreError> {
    let mut chains = BTreeMap::new();
    for OfferFact { sku, taken, .. } in offers {
        let mut chain = Chain::default();
        chain.moves.reserve(usize::try_from(taken).unwrap_or(0).min(entries));
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

impl Chain {
    /// Takes the next line; recomputes its hash from the one before.
    pub fn add(&mut self, sale: &SaleId, sku: &SkuId, line: LedgerFact) {
        let about = line.order.as_deref().or(line.change.as_deref()).unwrap_or("");
        let text = LineText {
            sale: sale.as_str(),
            sku: sku.as_str(),
            line: i64::try_from(line.line).unwrap_or(i64::MAX),
            kind: &line.kind,
            about,
            quantity: i64::try_from(line.quantity).unwrap_or(i64::MAX),
            at_micros: line.at_micros,
        };
        self.lines += 1;
        if line.line == self.last + 1 && text.hash(&self.hash).as_slice() == line.hash {
            self.sound += 1;
        } else {
            self.broken = self.broken.or(Some(line.line));
        }
        let units = i64::try_from(line.quantity).unwrap_or(i64::MAX);
        match self.sums.get_mut(&line.kind) {
            Some(sum) => *sum += units,
            None => drop(self.sums.insert(line.kind.clone(), units)),
        }
        if let Some(key) = &line.change {
            let delta = if line.kind == "withdraw" { -units } else { units };
            *self.changes.entry(key.clone()).or_default() += delta;
        }
        match line.order.as_deref().map(|name| OrderId::parse(name).ok_or(name)) {
            Some(Ok(order)) => self.moves.entry(order).or_default().add(&line.kind, line.quantity),
            Some(Err(name)) => self.nameless.push(name.to_owned()),
            None => {}
        }
        (self.last, self.hash) = (line.line, line.hash);
    }

    /// Units of all lines of a kind.
    pub fn sum(&self, kind: &str) -> i64 {
        self.sums.get(kind).copied().unwrap_or(0)
    }
}
