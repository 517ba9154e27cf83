//! Every ten seconds, and at once when a store has lost something: whatever fell between two stores is
//! picked up, and drift is measured.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::ids::{OrderId, SkuId};
use sluice_shared::keys::Shelf;
use sluice_shared::message::{Accepted, OrderEvent};
use sluice_shared::sale::{SaleStep, SaleView};

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
/// Reading the maps takes at most one part in so many of Redis' time, and more of it after a loss.
const SHARE: u32 = 20;
const SHARE_AFTER_LOSS: u32 = 10;
/// Orders asked for at once.
const PAGE: usize = 5_000;
/// Of so many orders it is remembered that they were told again; of more, each round tells them once more.
const REMEMBERED: usize = 200_000;

/// Closed sales have so much of one round: there may be many, and those that sell come first.
const SLICE: Duration = Duration::from_secs(5);

/// When sales of a kind are looked at next, and how closely.
struct Turn {
    look: Look,
    due: Instant,
}

impl Turn {
    /// A look that took so long is repeated after `every`, or later where it takes too much of Redis' time.
    fn next(&mut self, took: Duration, every: Duration) {
        self.due = Instant::now() + every.max(took * SHARE);
    }
}

/// Works until it is dropped.
pub async fn run(warden: Arc<Warden>) {
    let every = warden.context.config.reconcile.reconcile;
    let mut reconciler = Reconciler::new(warden);
    let due = Instant::now() + every;
    let [mut selling, mut closed] = [FIRST; 2].map(|look| Turn { look, due });
    loop {
        // Doubts that never end, of a segment that cannot be read, do not keep the others waiting.
        let wait = selling.due.min(closed.due).saturating_duration_since(Instant::now());
        let doubt = match wait {
            Duration::ZERO => None,
            wait => tokio::time::timeout(wait, reconciler.warden.doubts.next()).await.ok(),
        };
        let began = Instant::now();
        let done = if let Some(doubt) = doubt {
            reconciler.dispel(doubt).await
        } else if selling.due <= closed.due {
            let done = reconciler.round(selling.look, Wanted::Selling).await;
            selling.next(began.elapsed(), every);
            done.map(|_| selling.look = ROUTINE)
        } else {
            let done = reconciler.some_closed(closed.look).await;
            let pause = if reconciler.rest.is_empty() { every } else { Duration::ZERO };
            closed.next(began.elapsed(), pause.max(AGAIN));
            if done.is_ok() && reconciler.rest.is_empty() {
                closed.look = ROUTINE;
            }
            done
        };
        if let Err(trouble) = done {
            tracing::warn!(%trouble, "reconciling is held up");
        }
    }
}

/// Which segments a round is about.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// Those of sales that are not closed.
    Selling,
    /// Those of closed sales that have not had their turn.
    Closed,
    /// Those that are in doubt.
    Doubtful(&'a Doubt),
}

/// What a round did not do.
#[derive(Default)]
struct Undone {
    /// Segments that cannot be read.
    unread: BTreeSet<Shelf>,
    /// Segments of closed sales that there was no time for.
    late: BTreeSet<Shelf>,
}

struct Reconciler {
    warden: Arc<Warden>,
    outlet: Outlet,
    /// Orders of which was told again what the books say, and when.
    told: HashMap<OrderId, Instant>,
    /// Which order of a segment was compared last.
    compared: HashMap<Shelf, [u8; 16]>,
    /// Segments of closed sales that have not had their turn.
    rest: BTreeSet<Shelf>,
    /// Segments that could not be read when they were looked at last.
    unread: BTreeSet<Shelf>,
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
    fn new(warden: Arc<Warden>) -> Self {
        Self {
            outlet: Outlet::new(&warden, "reconcile"),
            told: HashMap::new(),
            compared: HashMap::new(),
            rest: BTreeSet::new(),
            unread: BTreeSet::new(),
            warden,
        }
    }

    /// Looks at what a loss may have touched; what is not done stays in doubt.
    async fn dispel(&mut self, doubt: Doubt) -> Result<(), Trouble> {
        let began = Instant::now();
        let look = Look { since: doubt.since(), ..AFTER_LOSS };
        let (left, failed) = match self.round(look, Wanted::Doubtful(&doubt)).await {
            Ok(Undone { unread, mut late }) => {
                let failed = !unread.is_empty();
                late.extend(unread);
                ((!late.is_empty()).then(|| doubt.about(late)), failed)
            }
            Err(trouble) => {
                tracing::warn!(%trouble, "looking after a loss is held up");
                (Some(doubt), true)
            }
        };
        if failed {
            tokio::time::sleep(AGAIN.max(began.elapsed() * SHARE_AFTER_LOSS)).await;
        }
        if let Some(left) = left {
            self.warden.doubts.note(left);
        }
        Ok(())
    }

    /// Looks at some of the closed sales' segments, and begins again with the first after the last.
    async fn some_closed(&mut self, look: Look) -> Result<(), Trouble> {
        if self.rest.is_empty() {
            self.rest = self.warden.floor(|floor| floor.serving.keys().cloned().collect());
        }
        self.round(look, Wanted::Closed).await.map(drop)
    }

    /// Looks at the segments that are served and wanted.
    async fn round(&mut self, look: Look, wanted: Wanted<'_>) -> Result<Undone, Trouble> {
        let (began, mut undone) = (Instant::now(), Undone::default());
        self.told.retain(|_, at| at.elapsed() < ROUTINE.untold * 2);
        let serving = self.warden.floor(|floor| floor.serving.clone());
        let mut views = self.warden.views().await?;
        // Those that sell first, and each look in the same order as the one before.
        views.sort_by_key(|view| (view.step == SaleStep::Closed, view.number));
        for view in views {
            let closed = view.step == SaleStep::Closed;
            let mut tally = Tally::default();
            let mut whole = true;
            for segment in 0..view.segments {
                let shelf = Shelf::new(view.sale.clone(), segment);
                let is_wanted = match wanted {
                    Wanted::Selling => !closed,
                    Wanted::Closed => closed && self.rest.contains(&shelf),
                    Wanted::Doubtful(doubt) => doubt.covers(&shelf),
                };
                let Some(epoch) = serving.get(&shelf).filter(|_| is_wanted) else {
                    whole = false;
                    continue;
                };
                if closed && began.elapsed() > SLICE {
                    whole = false;
                    undone.late.insert(shelf);
                    continue;
                }
                self.unread.remove(&shelf);
                match self.segment(&view, &shelf, *epoch, look, &mut tally).await {
                    Err(trouble) if trouble.is_local() => {
                        tracing::warn!(shelf = shelf.name(), %trouble, "not reconciled");
                        whole = false;
                        self.unread.insert(shelf.clone());
                        undone.unread.insert(shelf);
                    }
                    done => done?,
                }
            }
            if whole {
                self.sale(&view, &tally).await?;
            }
        }
        self.compared.retain(|shelf, _| serving.contains_key(shelf));
        self.unread.retain(|shelf| serving.contains_key(shelf));
        if matches!(wanted, Wanted::Closed) {
            self.rest.retain(|shelf| undone.late.contains(shelf));
        }
        let (store, redis) = (&self.warden.context.store, self.warden.redis());
        if let Err(trouble) = store.bounded(crate::api::stock::complete_pending(store, redis)).await {
            tracing::warn!(%trouble, "stock changes wait");
        }
        store.bounded(store.forget_old_barriers()).await?;
        self.warden.metrics().unread_segments.set(i64::try_from(self.unread.len()).unwrap_or(i64::MAX));
        Ok(undone)
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
