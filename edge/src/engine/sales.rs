//! The sales of this gate, as the warden publishes them in Redis.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use arc_swap::ArcSwap;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::keys::{GENERATION, SALES, Segment};
use sluice_shared::lines::Lines;
use sluice_shared::place::segment_of;
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::{AcceptAfter, SaleStep, SaleView};
use sluice_shared::script::mark_work;

use super::core::Core;
use super::desk::{Desk, Terms};
use super::latch::Latch;

/// Sales of one gate, at the most.
const MOST: usize = 10_000;
/// Segments of one sale, at the most.
const SEGMENTS: u16 = 1024;
/// How often the list is read when nobody says that it changed.
const EVERY: Duration = Duration::from_mins(5);

/// A sale's state as buyers see it; the first that holds of frozen, paused, ended, scheduled, sold out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicState {
    /// Not opened yet, or before its start.
    Scheduled,
    /// Selling.
    Open,
    /// Paused by its operator.
    Paused,
    /// Its books are being put right.
    Frozen,
    /// No unit is left; some may return.
    SoldOut,
    /// Over.
    Ended,
}

impl PublicState {
    /// The word of the outside contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Frozen => "frozen",
            Self::SoldOut => "sold_out",
            Self::Ended => "ended",
        }
    }
}

/// A sale with what this edge knows of it at the moment.
#[derive(Debug)]
pub struct LiveSale {
    /// As the warden published it.
    pub view: SaleView,
    desks: Vec<Arc<Desk>>,
    latch: Arc<Latch>,
}

impl LiveSale {
    /// Whether nothing is sold in one of its segments, because its books are being put right or this
    /// edge has not been admitted.
    pub fn frozen(&self) -> bool {
        self.desks.iter().any(|desk| desk.frozen())
    }

    /// The same for a buyer: while buyers come, Redis is asked more often whether it goes on.
    pub fn turns_away(&self) -> bool {
        self.desks.iter().any(|desk| desk.turns_away())
    }

    /// Whether a unit is left, as last known.
    pub fn available(&self, sku: &SkuId) -> bool {
        self.latch.available(sku)
    }

    /// Whether the latch says sold out: true only when the order is certainly no replay.
    pub fn sold_out(&self, lines: &Lines, uuid: &[u8; 16]) -> bool {
        self.latch.refuses(lines, uuid)
    }

    /// The state that buyers see.
    pub fn state(&self, now: Millis) -> PublicState {
        let facts = Facts { frozen: self.frozen(), sold_out: self.latch.sold_out() };
        public_state(&self.view, facts, now)
    }

    /// The desk of a buyer.
    pub(crate) fn desk(&self, user: &sluice_shared::ids::UserId) -> Option<&Arc<Desk>> {
        self.desks.get(usize::from(segment_of(user, self.view.segments)))
    }

    /// All desks, one a segment.
    pub(crate) fn desks(&self) -> &[Arc<Desk>] {
        &self.desks
    }

    /// The sold-out latch.
    pub(crate) fn latch(&self) -> &Arc<Latch> {
        &self.latch
    }

    /// Segments that sell nothing for now.
    pub(crate) fn frozen_segments(&self) -> usize {
        self.desks.iter().filter(|desk| desk.frozen()).count()
    }

    /// Whether it is open within its window.
    pub(crate) fn sells(&self, now: Millis) -> bool {
        let view = &self.view;
        view.step == SaleStep::Open && view.starts_at <= now && now < view.ends_at
    }

    /// Whether selling is over for good, as far as the list tells.
    fn over(&self, now: Millis) -> bool {
        self.view.step == SaleStep::Closed || now >= self.view.ends_at
    }
}

#[derive(Debug, Clone, Copy)]
struct Facts {
    frozen: bool,
    sold_out: bool,
}

fn public_state(view: &SaleView, facts: Facts, now: Millis) -> PublicState {
    let early = matches!(view.step, SaleStep::Created | SaleStep::Preloaded) || now < view.starts_at;
    if facts.frozen {
        PublicState::Frozen
    } else if view.step == SaleStep::Paused {
        PublicState::Paused
    } else if view.step == SaleStep::Closed || now >= view.ends_at {
        PublicState::Ended
    } else if early {
        PublicState::Scheduled
    } else if facts.sold_out {
        PublicState::SoldOut
    } else {
        PublicState::Open
    }
}

