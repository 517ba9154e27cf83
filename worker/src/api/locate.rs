//! Where orders are: in the books, only on the shelf yet, or nowhere. "Nowhere" is said only when both
//! were asked and could know. Many are looked for at once for what one costs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Segment;
use sluice_shared::record::Record;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::script::SegmentScripts;
use sluice_shared::verdict::{Code, Rejection};

use super::reply;
use crate::store::Store;
use crate::store::look_up::Standing;
use crate::store::orders::OrderRow;

/// Segments whose scripts' names are remembered: to reckon them anew costs 17 KiB of SHA-1 each time.
const SCRIPTS_MAX: usize = 64;

/// Which sale has which number. A number is never given twice, so what was learnt holds for ever, and
/// there are only as many entries as sales.
#[derive(Debug, Default)]
struct Numbers {
    known: RwLock<HashMap<u32, SaleId>>,
}

impl Numbers {
    fn get(&self, number: u32) -> Option<SaleId> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    fn learn(&self, sales: Vec<(u32, SaleId)>) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).extend(sales);
    }
}

/// Where an order is.
#[derive(Debug, Clone)]
pub enum Located {
    /// In the books.
    Row(Box<OrderRow>),
    /// On the shelf only.
    Record(SaleId, Box<Record>),
    /// Neither knows it.
    Nowhere,
}

/// Looks for orders.
#[derive(Debug)]
pub struct Locator {
    store: Store,
    redis: Redis,
    numbers: Numbers,
    scripts: Mutex<HashMap<Segment, Arc<SegmentScripts>>>,
}

type Found = BTreeMap<OrderId, Result<Located, Rejection>>;

impl Locator {
    /// In these books and on this shelf.
    pub fn new(store: Store, redis: Redis) -> Self {
        Self { store, redis, numbers: Numbers::default(), scripts: Mutex::default() }
    }

    /// Looks for an order. When the books are away the shelf alone may still show it.
    pub async fn find(&self, order: &OrderId) -> Result<Located, Rejection> {
        self.find_all(std::slice::from_ref(order)).await.pop().unwrap_or(Ok(Located::Nowhere))
    }

    /// The same for many; answers in their order.
    pub async fn find_all(&self, orders: &[OrderId]) -> Vec<Result<Located, Rejection>> {
        let mut found = Found::new();
        let rows = self.store.bounded(self.store.orders_of(orders)).await.map_err(reply::store);
        let books = match rows {
            Ok(rows) => {
                found.extend(rows.into_iter().map(|row| (row.id, Ok(Located::Row(Box::new(row))))));
                Ok(())
            }
            Err(why) => Err(why),
        };
        let left: Vec<OrderId> = orders.iter().filter(|order| !found.contains_key(order)).copied().collect();
        let segments = self.segments(&left, &mut found).await;
        let absent = self.records(segments, &mut found).await;
        match books {
            Ok(()) => self.nowhere(absent, &mut found).await,
            Err(why) => {
                found.extend(absent.into_values().flatten().map(|order| (order, Err(why.clone()))));
            }
        }
        orders.iter().map(|order| found.get(order).cloned().unwrap_or(Ok(Located::Nowhere))).collect()
    }

    /// The segments of orders; an order of no sale is nowhere.
    async fn segments(&self, orders: &[OrderId], found: &mut Found) -> BTreeMap<Segment, Vec<OrderId>> {
        let mut new: Vec<u32> = orders.iter().map(|order| order.sale).collect();
        new.retain(|number| self.numbers.get(*number).is_none());
        new.sort_unstable();
        new.dedup();
        let mut why = None;
        if !new.is_empty() {
            match self.store.bounded(self.store.sales_of_numbers(&new)).await {
                Ok(sales) => self.numbers.learn(sales),
                Err(error) => why = Some(reply::store(error)),
            }
        }
        let mut segments: BTreeMap<Segment, Vec<OrderId>> = BTreeMap::new();
        for order in orders {
            match (self.numbers.get(order.sale), &why) {
                (Some(sale), _) => {
                    segments.entry(Segment::new(sale, order.segment)).or_default().push(*order)
                }
                (None, Some(why)) => drop(found.insert(*order, Err(why.clone()))),
                (None, None) => drop(found.insert(*order, Ok(Located::Nowhere))),
            }
        }
        segments
    }

