//! Every ten seconds, and at once when a store has lost something: whatever fell between two stores is
//! picked up, and drift is measured.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::keys::Segment;
use sluice_shared::sale::{SaleStep, SaleView};

use super::doubts::Doubt;
use super::image::{Head, Image};
use super::outlet::Outlet;
use super::scan::{Scan, Wanted};
use super::{Trouble, Warden, reopen};

mod telling;
mod turn;
mod unwritten;

use turn::{SHARE, Spent, Turn};
use unwritten::Republished;

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
/// After this time a sale is read although all of its units are accounted for.
const PROVEN: Duration = Duration::from_secs(60);

/// Closed sales have so much of one round: there may be many, and those that sell come first.
const SLICE: Duration = Duration::from_secs(5);

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
        let began = Spent::now(&reconciler.warden).await;
        let done = if let Some(doubt) = doubt {
            reconciler.dispel(doubt, &began).await
        } else if selling.due <= closed.due {
            let done = reconciler.round(selling.look, About::Selling).await;
            selling.next(began.at, began.since(&reconciler.warden).await, every);
            done.map(|undone| {
                selling.look = ROUTINE;
                reconciler.rounded("selling", &undone);
            })
        } else {
            let done = reconciler.round(closed.look, About::Closed).await;
            let pause = if reconciler.rest.is_empty() { every } else { Duration::ZERO };
            closed.next(began.at, began.since(&reconciler.warden).await, pause.max(AGAIN));
            done.map(|undone| {
                if reconciler.rest.is_empty() {
                    closed.look = ROUTINE;
                    reconciler.rounded("closed", &undone);
                }
            })
        };
        if let Err(trouble) = done {
            tracing::warn!(%trouble, "reconciling is held up");
        }
    }
}

/// Which segments a round is about.
#[derive(Clone, Copy)]
enum About<'a> {
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
    unread: BTreeSet<Segment>,
    /// Segments of closed sales that there was no time for.
    late: BTreeSet<Segment>,
}

struct Reconciler {
    warden: Arc<Warden>,
    outlet: Outlet,
    /// Orders of which was told again what the books say, and when.
    told: HashMap<OrderId, Instant>,
    /// Accepted orders without a row that were published again.
    republished: Republished,
    /// Which order of a sale was compared last.
    compared: HashMap<SaleId, OrderId>,
    /// When the order maps of a sale were read last.
    read: HashMap<SaleId, Instant>,
    /// Segments of closed sales that have not had their turn.
    rest: BTreeSet<Segment>,
    /// Segments that could not be read when they were looked at last.
    unread: BTreeSet<Segment>,
}

/// What one sale's segments hold together.
#[derive(Default)]
struct Tally {
    held: BTreeMap<SkuId, i64>,
    unwritten: BTreeMap<SkuId, i64>,
    off_shelf: i64,
}

impl Reconciler {
    fn new(warden: Arc<Warden>) -> Self {
        Self {
            outlet: Outlet::new(&warden, "reconcile"),
            told: HashMap::new(),
            republished: Republished::default(),
            compared: HashMap::new(),
            read: HashMap::new(),
            rest: BTreeSet::new(),
            unread: BTreeSet::new(),
            warden,
        }
    }

    /// Looks at what a loss may have touched; what is not done stays in doubt.
    async fn dispel(&mut self, doubt: Doubt, began: &Spent) -> Result<(), Trouble> {
        let look = Look { since: doubt.since(), ..AFTER_LOSS };
        let (left, failed) = match self.round(look, About::Doubtful(&doubt)).await {
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
            tokio::time::sleep(AGAIN.max(began.since(&self.warden).await * SHARE)).await;
        }
        if let Some(left) = left {
            self.warden.doubts.note(left);
        }
        Ok(())
    }

    /// Looks at the segments that are served, and that it is about.
    async fn round(&mut self, look: Look, about: About<'_>) -> Result<Undone, Trouble> {
        let (began, mut undone) = (Instant::now(), Undone::default());
        self.told.retain(|_, at| at.elapsed() < ROUTINE.untold * 2);
        self.republished.forget(began);
        let serving = self.warden.floor(|floor| floor.serving.clone());
        if matches!(about, About::Closed) && self.rest.is_empty() {
            // Again from the first after the last.
            self.rest = serving.keys().cloned().collect();
        }
        let mut views = self.warden.views().await?;
        // Those that sell first, and each look in the same order as the one before.
        views.sort_by_key(|view| (view.step == SaleStep::Closed, view.number));
        for view in &views {
            let closed = view.step == SaleStep::Closed;
            let segments = (0..view.segments).map(|segment| Segment::new(view.sale.clone(), segment));
            let mut wanted: Vec<(Segment, u64)> = segments
                .filter(|segment| match about {
                    About::Selling => !closed,
                    About::Closed => closed && self.rest.contains(segment),
                    About::Doubtful(doubt) => doubt.covers(segment),
                })
                .filter_map(|segment| serving.get(&segment).map(|epoch| (segment.clone(), *epoch)))
                .collect();
            if closed && began.elapsed() > SLICE {
                undone.late.extend(wanted.drain(..).map(|(segment, _)| segment));
            }
            self.sale(view, &wanted, look, &mut undone).await?;
        }
        let known: BTreeSet<&SaleId> = views.iter().map(|view| &view.sale).collect();
        self.compared.retain(|sale, _| known.contains(sale));
        self.read.retain(|sale, _| known.contains(sale));
        self.unread.retain(|segment| serving.contains_key(segment));
        if matches!(about, About::Closed) {
            self.rest.retain(|segment| undone.late.contains(segment));
        }
        let (store, redis) = (&self.warden.context.store, self.warden.redis());
        if let Err(trouble) = store.bounded(crate::stock::complete_pending(store, redis)).await {
            tracing::warn!(%trouble, "stock changes wait");
        }
        store.bounded(store.forget_old_barriers()).await?;
        self.warden.metrics().unread_segments.set(i64::try_from(self.unread.len()).unwrap_or(i64::MAX));
        self.warden.metrics().round("reconcile");
        Ok(undone)
    }

