//! Every ten seconds, and at once when a store has lost something: whatever fell between two stores is
//! picked up, and drift is measured.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::ids::{OrderId, SkuId};
use sluice_shared::keys::Shelf;
use sluice_shared::message::{Accepted, OrderEvent};
use sluice_shared::sale::SaleView;

use super::behind::{Behind, behind, next_page};
use super::doubts::Doubt;
use super::image::Image;
use super::outlet::Outlet;
use super::{Trouble, Warden, reopen};
use crate::store::orders::OrderRow;

/// How closely it is looked.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// An accepted order without a row is published again at this age, in milliseconds.
    unwritten_ms: i64,
    /// What the books say of an order is told again when Redis does not know it after this time.
    untold: Duration,
    /// Whether every record is compared with its row, or some of them in each round.
    whole: bool,
    /// When the loss was noticed that it comes after.
    since: Option<Instant>,
}

/// Relay and sweep, and the saga, have had their time.
const ROUTINE: Look =
    Look { unwritten_ms: 5_000, untold: Duration::from_secs(30), whole: false, since: None };
/// What a warden that led before has noticed, nobody knows any more.
const FIRST: Look = Look { untold: Duration::ZERO, whole: true, ..ROUTINE };
/// Messages of any age may be gone, and nobody else knows of them.
const AFTER_LOSS: Look = Look { unwritten_ms: 0, ..FIRST };

/// How soon a look after a loss that failed is repeated.
const AGAIN: Duration = Duration::from_millis(500);
/// Reading the maps takes at most one part in so many of Redis' time.
const SHARE: u32 = 10;
/// Orders asked for at once.
const PAGE: usize = 5_000;
/// Of so many orders it is remembered that they were told again; of more, each round tells them once more.
const REMEMBERED: usize = 200_000;

/// Works until it is dropped.
pub async fn run(warden: Arc<Warden>) {
    let every = warden.context.config.reconcile.reconcile;
    let outlet = Outlet::new(&warden, "reconcile");
    let mut reconciler = Reconciler { outlet, told: HashMap::new(), compared: HashMap::new(), warden };
    let (mut routine, mut due) = (FIRST, Instant::now() + every);
    loop {
        // Doubts that never end, of a segment that cannot be read, do not keep the others waiting.
        let wait = due.saturating_duration_since(Instant::now());
        let doubt = match wait {
            Duration::ZERO => None,
            wait => tokio::time::timeout(wait, reconciler.warden.doubts.next()).await.ok(),
        };
        let look = doubt.as_ref().map_or(routine, |doubt| Look { since: doubt.since(), ..AFTER_LOSS });
        let began = Instant::now();
        let done = reconciler.round(look, doubt.as_ref()).await;
        let took = began.elapsed();
        if doubt.is_none() {
            due = Instant::now() + every.max(took * SHARE);
        }
        let left = match (done, doubt) {
            (Ok(unread), doubt) => {
                if doubt.is_none() {
                    routine = ROUTINE;
                }
                doubt.filter(|_| !unread.is_empty()).map(|doubt| doubt.about(unread))
            }
            (Err(trouble), doubt) => {
                tracing::warn!(%trouble, "reconciling is held up");
                doubt
            }
        };
        if let Some(doubt) = left {
            tokio::time::sleep(AGAIN.max(took * SHARE)).await;
            reconciler.warden.doubts.note(doubt);
        }
    }
}

struct Reconciler {
    warden: Arc<Warden>,
    outlet: Outlet,
    /// Orders of which was told again what the books say, and when.
    told: HashMap<OrderId, Instant>,
    /// Which order of a segment was compared last.
    compared: HashMap<Shelf, [u8; 16]>,
}

/// What one sale's segments hold together.
#[derive(Default)]
struct Tally {
    held: BTreeMap<SkuId, i64>,
    unwritten: BTreeMap<SkuId, i64>,
    off_shelf: i64,
    orders: Vec<OrderId>,
}

