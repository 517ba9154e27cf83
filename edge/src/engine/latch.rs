//! The sold-out latch: refuses at the edge what is certainly sold out and certainly no replay.
//!
//! A SKU is shut when every segment was seen without a unit of it *and* the ids of the sale's orders
//! are known: an id among them always goes to the script, so that a replay is answered truly. Units
//! that come back open it: at once when the release is heard of, else when the stock is read next.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::AHashSet;
use arc_swap::ArcSwapOption;
use sluice_shared::ids::SkuId;
use sluice_shared::lines::Lines;
use sluice_shared::record::Record;

/// Units left that nobody has told us.
const UNKNOWN: u64 = u64::MAX;

/// The ids of a sale's orders, as far as they were read.
type Ids = AHashSet<[u8; 16]>;

/// What shut SKUs are judged by.
#[derive(Debug)]
struct Shut {
    skus: Vec<SkuId>,
    ids: Arc<Ids>,
}

#[derive(Debug, Default)]
struct State {
    /// Sequence of each segment as it was last read together with its stock.
    seqs: Vec<Option<u64>>,
    /// Order ids, and the sequences that they are complete for.
    known: Option<(Arc<Ids>, Vec<u64>)>,
    /// Whether releases are heard of.
    listening: bool,
    /// How often there was an order that ids read before it may lack.
    orders: u64,
}

/// What the order ids are read under: they are of use only if this is still so afterwards.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    seqs: Vec<u64>,
    orders: u64,
}

impl State {
    /// There may be an order that the known ids, or those that are being read, lack.
    fn doubt(&mut self) {
        self.known = None;
        self.orders += 1;
    }
}

/// The latch of one sale.
#[derive(Debug)]
pub(crate) struct Latch {
    /// SKU → units left by segment.
    left: BTreeMap<SkuId, Vec<AtomicU64>>,
    state: Mutex<State>,
    shut: ArcSwapOption<Shut>,
    releases: AtomicU64,
    /// Some SKU has no unit left in any segment.
    empty: AtomicBool,
}

impl Latch {
    pub(crate) fn new(skus: impl IntoIterator<Item = SkuId>, segments: u16) -> Self {
        let counts = || (0..segments.max(1)).map(|_| AtomicU64::new(UNKNOWN)).collect();
        let state = State { seqs: vec![None; usize::from(segments.max(1))], ..State::default() };
        Self {
            left: skus.into_iter().map(|sku| (sku, counts())).collect(),
            state: Mutex::new(state),
            shut: ArcSwapOption::empty(),
            releases: AtomicU64::new(0),
            empty: AtomicBool::new(false),
        }
    }