    /// Looks at some segments of a sale, and at the sale when they are all of it.
    async fn sale(
        &mut self,
        view: &SaleView,
        wanted: &[(Segment, u64)],
        look: Look,
        undone: &mut Undone,
    ) -> Result<(), Trouble> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut whole = wanted.len() == usize::from(view.segments);
        if whole && !look.whole && self.is_proven(view, wanted).await? {
            return self.compare(view, wanted, look).await;
        }
        let (mut tally, mut readable) = (Tally::default(), Vec::with_capacity(wanted.len()));
        for (segment, epoch) in wanted {
            self.unread.remove(segment);
            match self.segment(view, segment, *epoch, look, &mut tally).await {
                Err(trouble) if trouble.is_local() => {
                    tracing::warn!(segment = segment.name(), %trouble, "not reconciled");
                    whole = false;
                    self.unread.insert(segment.clone());
                    undone.unread.insert(segment.clone());
                }
                done => {
                    done?;
                    readable.push((segment.clone(), *epoch));
                }
            }
        }
        self.compare(view, &readable, look).await?;
        if whole {
            self.read.insert(view.sale.clone(), Instant::now());
            self.judge(view, &tally).await?;
        }
        Ok(())
    }

    /// Whether every unit that is off the shelves is taken in the books too. Then no order that holds units
    /// is without a row, and no dead one holds any, and nobody has to read the maps: but for errors that
    /// make up for each other, which is why they are read now and then.
    async fn is_proven(&self, view: &SaleView, wanted: &[(Segment, u64)]) -> Result<bool, Trouble> {
        let fresh = self.read.get(&view.sale).is_some_and(|at| at.elapsed() < PROVEN);
        if !fresh || wanted.iter().any(|(segment, _)| self.unread.contains(segment)) {
            return Ok(false);
        }
        let mut held: BTreeMap<SkuId, i64> = BTreeMap::new();
        for (segment, _) in wanted {
            let head = match Head::read(self.warden.redis(), segment).await {
                Err(fault) if fault.is_local() => return Ok(false),
                head => head?,
            };
            for (sku, init) in head.init {
                let Some(Some(left)) = head.stock.get(&sku) else { return Ok(false) };
                *held.entry(sku).or_default() += signed(init) - left;
            }
        }
        let store = &self.warden.context.store;
        let taken = store.bounded(store.taken(&view.sale)).await?;
        let taken: BTreeMap<SkuId, i64> = taken.into_iter().map(|(sku, n)| (sku, signed(n))).collect();
        let proven = held == taken;
        if proven {
            self.drift(view, "X2", 0);
            self.drift(view, "unwritten", 0);
        }
        Ok(proven)
    }

    /// Publishes what has no row, and adds up what is held.
    async fn segment(
        &mut self,
        view: &SaleView,
        segment: &Segment,
        epoch: u64,
        look: Look,
        tally: &mut Tally,
    ) -> Result<(), Trouble> {
        let image = Image::read(self.warden.redis(), segment).await?;
        let mut held_then: BTreeMap<SkuId, i64> = BTreeMap::new();
        let mut scan = Scan::of(self.warden.redis(), segment, Wanted::Orders);
        while let Some(page) = scan.next_orders().await? {
            let unwritten = reopen::unwritten(&self.warden, segment, view.number, &page, |_| true).await?;
            self.publish(segment, epoch, image.at, look, &unwritten).await?;
            for (sku, n) in unwritten.iter().flat_map(|order| order.lines.iter()) {
                add(&mut tally.unwritten, sku, n);
            }
            for (_, record) in &page {
                for (sku, n) in record.lines.iter() {
                    if !record.released {
                        add(&mut tally.held, sku, n);
                    }
                    if image.held(record) {
                        add(&mut held_then, sku, n);
                    }
                }
            }
        }
        for (sku, init) in &image.head.init {
            let left = image.head.stock.get(sku).copied().flatten().unwrap_or(0);
            let held = held_then.get(sku).copied().unwrap_or(0);
            tally.off_shelf += (left + held - signed(*init)).abs();
        }
        Ok(())
    }

    /// Compares what Redis holds with what the books have taken, and releases what is dead.
    async fn judge(&mut self, view: &SaleView, tally: &Tally) -> Result<(), Trouble> {
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
        if surplus > 0 { self.release(view).await } else { Ok(()) }
    }

    /// Notes when a round has looked at everything that it was about.
    fn rounded(&self, sales: &'static str, undone: &Undone) {
        if undone.unread.is_empty() {
            #[allow(clippy::cast_precision_loss)]
            let seconds = Millis::now().0 as f64 / 1000.0;
            self.warden.metrics().last_round.get_or_create(&[("sales", sales)]).set(seconds);
        }
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

fn add(units: &mut BTreeMap<SkuId, i64>, sku: &SkuId, n: u32) {
    match units.get_mut(sku) {
        Some(sum) => *sum += i64::from(n),
        None => drop(units.insert(sku.clone(), i64::from(n))),
    }
}