    /// The orders' records on the shelf; answers those that have none.
    async fn records(
        &self,
        segments: BTreeMap<Segment, Vec<OrderId>>,
        found: &mut Found,
    ) -> BTreeMap<Segment, Vec<OrderId>> {
        let mut absent: BTreeMap<Segment, Vec<OrderId>> = BTreeMap::new();
        let mut away = None;
        for (segment, orders) in segments {
            let mut ask = cmd("HMGET");
            ask.arg(segment.orders());
            for order in &orders {
                ask.arg(order.field());
            }
            let texts: Result<Vec<Option<String>>, Rejection> = match &away {
                // One that is away is not asked once a segment.
                Some(why) => Err(Rejection::clone(why)),
                None => self.redis.run("reading orders' records", &ask).await.map_err(reply::redis),
            };
            match texts {
                Ok(texts) => {
                    for (order, text) in orders.into_iter().zip(texts) {
                        match text {
                            Some(text) => drop(found.insert(order, record(&segment, &order, &text))),
                            None => absent.entry(segment.clone()).or_default().push(order),
                        }
                    }
                }
                Err(why) => {
                    found.extend(orders.into_iter().map(|order| (order, Err(why.clone()))));
                    away = Some(why);
                }
            }
        }
        absent
    }

    /// A shelf that has lost its data, or may have, knows nothing: then an edge or the broker may still
    /// hold the order.
    async fn nowhere(&self, absent: BTreeMap<Segment, Vec<OrderId>>, found: &mut Found) {
        if absent.is_empty() {
            return;
        }
        let segments: Vec<&Segment> = absent.keys().collect();
        let standings = self.store.bounded(self.store.standings(&segments)).await.map_err(reply::store);
        for (segment, orders) in &absent {
            let knows = match &standings {
                Ok(standings) => self.knows(segment, standings.get(segment)).await,
                Err(why) => Err(why.clone()),
            };
            let outcome = knows.map(|()| Located::Nowhere);
            found.extend(orders.iter().map(|order| (*order, outcome.clone())));
        }
    }

    /// Fails where a shelf cannot know.
    async fn knows(&self, segment: &Segment, standing: Option<&Standing>) -> Result<(), Rejection> {
        let Some(standing) = standing else { return Ok(()) };
        let scripts = self.scripts(segment, standing.epoch);
        if scripts.loaded(&self.redis).await.map_err(reply::redis)? || standing.cleared {
            return Ok(());
        }
        let detail = "the sale is frozen; whether there is such an order is not known";
        Err(Rejection::new(Code::Unavailable, detail))
    }

    fn scripts(&self, segment: &Segment, epoch: u64) -> Arc<SegmentScripts> {
        let mut known = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scripts) = known.get(segment).filter(|scripts| scripts.epoch == epoch) {
            return scripts.clone();
        }
        if known.len() >= SCRIPTS_MAX {
            known.clear();
        }
        let scripts = Arc::new(SegmentScripts::new(segment.clone(), epoch));
        known.insert(segment.clone(), scripts.clone());
        scripts
    }
}

fn record(segment: &Segment, order: &OrderId, text: &str) -> Result<Located, Rejection> {
    match Record::parse(text) {
        Some(record) => Ok(Located::Record(segment.sale.clone(), Box::new(record))),
        None => {
            tracing::error!(%order, "the order's record is torn");
            Err(Rejection::new(Code::Unavailable, "the order cannot be read now"))
        }
    }
}