impl Reconciler {
    /// Looks at every segment, or at those in doubt; answers which of them cannot be read.
    async fn round(&mut self, look: Look, doubt: Option<&Doubt>) -> Result<BTreeSet<Shelf>, Trouble> {
        let mut unread = BTreeSet::new();
        self.told.retain(|_, at| at.elapsed() < ROUTINE.untold * 2);
        let serving = self.warden.floor(|floor| floor.serving.clone());
        for view in self.warden.views().await? {
            let mut tally = Tally::default();
            let mut whole = true;
            for segment in 0..view.segments {
                let shelf = Shelf::new(view.sale.clone(), segment);
                match serving.get(&shelf) {
                    Some(_) if doubt.is_some_and(|doubt| !doubt.covers(&shelf)) => whole = false,
                    Some(epoch) => match self.segment(&view, &shelf, *epoch, look, &mut tally).await {
                        Err(trouble) if trouble.is_local() => {
                            tracing::warn!(shelf = shelf.name(), %trouble, "not reconciled");
                            whole = false;
                            unread.insert(shelf);
                        }
                        done => done?,
                    },
                    None => whole = false,
                }
            }
            if whole {
                self.sale(&view, &tally).await?;
            }
        }
        self.compared.retain(|shelf, _| serving.contains_key(shelf));
        let (store, redis) = (&self.warden.context.store, self.warden.redis());
        if let Err(trouble) = store.bounded(crate::api::stock::complete_pending(store, redis)).await {
            tracing::warn!(%trouble, "stock changes wait");
        }
        store.bounded(store.forget_old_barriers()).await?;
        self.warden.metrics().unread_segments.set(i64::try_from(unread.len()).unwrap_or(i64::MAX));
        Ok(unread)
    }

    /// Publishes what has no row, and tells again what Redis does not know.
    async fn segment(
        &mut self,
        view: &SaleView,
        shelf: &Shelf,
        epoch: u64,
        look: Look,
        tally: &mut Tally,
    ) -> Result<(), Trouble> {
        let image = Image::read(self.warden.redis(), shelf).await?;
        let all = reopen::unwritten(&self.warden, shelf, view.number, &image, |_| true).await?;
        // One from the future was accepted before Redis' clock went back.
        let old = |order: &Accepted| (image.at.0 - order.at.0).abs() >= look.unwritten_ms;
        let (due, lost): (Vec<_>, Vec<_>) =
            all.iter().filter(|order| old(order)).cloned().partition(|order| order.epoch == epoch);
        if !due.is_empty() {
            tracing::warn!(shelf = shelf.name(), orders = due.len(), "published again: no rows");
            self.outlet.orders(&due).await?;
            self.warden.metrics().republished.inc_by(due.len() as u64);
        }
        for order in lost.iter().take(10) {
            let order = &order.order;
            tracing::error!(%order, "accepted in an epoch that has ended, and not in the books");
        }
        for order in &all {
            for (sku, n) in order.lines.iter() {
                *tally.unwritten.entry(sku.clone()).or_default() += i64::from(n);
            }
        }
        self.compare(view, shelf, &image, look).await?;
        let held = image.held();
        for (sku, init) in &image.head.init {
            let left = image.head.stock.get(sku).copied().flatten().unwrap_or(0);
            let held = held.get(sku).map_or(0, |n| signed(*n));
            tally.off_shelf += (left + held - signed(*init)).abs();
            *tally.held.entry(sku.clone()).or_default() += held;
        }
        let name = |uuid: &[u8; 16]| OrderId { uuid: *uuid, sale: view.number, segment: shelf.segment };
        tally.orders.extend(image.orders.iter().filter(|(_, r)| !r.released).map(|(uuid, _)| name(uuid)));
        Ok(())
    }

