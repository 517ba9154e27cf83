//! Where orders are: in the books, only on the shelf yet, or nowhere. "Nowhere" is said only when both
//! were asked and could know. Many are looked for at once for what one costs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Shelf;
use sluice_shared::record::Record;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::script::ShelfScripts;
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
    scripts: Mutex<HashMap<Shelf, Arc<ShelfScripts>>>,
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
        let shelves = self.shelves(&left, &mut found).await;
        let absent = self.records(shelves, &mut found).await;
        match books {
            Ok(()) => self.nowhere(absent, &mut found).await,
            Err(why) => {
                found.extend(absent.into_values().flatten().map(|order| (order, Err(why.clone()))));
            }
        }
        orders.iter().map(|order| found.get(order).cloned().unwrap_or(Ok(Located::Nowhere))).collect()
    }

    /// The segments of orders; an order of no sale is nowhere.
    async fn shelves(&self, orders: &[OrderId], found: &mut Found) -> BTreeMap<Shelf, Vec<OrderId>> {
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
        let mut shelves: BTreeMap<Shelf, Vec<OrderId>> = BTreeMap::new();
        for order in orders {
            match (self.numbers.get(order.sale), &why) {
                (Some(sale), _) => shelves.entry(Shelf::new(sale, order.segment)).or_default().push(*order),
                (None, Some(why)) => drop(found.insert(*order, Err(why.clone()))),
                (None, None) => drop(found.insert(*order, Ok(Located::Nowhere))),
            }
        }
        shelves
    }

    /// The orders' records on the shelf; answers those that have none.
    async fn records(
        &self,
        shelves: BTreeMap<Shelf, Vec<OrderId>>,
        found: &mut Found,
    ) -> BTreeMap<Shelf, Vec<OrderId>> {
        let mut absent: BTreeMap<Shelf, Vec<OrderId>> = BTreeMap::new();
        let mut away = None;
        for (shelf, orders) in shelves {
            let mut ask = cmd("HMGET");
            ask.arg(shelf.orders());
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
                            Some(text) => drop(found.insert(order, record(&shelf, &order, &text))),
                            None => absent.entry(shelf.clone()).or_default().push(order),
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
    async fn nowhere(&self, absent: BTreeMap<Shelf, Vec<OrderId>>, found: &mut Found) {
        if absent.is_empty() {
            return;
        }
        let shelves: Vec<&Shelf> = absent.keys().collect();
        let standings = self.store.bounded(self.store.standings(&shelves)).await.map_err(reply::store);
        for (shelf, orders) in &absent {
            let knows = match &standings {
                Ok(standings) => self.knows(shelf, standings.get(shelf)).await,
                Err(why) => Err(why.clone()),
            };
            let outcome = knows.map(|()| Located::Nowhere);
            found.extend(orders.iter().map(|order| (*order, outcome.clone())));
        }
    }

    /// Fails where a shelf cannot know.
    async fn knows(&self, shelf: &Shelf, standing: Option<&Standing>) -> Result<(), Rejection> {
        let Some(standing) = standing else { return Ok(()) };
        let scripts = self.scripts(shelf, standing.epoch);
        if scripts.loaded(&self.redis).await.map_err(reply::redis)? || standing.cleared {
            return Ok(());
        }
        let detail = "the sale is frozen; whether there is such an order is not known";
        Err(Rejection::new(Code::Unavailable, detail))
    }

    fn scripts(&self, shelf: &Shelf, epoch: u64) -> Arc<ShelfScripts> {
        let mut known = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scripts) = known.get(shelf).filter(|scripts| scripts.epoch == epoch) {
            return scripts.clone();
        }
        if known.len() >= SCRIPTS_MAX {
            known.clear();
        }
        let scripts = Arc::new(ShelfScripts::new(shelf.clone(), epoch));
        known.insert(shelf.clone(), scripts.clone());
        scripts
    }
}

fn record(shelf: &Shelf, order: &OrderId, text: &str) -> Result<Located, Rejection> {
    match Record::parse(text) {
        Some(record) => Ok(Located::Record(shelf.sale.clone(), Box::new(record))),
        None => {
            tracing::error!(%order, "the order's record is torn");
            Err(Rejection::new(Code::Unavailable, "the order cannot be read now"))
        }
    }
}