    /// Whether the SKUs and segments are these; else another latch is needed.
    pub(crate) fn fits<'a>(&self, skus: impl ExactSizeIterator<Item = &'a SkuId>, segments: u16) -> bool {
        let all = self.left.len() == skus.len();
        let segments = usize::from(segments.max(1));
        all && { skus }.all(|sku| self.left.get(sku).is_some_and(|counts| counts.len() == segments))
    }

    /// Whether a unit is left somewhere, as last known.
    pub(crate) fn available(&self, sku: &SkuId) -> bool {
        self.left.get(sku).is_some_and(|counts| !none_left(counts))
    }

    /// Whether some stock has not been read yet.
    pub(crate) fn unread(&self) -> bool {
        self.state().seqs.iter().any(Option::is_none)
    }

    /// Whether no SKU has a unit left.
    pub(crate) fn sold_out(&self) -> bool {
        !self.left.is_empty() && self.left.values().all(|counts| none_left(counts))
    }

    /// Whether an order is certainly sold out and certainly no replay.
    pub(crate) fn refuses(&self, lines: &Lines, uuid: &[u8; 16]) -> bool {
        let shut = self.shut.load();
        let Some(shut) = shut.as_deref() else { return false };
        lines.iter().any(|(sku, _)| shut.skus.contains(sku)) && !shut.ids.contains(uuid)
    }

    /// How many releases were heard of: what was asked before one of them proves nothing after it.
    pub(crate) fn releases(&self) -> u64 {
        self.releases.load(Ordering::Acquire)
    }

    /// Whether the sale's channel is worth listening to.
    pub(crate) fn wants_to_listen(&self) -> bool {
        self.empty.load(Ordering::Relaxed)
    }

    /// A reply told what is left; it was asked when `releases` were known. Where it sold, or where the
    /// last unit went unseen, there are orders that the known ids lack.
    pub(crate) fn told(&self, segment: u16, left: &[(SkuId, u64)], releases: u64, sold: bool) {
        let mut state = self.state();
        if self.note(segment, left, releases) || sold {
            state.doubt();
        }
        self.decide(&state);
    }

    /// Stock and sequence were read. Orders that came since the ids were read make those useless.
    pub(crate) fn read(&self, segment: u16, left: &[(SkuId, u64)], seq: u64, releases: u64) {
        let mut state = self.state();
        let at = usize::from(segment);
        if let Some(known) = state.seqs.get_mut(at) {
            *known = Some(seq);
        }
        if state.known.as_ref().is_some_and(|(_, seqs)| seqs.get(at) != Some(&seq)) {
            state.known = None;
        }
        self.note(segment, left, releases);
        self.decide(&state);
    }

    /// Notes units left; answers whether some SKU ran out with it.
    fn note(&self, segment: u16, left: &[(SkuId, u64)], releases: u64) -> bool {
        let (stale, mut ran_out) = (releases != self.releases(), false);
        for (sku, units) in left.iter().filter(|(_, units)| *units > 0 || !stale) {
            if let Some(count) = self.left.get(sku).and_then(|counts| counts.get(usize::from(segment))) {
                ran_out |= count.swap(*units, Ordering::Relaxed) != 0 && *units == 0;
            }
        }
        ran_out
    }

    /// Units of a SKU came back somewhere.
    pub(crate) fn released(&self, sku: &SkuId) {
        let state = self.state();
        self.releases.fetch_add(1, Ordering::AcqRel);
        for count in self.left.get(sku).into_iter().flatten() {
            count.store(UNKNOWN, Ordering::Relaxed);
        }
        self.decide(&state);
    }

    /// The record of an order changed: a released one brings units back, a new one must be known.
    pub(crate) fn seen(&self, uuid: &[u8; 16], record: &Record) {
        if record.released {
            record.lines.iter().for_each(|(sku, _)| self.released(sku));
        }
        let mut state = self.state();
        if state.known.as_ref().is_some_and(|(ids, _)| !ids.contains(uuid)) {
            state.doubt();
            self.decide(&state);
        }
    }

    /// Whether the sale's channel is heard; when it is not, nothing is shut.
    pub(crate) fn listen(&self, heard: bool) {
        let mut state = self.state();
        if state.listening != heard {
            state.listening = heard;
            if !heard {
                state.doubt();
            }
            self.decide(&state);
        }
    }

    /// What to read the order ids under, when they are needed now.
    pub(crate) fn wants_ids(&self) -> Option<Asked> {
        let state = self.state();
        if !state.listening || state.known.is_some() || !self.empty.load(Ordering::Relaxed) {
            return None;
        }
        let seqs: Option<Vec<u64>> = state.seqs.iter().copied().collect();
        Some(Asked { seqs: seqs?, orders: state.orders })
    }

    /// The order ids, all read since they were asked for; the stock was read once more after them.
    pub(crate) fn ids(&self, ids: Ids, asked: Asked) {
        let mut state = self.state();
        let same = state.seqs.iter().copied().eq(asked.seqs.iter().copied().map(Some));
        if state.listening && same && state.orders == asked.orders {
            state.known = Some((Arc::new(ids), asked.seqs));
        }
        self.decide(&state);
    }

    /// How many SKUs are shut, empty but open, and selling.
    pub(crate) fn counts(&self) -> [usize; 3] {
        let shut = self.shut.load().as_deref().map_or(0, |shut| shut.skus.len());
        let empty = self.left.values().filter(|counts| none_left(counts)).count();
        [shut, empty.saturating_sub(shut), self.left.len() - empty]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what follows from the state; the caller holds its lock.
    fn decide(&self, state: &State) {
        let empty = || self.left.iter().filter(|(_, counts)| none_left(counts)).map(|(sku, _)| sku);
        self.empty.store(empty().next().is_some(), Ordering::Relaxed);
        let judged =
            |(ids, _): &(Arc<Ids>, Vec<u64>)| Shut { skus: empty().cloned().collect(), ids: Arc::clone(ids) };
        let shut = state.known.as_ref().map(judged);
        let shut = shut.filter(|shut| !shut.skus.is_empty());
        let now = self.shut.load();
        let same = match (now.as_deref(), &shut) {
            (None, None) => true,
            (Some(old), Some(new)) => old.skus == new.skus && Arc::ptr_eq(&old.ids, &new.ids),
            _ => false,
        };
        if !same {
            self.shut.store(shut.map(Arc::new));
        }
    }
}

