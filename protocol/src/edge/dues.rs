//! Journal entries that are due to be deleted, since the broker has their orders. No I/O and no clock.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::keys::Segment;

/// Entries in one command.
pub const BULK: usize = 500;
/// Entries remembered while Redis is away; the sweep finds those beyond.
const MOST: usize = 1_000_000;

/// Journal entries of one segment that go in one command.
type Bulk = (Arc<Segment>, Vec<(u64, u64)>);

/// All that are due.
#[derive(Debug, Default)]
pub struct Dues {
    segments: HashMap<Arc<Segment>, BTreeSet<(u64, u64)>>,
    count: usize,
}

impl Dues {
    /// One more.
    pub fn add(&mut self, segment: &Arc<Segment>, entry: (u64, u64)) {
        if self.count < MOST && self.segments.entry(Arc::clone(segment)).or_default().insert(entry) {
            self.count += 1;
        }
    }

    /// Whether an entry is about to go.
    pub fn contains(&self, segment: &Segment, entry: (u64, u64)) -> bool {
        self.segments.get(segment).is_some_and(|entries| entries.contains(&entry))
    }

    /// How many are due.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The next ones of each segment; they stay due until they are [`Self::done`].
    pub fn next(&self) -> Vec<Bulk> {
        let bulk = |entries: &BTreeSet<(u64, u64)>| entries.iter().take(BULK).copied().collect();
        self.segments.iter().map(|(segment, entries)| (Arc::clone(segment), bulk(entries))).collect()
    }

    /// Redis has deleted these.
    pub fn done(&mut self, segment: &Arc<Segment>, gone: &[(u64, u64)]) {
        let Some(entries) = self.segments.get_mut(segment) else { return };
        for entry in gone {
            self.count -= usize::from(entries.remove(entry));
        }
        if entries.is_empty() {
            self.segments.remove(segment);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ids::SaleId;

    #[test]
    fn an_entry_stays_due_until_redis_said_it_is_gone() {
        let segment = Arc::new(Segment::new(SaleId::parse("s").unwrap(), 0));
        let mut dues = Dues::default();
        for seq in 0..700 {
            dues.add(&segment, (1, seq));
            dues.add(&segment, (1, seq));
        }
        assert_eq!(dues.count(), 700);
        let (_, first) = dues.next().remove(0);
        assert_eq!(first.len(), BULK);
        assert_eq!(dues.next().remove(0).1, first);
        assert!(dues.contains(&segment, (1, 0)));
        dues.done(&segment, &first);
        assert!(!dues.contains(&segment, (1, 0)) && dues.count() == 200);
        let (_, rest) = dues.next().remove(0);
        dues.done(&segment, &rest);
        assert!(dues.next().is_empty());
    }
}