/// The list at one moment.
#[derive(Debug, Default)]
pub(crate) struct Sales {
    by_id: AHashMap<SaleId, Arc<LiveSale>>,
    by_number: AHashMap<u32, Arc<LiveSale>>,
    /// What [`GENERATION`] was before the list was read; `None` before the first time.
    pub(crate) generation: Option<u64>,
}

impl Sales {
    /// All sales, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<LiveSale>> {
        self.by_id.values()
    }
}

/// The sales, replaced as a whole and read without a lock.
#[derive(Debug, Default)]
pub(crate) struct Book {
    sales: ArcSwap<Sales>,
}

impl Book {
    /// The list as it is now.
    pub(crate) fn now(&self) -> Arc<Sales> {
        self.sales.load_full()
    }

    /// A sale by its id.
    pub(crate) fn sale(&self, id: &str) -> Option<Arc<LiveSale>> {
        self.sales.load().by_id.get(id).cloned()
    }

    /// A sale by its number.
    pub(crate) fn by_number(&self, number: u32) -> Option<Arc<LiveSale>> {
        self.sales.load().by_number.get(&number).cloned()
    }

    /// The segment of an order, where its sale is known.
    pub(crate) fn segment(&self, order: &OrderId) -> Option<Segment> {
        let sale = self.by_number(order.sale)?;
        (order.segment < sale.view.segments).then(|| Segment::new(sale.view.sale.clone(), order.segment))
    }

    /// Closes every desk: whoever still comes is told that nothing is sold here for now.
    pub(crate) fn close(&self) {
        for sale in self.now().all() {
            sale.desks.iter().for_each(|desk| desk.close());
        }
    }
}

/// Reads the sales of a list; what cannot be read is left out and named.
fn views(list: Vec<(String, String)>) -> Vec<SaleView> {
    list.into_iter().filter_map(|(name, text)| view(&name, &text)).collect()
}

fn view(name: &str, text: &str) -> Option<SaleView> {
    match serde_json::from_str::<SaleView>(text) {
        Ok(view) if view.sale.as_str() != name => {
            tracing::error!(name, sale = view.sale.as_str(), "a sale stands under another's name");
        }
        Ok(view) if view.segments == 0 || view.segments > SEGMENTS => {
            tracing::error!(name, segments = view.segments, "a sale has an impossible number of segments");
        }
        Ok(view) => return Some(view),
        Err(why) => tracing::error!(name, %why, "a sale cannot be read"),
    }
    None
}

/// Leaves out what is too much: of the sales that are over the oldest, and then the latest of the others,
/// which have sold nothing yet.
fn bound(mut views: Vec<SaleView>, now: Millis) -> Vec<SaleView> {
    let over = |view: &SaleView| view.step == SaleStep::Closed || now >= view.ends_at;
    if views.len() > MOST {
        tracing::error!(
            found = views.len(),
            most = MOST,
            "too many sales; those that are over are left out first"
        );
        views.sort_by_key(|view| (over(view), if over(view) { u32::MAX - view.number } else { view.number }));
        views.truncate(MOST);
    }
    views.sort_by_key(|view| view.number);
    views
}

/// The next list. A sale that vanished before it was over is kept: only a Redis that lost its data
/// forgets one, and then it is frozen, not unknown.
fn next(
    old: &Sales,
    views: Vec<SaleView>,
    generation: u64,
    now: Millis,
    mut open: impl FnMut(SaleView, Option<&LiveSale>) -> LiveSale,
) -> Sales {
    let mut sales = Sales { generation: Some(generation), ..Sales::default() };
    for view in bound(views, now) {
        let before = old.by_id.get(&view.sale).filter(|before| before.view.number == view.number);
        let sale = match before {
            Some(same) if same.view == view => Arc::clone(same),
            before => Arc::new(open(view, before.map(|sale| &**sale))),
        };
        sales.by_number.insert(sale.view.number, Arc::clone(&sale));
        sales.by_id.insert(sale.view.sale.clone(), sale);
    }
    for (id, sale) in &old.by_id {
        let taken = sales.by_id.contains_key(id) || sales.by_number.contains_key(&sale.view.number);
        if !taken && !sale.over(now) && sales.by_id.len() < MOST {
            tracing::warn!(sale = id.as_str(), "not on the list any more, but not over either: kept");
            sales.by_number.insert(sale.view.number, Arc::clone(sale));
            sales.by_id.insert(id.clone(), Arc::clone(sale));
        }
    }
    sales
}