fn none_left(counts: &[AtomicU64]) -> bool {
    counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BUYER: [u8; 16] = [1; 16];
    const NEWCOMER: [u8; 16] = [2; 16];

    fn sku() -> SkuId {
        SkuId::parse("phone").unwrap()
    }

    fn lines() -> Lines {
        Lines::parse("phone=1").unwrap()
    }

    fn left(units: u64) -> Vec<(SkuId, u64)> {
        vec![(sku(), units)]
    }

    /// Sold out, listened to, with one order known.
    fn shut() -> Latch {
        let latch = Latch::new([sku()], 1);
        latch.listen(true);
        latch.read(0, &left(0), 1, 0);
        let asked = latch.wants_ids().unwrap();
        latch.ids(Ids::from([BUYER]), asked);
        latch
    }

    #[test]
    fn only_who_is_certainly_no_replay_is_refused() {
        let latch = shut();
        assert!(latch.refuses(&lines(), &NEWCOMER));
        assert!(!latch.refuses(&lines(), &BUYER));
        assert!(!latch.refuses(&Lines::parse("other=1").unwrap(), &NEWCOMER));
        assert_eq!(latch.counts(), [1, 0, 0]);
    }

    #[test]
    fn nothing_is_shut_before_the_ids_are_known() {
        let latch = Latch::new([sku()], 1);
        latch.read(0, &left(0), 1, 0);
        assert_eq!(latch.wants_ids(), None, "nobody would hear of a release");
        assert!(latch.wants_to_listen());
        latch.listen(true);
        assert!(latch.wants_ids().is_some_and(|asked| asked.seqs == [1]));
        assert!(!latch.refuses(&lines(), &NEWCOMER));
    }

    #[test]
    fn every_segment_must_be_empty() {
        let latch = Latch::new([sku()], 2);
        latch.listen(true);
        latch.read(0, &left(0), 1, 0);
        assert!(latch.available(&sku()) && !latch.sold_out());
        latch.read(1, &left(3), 1, 0);
        assert_eq!(latch.wants_ids(), None);
        latch.read(1, &left(0), 4, 0);
        assert!(latch.sold_out());
        assert!(latch.wants_ids().is_some_and(|asked| asked.seqs == [1, 4]));
    }

    #[test]
    fn a_release_opens_it_at_once_and_older_news_do_not_shut_it_again() {
        let latch = shut();
        let before = latch.releases();
        latch.released(&sku());
        assert!(!latch.refuses(&lines(), &NEWCOMER) && latch.available(&sku()));
        latch.told(0, &left(0), before, false);
        assert!(!latch.refuses(&lines(), &NEWCOMER), "asked before the release");
        latch.read(0, &left(0), 1, latch.releases());
        assert!(latch.refuses(&lines(), &NEWCOMER));
    }

    #[test]
    fn a_unit_seen_in_a_reading_opens_it() {
        let latch = shut();
        latch.read(0, &left(1), 1, 0);
        assert!(!latch.refuses(&lines(), &NEWCOMER));
    }

    #[test]
    fn an_order_sold_after_the_ids_were_read_makes_them_read_again() {
        let latch = shut();
        latch.read(0, &left(0), 2, latch.releases());
        assert!(!latch.refuses(&lines(), &NEWCOMER));
        let asked = latch.wants_ids().unwrap();
        assert_eq!(asked.seqs, [2]);
        latch.ids(Ids::from([BUYER, NEWCOMER]), Asked { seqs: vec![1], ..asked });
        assert!(!latch.refuses(&lines(), &[3; 16]), "read under older sequences");
        let asked = latch.wants_ids().unwrap();
        latch.ids(Ids::from([BUYER, NEWCOMER]), asked);
        assert!(latch.refuses(&lines(), &[3; 16]));
        assert!(!latch.refuses(&lines(), &NEWCOMER));
    }

    #[test]
    fn a_unit_that_came_back_and_was_sold_again_here_makes_them_read_again() {
        let latch = shut();
        latch.released(&sku());
        latch.told(0, &left(0), latch.releases(), true);
        assert!(!latch.refuses(&lines(), &NEWCOMER), "it may be his");
        let latch = shut();
        latch.told(0, &left(1), 0, false);
        latch.told(0, &left(0), 0, false);
        assert!(!latch.refuses(&lines(), &NEWCOMER), "somebody bought it");
        let latch = shut();
        latch.told(0, &left(0), 0, false);
        assert!(latch.refuses(&lines(), &NEWCOMER), "nothing new");
    }

    #[test]
    fn an_order_that_comes_while_the_ids_are_read_makes_them_useless() {
        let comes: [&dyn Fn(&Latch); 3] = [
            &|latch| latch.told(0, &left(0), latch.releases(), true),
            &|latch| {
                latch.released(&sku());
                latch.told(0, &left(0), latch.releases(), false);
            },
            &|latch| latch.read(0, &left(0), 2, latch.releases()),
        ];
        for come in comes {
            let latch = Latch::new([sku()], 1);
            latch.listen(true);
            latch.read(0, &left(0), 1, 0);
            let asked = latch.wants_ids().unwrap();
            come(&latch);
            latch.ids(Ids::from([BUYER]), asked);
            assert!(!latch.refuses(&lines(), &NEWCOMER), "it may be his");
            let asked = latch.wants_ids().unwrap();
            latch.ids(Ids::from([BUYER, NEWCOMER]), asked);
            assert!(latch.refuses(&lines(), &[3; 16]) && !latch.refuses(&lines(), &NEWCOMER));
        }
    }

    #[test]
    fn an_unknown_order_that_is_heard_of_makes_the_ids_useless() {
        let latch = shut();
        let record = Record::parse("Ph|1|2|3|4|5|-|phone=1|u").unwrap();
        latch.seen(&BUYER, &record);
        assert!(latch.refuses(&lines(), &NEWCOMER));
        latch.seen(&NEWCOMER, &record);
        assert!(!latch.refuses(&lines(), &NEWCOMER));
        let latch = shut();
        latch.seen(&BUYER, &Record::parse("Er|1|2|3|4|5|-|phone=1|u").unwrap());
        assert!(!latch.refuses(&lines(), &NEWCOMER), "its unit came back");
    }

    #[test]
    fn deafness_opens_it() {
        let latch = shut();
        latch.listen(false);
        assert!(!latch.refuses(&lines(), &NEWCOMER));
    }
}