    /// Compares what Redis holds with what the books have taken, and releases what is dead.
    async fn sale(&mut self, view: &SaleView, tally: &Tally) -> Result<(), Trouble> {
        let store = &self.warden.context.store;
        let taken = store.bounded(store.taken(&view.sale)).await?;
        let mut surplus = 0;
        for (sku, taken) in taken {
            let of = |units: &BTreeMap<SkuId, i64>| units.get(&sku).copied().unwrap_or(0);
            surplus += (of(&tally.held) - of(&tally.unwritten) - signed(taken)).max(0);
        }
        self.drift(view, "R1", tally.off_shelf);
        self.drift(view, "X2", surplus);
        self.drift(view, "unwritten", tally.unwritten.values().sum());
        if surplus > 0 { self.release(&tally.orders).await } else { Ok(()) }
    }

    /// Compares records with their rows: all of them, or in each round those that come next.
    async fn compare(
        &mut self,
        view: &SaleView,
        shelf: &Shelf,
        image: &Image,
        look: Look,
    ) -> Result<(), Trouble> {
        let uuids = if look.whole {
            image.orders.keys().copied().collect()
        } else {
            let page = next_page(image, self.compared.get(shelf), PAGE);
            match page.last() {
                Some(last) => self.compared.insert(shelf.clone(), *last),
                None => self.compared.remove(shelf),
            };
            page
        };
        for page in uuids.chunks(PAGE) {
            let name = |uuid: &[u8; 16]| OrderId { uuid: *uuid, sale: view.number, segment: shelf.segment };
            let page: Vec<OrderId> = page.iter().map(name).collect();
            let store = &self.warden.context.store;
            let rows = store.bounded(store.rows_older_than(&page, look.untold)).await?;
            let known = |row: &OrderRow| behind(image.orders.get(&row.id.uuid)?, row.standing());
            let mut untold: Vec<_> = rows.iter().filter_map(|row| Some((row, known(row)?))).collect();
            untold.retain(|(row, _)| self.may_tell(&row.id, look));
            self.tell(&untold).await?;
        }
        Ok(())
    }

    /// Asks again for releases that got lost on their way.
    async fn release(&mut self, held: &[OrderId]) -> Result<(), Trouble> {
        for page in held.chunks(PAGE) {
            let store = &self.warden.context.store;
            let rows = store.bounded(store.rows_older_than(page, ROUTINE.untold)).await?;
            let dead = rows.iter().filter(|row| !row.live && self.may_tell(&row.id, ROUTINE));
            let dead: Vec<_> = dead.map(|row| (row, Behind::Release)).collect();
            self.tell(&dead).await?;
        }
        Ok(())
    }

    /// Not what was told a moment ago; but a loss after that may have been of the telling.
    fn may_tell(&self, order: &OrderId, look: Look) -> bool {
        let old = |at: &Instant| at.elapsed() > ROUTINE.untold || look.since.is_some_and(|since| *at < since);
        self.told.get(order).is_none_or(old)
    }

    /// Puts into the outbox once more what the books say of these orders.
    async fn tell(&mut self, orders: &[(&OrderRow, Behind)]) -> Result<(), Trouble> {
        if orders.is_empty() {
            return Ok(());
        }
        tracing::warn!(orders = orders.len(), "told again: redis is behind the books");
        let events = |wanted: Behind| -> Vec<OrderEvent> {
            let orders = orders.iter().filter(|(_, what)| *what == wanted);
            orders.map(|(row, what)| row.event(*what == Behind::Release)).collect()
        };
        let (changes, releases) = (events(Behind::Change), events(Behind::Release));
        let store = &self.warden.context.store;
        store.bounded(store.tell_again(&changes, &releases)).await?;
        self.warden.metrics().settled_again.inc_by(changes.len() as u64);
        self.warden.metrics().released_again.inc_by(releases.len() as u64);
        let room = REMEMBERED.saturating_sub(self.told.len());
        self.told.extend(orders.iter().take(room).map(|(row, _)| (row.id, Instant::now())));
        Ok(())
    }

    fn drift(&self, view: &SaleView, equation: &str, units: i64) {
        let labels = [("sale", view.sale.to_string()), ("equation", equation.to_owned())];
        #[allow(clippy::cast_precision_loss)]
        self.warden.metrics().drift.get_or_create(&labels).set(units as f64);
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