fn terms(view: &SaleView, segment: u16) -> Terms {
    Terms {
        epoch: view.epochs.get(usize::from(segment)).copied().unwrap_or(0),
        after_broker: view.accept_after == AcceptAfter::Broker,
        mark_work: mark_work(view.items.iter().map(|item| &item.sku)),
        probe: view.items.first().and_then(|item| Lines::merge(vec![(item.sku.clone(), 1)]).ok()),
    }
}

/// A sale with its desks; those of `before` go on where they fit.
fn open(core: &Arc<Core>, redis: &Redis, view: SaleView, before: Option<&LiveSale>) -> LiveSale {
    let skus = || view.items.iter().map(|item| &item.sku);
    let before = before.filter(|before| before.latch.fits(skus(), view.segments));
    let latch = match before {
        Some(before) => Arc::clone(&before.latch),
        None => Arc::new(Latch::new(skus().cloned(), view.segments)),
    };
    let desk = |segment: u16| {
        let terms = terms(&view, segment);
        if let Some(desk) = before.and_then(|before| before.desks.get(usize::from(segment))) {
            desk.renew(terms);
            return Arc::clone(desk);
        }
        let segment = Segment::new(view.sale.clone(), segment);
        let (desk, clerk) = Desk::new(core, redis.clone(), segment, view.number, terms, Arc::clone(&latch));
        tokio::spawn(clerk);
        desk
    };
    let desks = (0..view.segments).map(desk).collect();
    LiveSale { view, desks, latch }
}

/// Reads the list once: as far as it has changed, where that is known.
async fn read(core: &Arc<Core>, book: &Book, redis: &Redis, hot: &Redis) -> Result<(), Fault> {
    let (old, rung) = (book.now(), std::mem::take(&mut *core.rung()));
    let changed = old.generation.and_then(|generation| rung.since(generation));
    let (generation, views) = match changed {
        Some((_, names)) if names.is_empty() => return Ok(()),
        Some((generation, names)) => match few(redis, &names).await? {
            Some(changed) => {
                let same = |view: &SaleView| !changed.iter().any(|other| other.sale == view.sale);
                let rest = old.all().map(|sale| &sale.view).filter(|view| same(view)).cloned();
                (generation, rest.chain(changed.iter().cloned()).collect())
            }
            None => whole(core, redis).await?,
        },
        None => whole(core, redis).await?,
    };
    let now = core.clock.now();
    let sales = next(&old, views, generation, now, |view, before| open(core, hot, view, before));
    core.metrics.sales.set(super::metrics::number(sales.by_id.len()));
    core.held().prune(|sale| old.by_id.contains_key(sale) && !sales.by_id.contains_key(sale));
    book.sales.store(Arc::new(sales));
    core.beat.notify_one();
    core.listen.notify_one();
    Ok(())
}

/// All of it, and its generation.
async fn whole(core: &Core, redis: &Redis) -> Result<(u64, Vec<SaleView>), Fault> {
    // Nobody is let in by this machine's own clock: without a sale list there are no sales yet.
    core.clock.observe(redis.time().await?);
    // The generation first: the list is then at least as new.
    let generation: Option<u64> = redis.run("reading the generation", cmd("GET").arg(GENERATION)).await?;
    let list: Vec<(String, String)> = redis.run("reading the sales", cmd("HGETALL").arg(SALES)).await?;
    core.metrics.whole_lists.inc();
    Ok((generation.unwrap_or(0), views(list)))
}

/// These sales of it; `None` where one is not on it, or cannot be read.
async fn few(redis: &Redis, names: &BTreeSet<String>) -> Result<Option<Vec<SaleView>>, Fault> {
    let mut get = cmd("HMGET");
    get.arg(SALES);
    for name in names {
        get.arg(name);
    }
    let texts: Vec<Option<String>> = redis.run("reading changed sales", &get).await?;
    Ok(names.iter().zip(texts).map(|(name, text)| view(name, &text?)).collect())
}

