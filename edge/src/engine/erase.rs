//! Deletes from the journal what the broker has confirmed: in bulk, off the buyers' path, until done.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sluice_protocol::edge::held::Parcel;
use sluice_shared::failpoint;
use sluice_shared::keys::Segment;
use sluice_shared::redis::{Redis, cmd};

use super::core::Core;

/// Entries in one command.
const BULK: usize = 500;
/// How long the first entry waits for company.
const LINGER: Duration = Duration::from_millis(20);
/// How long after a fault the next attempt is made.
const AGAIN: Duration = Duration::from_millis(100);
/// Entries remembered while Redis is away; the sweep finds those beyond.
const MOST: usize = 1_000_000;

/// Journal entries of one segment that go in one command.
type Bulk = (Arc<Segment>, Vec<(u64, u64)>);

/// Journal entries that are due to be deleted. No I/O and no clock.
#[derive(Debug, Default)]
pub(crate) struct Dues {
    segments: HashMap<Arc<Segment>, BTreeSet<(u64, u64)>>,
    count: usize,
}

impl Dues {
    /// One more.
    pub(crate) fn add(&mut self, segment: &Arc<Segment>, entry: (u64, u64)) {
        if self.count < MOST && self.segments.entry(Arc::clone(segment)).or_default().insert(entry) {
            self.count += 1;
        }
    }

    /// Whether an entry is about to go.
    pub(crate) fn contains(&self, segment: &Segment, entry: (u64, u64)) -> bool {
        self.segments.get(segment).is_some_and(|entries| entries.contains(&entry))
    }

    /// How many are due.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The next ones of each segment; they stay due until they are [`Self::done`].
    fn next(&self) -> Vec<Bulk> {
        let bulk = |entries: &BTreeSet<(u64, u64)>| entries.iter().take(BULK).copied().collect();
        self.segments.iter().map(|(segment, entries)| (Arc::clone(segment), bulk(entries))).collect()
    }

    fn done(&mut self, segment: &Arc<Segment>, gone: &[(u64, u64)]) {
        let Some(entries) = self.segments.get_mut(segment) else { return };
        for entry in gone {
            self.count -= usize::from(entries.remove(entry));
        }
        if entries.is_empty() {
            self.segments.remove(segment);
        }
    }
}

/// Notes what was confirmed.
pub(crate) fn owe(core: &Core, parcels: &[Arc<Parcel>]) {
    let mut dues = core.dues();
    for parcel in parcels {
        dues.add(&parcel.segment, parcel.entry);
    }
    drop(dues);
    core.erase.notify_one();
}

/// Deletes what is due, for as long as the engine runs.
pub(crate) async fn run(core: Arc<Core>, redis: Redis) {
    loop {
        if core.dues().len() == 0 {
            core.erase.notified().await;
        }
        if core.dues().len() < BULK {
            tokio::time::sleep(LINGER).await;
        }
        let bulks = core.dues().next();
        let mut fault = None;
        for (segment, entries) in bulks {
            failpoint::reach("F9.before-erase");
            match erase(&redis, &segment, &entries).await {
                Ok(()) => {
                    failpoint::reach("F9.after-erase");
                    core.dues().done(&segment, &entries);
                    core.metrics.erased.inc_by(entries.len() as u64);
                }
                Err(why) => fault = Some(why),
            }
        }
        if let Some(why) = fault {
            tracing::debug!(%why, "journal entries stay for now");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn erase(
    redis: &Redis,
    segment: &Segment,
    entries: &[(u64, u64)],
) -> Result<(), sluice_shared::redis::Fault> {
    let mut command = cmd("XDEL");
    command.arg(segment.journal());
    for (epoch, seq) in entries {
        command.arg(format!("{epoch}-{seq}"));
    }
    redis.run::<u64>("deleting journal entries", &command).await.map(|_| ())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use sluice_shared::ids::SaleId;

    #[test]
    fn an_entry_stays_due_until_redis_said_it_is_gone() {
        let segment = Arc::new(Segment::new(SaleId::parse("s").unwrap(), 0));
        let mut dues = Dues::default();
        for seq in 0..700 {
            dues.add(&segment, (1, seq));
            dues.add(&segment, (1, seq));
        }
        assert_eq!(dues.len(), 700);
        let (_, first) = dues.next().remove(0);
        assert_eq!(first.len(), BULK);
        assert_eq!(dues.next().remove(0).1, first);
        assert!(dues.contains(&segment, (1, 0)));
        dues.done(&segment, &first);
        assert!(!dues.contains(&segment, (1, 0)) && dues.len() == 200);
        let (_, rest) = dues.next().remove(0);
        dues.done(&segment, &rest);
        assert!(dues.next().is_empty());
    }
}
