//! Rows against their records. Redis was read first: a row may be ahead of its record, never behind.

use std::collections::HashSet;

use ahash::AHashSet;
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;

use super::About;
use crate::audit::names::Names;
use crate::audit::segment::{Entry, Seen};
use crate::store::books::OrderFact;
use crate::warden::behind::{Behind, ahead, behind};

/// How long Redis may lag behind the row of an order until the audit calls it lost.
const UNTOLD_MS: i64 = 10_000;
/// The clocks of Redis and PostgreSQL may differ by so much.
pub const SKEW_MS: i64 = 5_000;

/// Whether Redis has followed the books in something, order by order.
#[derive(Debug, Default)]
pub struct Followed {
    /// Orders that it is about.
    pub looked: usize,
    /// Those in which it is about to.
    pub young: usize,
    /// Those in which it has not.
    pub late: Names,
}

impl Followed {
    /// One more order, and whether Redis owes it something; `unsent` are those whose message is still in the
    /// outbox.
    fn take(
        &mut self,
        about: &About<'_>,
        unsent: &HashSet<OrderId>,
        one: (&OrderId, &OrderFact),
        owing: bool,
    ) {
        let (order, row) = one;
        self.looked += 1;
        if owing {
            if unsent.contains(order) || (about.sale.now.0 - row.updated.0).abs() < UNTOLD_MS {
                self.young += 1;
            } else {
                self.late.push(|| order.to_string());
            }
        }
    }
}

/// What the rows say of a segment in Redis.
#[derive(Debug, Default)]
pub struct OfSegment {
    /// Live rows.
    pub live: usize,
    /// Rows that do not hold their units in Redis.
    pub unheld: Names,
    /// Dead rows, and whether their units are back.
    pub released: Followed,
    /// Rows, and whether their records say as much.
    pub told: Followed,
    /// Rows that have a record.
    pub known: usize,
    /// Records that say more.
    pub ahead: Names,
    /// Live rows whose units are back.
    pub given_back: Names,
    /// Which of the entries have a row.
    pub matched: Vec<bool>,
    /// The highest sequence of earlier epochs.
    pub before: u64,
    /// Buyers whose marks differ and who have bought meanwhile.
    pub busy: AHashSet<u64>,
    /// Where the next row's entry should be.
    next: usize,
}

impl OfSegment {
    /// Before the first row.
    pub fn new(seen: &Seen) -> Self {
        Self { matched: vec![false; seen.entries.len()], ..Self::default() }
    }

    /// A row's entry; from now on it is known to have a row.
    pub fn find(&mut self, seen: &Seen, uuid: &[u8; 16]) -> Option<Entry> {
        let at = seen.find(uuid, self.next)?;
        self.next = at + 1;
        self.matched[at] = true;
        seen.entries.get(at).copied()
    }

    /// A row and its entry.
    pub fn take(
        &mut self,
        about: &About<'_>,
        seen: &Seen,
        entry: Option<&Entry>,
        order: &OrderId,
        row: &OrderFact,
    ) {
        let name = || order.to_string();
        if row.epoch < seen.image.head.epoch {
            self.before = self.before.max(row.seq);
        }
        let user = about.hashes.hash_one(&row.user);
        if seen.meanwhile(row.accepted, Millis(about.sale.now.0 + SKEW_MS)) {
            self.busy.insert(user);
        }
        if !is_newer(seen, row, about.sale.now) {
            // A tombstone has no place: nothing was ever taken under it.
            let place = |entry: &Entry| entry.seq == 0 || (entry.epoch, entry.seq) == (row.epoch, row.seq);
            let same = |entry: &Entry| *seen.lines(entry) == row.lines && entry.user == user && place(entry);
            let held = entry.is_some_and(|entry| !entry.released);
            self.live += usize::from(row.live);
            if !entry.is_some_and(same) || row.live && !held {
                self.unheld.push(name);
            }
        }
        if !row.live {
            let owing = entry.is_some_and(|entry| !entry.released);
            self.released.take(about, about.unsent_releases, (order, row), owing);
        }
        let Some(entry) = entry else { return };
        let owing = behind(entry.told(), row.standing()) == Some(Behind::Change);
        self.told.take(about, about.unsent_changes, (order, row), owing);
        self.known += 1;
        if ahead(entry.told(), row.standing()) {
            self.ahead.push(name);
        }
        if entry.released && row.live {
            self.given_back.push(name);
        }
    }
}

/// Whether a row was written for units that were taken after the shelf was read. One that was written
/// before, and is ahead of Redis all the same, is what Redis has lost.
pub(super) fn is_newer(seen: &Seen, row: &OrderFact, now: Millis) -> bool {
    let head = &seen.image.head;
    let ahead = (row.epoch, row.seq) > (head.epoch, head.seq);
    let since = row.created.0 + SKEW_MS >= seen.image.at.0 && row.created.0 <= now.0 + SKEW_MS;
    head.fence.is_some() && ahead && since
}