/// Keeps the list fresh: at the start, when told, when a heartbeat sees another generation, and every
/// few minutes in any case.
pub(crate) async fn run(core: Arc<Core>, book: Arc<Book>, redis: Redis, hot: Redis) {
    loop {
        let pause = match read(&core, &book, &redis, &hot).await {
            Ok(()) => EVERY,
            Err(why) => {
                tracing::warn!(%why, "the sale list could not be read; the last one stays");
                core.rung().lost();
                Duration::from_millis(200)
            }
        };
        // Either way the list is read again, and as a whole where nothing was told.
        if tokio::time::timeout(pause, core.refresh.notified()).await.is_err() {
            core.rung().lost();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(sale: &str, number: u32, step: &str) -> (String, String) {
        let view = format!(
            r#"{{"sale":"{sale}","number":{number},"step":"{step}","starts_at":100,"ends_at":200,"cfg":1,
            "segments":1,"accept_after":"journal","epochs":[1],"items":[]}}"#
        );
        (sale.to_owned(), view)
    }

    fn bare(view: SaleView, before: Option<&LiveSale>) -> LiveSale {
        let latch = before.map_or_else(|| Arc::new(Latch::new([], 1)), |sale| Arc::clone(&sale.latch));
        LiveSale { view, desks: Vec::new(), latch }
    }

    fn after(old: &Sales, list: Vec<(String, String)>, now: i64) -> Sales {
        next(old, views(list), 1, Millis(now), bare)
    }

    #[test]
    fn one_unreadable_sale_does_not_hide_the_others() {
        let torn = ("torn".to_owned(), "{".to_owned());
        let (alias, other) = (("alias".to_owned(), text("b", 2, "open").1), text("a", 1, "open"));
        let sales = after(&Sales::default(), vec![torn, other, alias], 150);
        assert_eq!(sales.by_id.keys().map(SaleId::as_str).collect::<Vec<_>>(), ["a"]);
        assert!(sales.by_number.contains_key(&1));
    }

    #[test]
    fn a_sale_keeps_its_desks_and_latch_when_its_view_changes() {
        let first = after(&Sales::default(), vec![text("a", 1, "open"), text("b", 2, "open")], 150);
        let second = after(&first, vec![text("a", 1, "paused"), text("b", 2, "open")], 150);
        assert!(Arc::ptr_eq(&first.by_id["b"], &second.by_id["b"]));
        assert!(!Arc::ptr_eq(&first.by_id["a"], &second.by_id["a"]));
        assert!(Arc::ptr_eq(&first.by_id["a"].latch, &second.by_id["a"].latch));
        assert_eq!(second.by_id["a"].view.step, SaleStep::Paused);
    }

    #[test]
    fn a_sale_that_vanishes_before_its_end_is_kept_and_one_that_is_over_goes() {
        let first = after(&Sales::default(), vec![text("a", 1, "open"), text("b", 2, "closed")], 150);
        let second = after(&first, Vec::new(), 150);
        assert!(second.by_id.contains_key("a") && !second.by_id.contains_key("b"));
        assert!(after(&second, Vec::new(), 200).by_id.is_empty());
        let reused = after(&second, vec![text("c", 1, "open")], 150);
        assert!(!reused.by_id.contains_key("a") && reused.by_number[&1].view.sale.as_str() == "c");
    }

    #[test]
    fn of_too_many_sales_those_that_are_over_go_first() {
        let step = |number: u32| if number.is_multiple_of(3) { "closed" } else { "open" };
        let sales = |many: u32| (1..=many).map(|n| text(&format!("s{n}"), n, step(n))).collect::<Vec<_>>();
        let most = u32::try_from(MOST).unwrap();
        let live = after(&Sales::default(), sales(most + 300), 150);
        assert_eq!(live.by_id.len(), MOST);
        assert!(live.by_number.contains_key(&1) && live.by_number.contains_key(&(most + 299)));
        let gone: Vec<u32> = (1..=most + 300).filter(|n| !live.by_number.contains_key(n)).collect();
        assert_eq!(gone, (1..=300).map(|n| n * 3).collect::<Vec<u32>>());
    }

    #[test]
    fn the_state_is_the_first_that_holds() {
        let view = |step| serde_json::from_str::<SaleView>(&text("a", 1, step).1).unwrap();
        let state = |step, frozen, sold_out, now| {
            public_state(&view(step), Facts { frozen, sold_out }, Millis(now)).as_str()
        };
        assert_eq!(state("paused", true, true, 300), "frozen");
        assert_eq!(state("paused", false, true, 300), "paused");
        assert_eq!(state("closed", false, true, 50), "ended");
        assert_eq!(state("preloaded", false, false, 200), "ended");
        assert_eq!(state("preloaded", false, true, 150), "scheduled");
        assert_eq!(state("open", false, true, 99), "scheduled");
        assert_eq!(state("open", false, true, 100), "sold_out");
        assert_eq!(state("open", false, false, 199), "open");
    }
}
