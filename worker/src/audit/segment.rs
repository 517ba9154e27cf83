//! A segment as Redis has it. It is read before PostgreSQL, and each order of it compared with its row only
//! then: so it is kept meanwhile, in 64 bytes an order; of its buyers' marks only those that differ.

use std::collections::BTreeMap;

use ahash::{AHashMap, AHashSet, RandomState};
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SkuId, UserId};
use sluice_shared::keys::Segment;
use sluice_shared::lines::Lines;
use sluice_shared::record::{OrderState, Record, Refund};
use sluice_shared::redis::{Fault, Redis, cmd};

use super::names::Names;
use crate::warden::behind::Told;
use crate::warden::image::{Image, Kind, held_then};
use crate::warden::mark::Mark;
use crate::warden::scan::{self, Field, Journal, Scan, Wanted};

/// Buyers whose marks differ that are looked at by name, at the most.
const NAMED: usize = 10_000;

/// An order of the map, as far as it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The order.
    pub uuid: [u8; 16],
    /// Epoch of the reply that took the units.
    pub epoch: u64,
    /// Place in the sequence.
    pub seq: u64,
    /// When the units were taken.
    pub accepted: Millis,
    /// When the record last changed.
    pub updated: Millis,
    /// By whom: the keyed hash of his name.
    pub user: u64,
    /// What was taken, in [`Seen::lines`].
    lines: u32,
    state: OrderState,
    /// Whether its units are back on the shelf.
    pub released: bool,
    refund: Refund,
}

impl Entry {
    /// What its buyer is told.
    pub fn told(&self) -> Told {
        Told { state: self.state, released: self.released, refund: self.refund }
    }
}

/// A buyer, and the units that he has.
type Holding = (u64, u64);

/// One segment as Redis has it.
#[derive(Debug)]
pub struct Seen {
    /// Which.
    pub segment: Segment,
    /// Its keys and its head.
    pub image: Image,
    /// The epoch in PostgreSQL.
    pub epoch: u64,
    /// Its orders, by their ids.
    pub entries: Vec<Entry>,
    /// The different texts of lines.
    lines: Vec<Lines>,
    /// Entries of the journal.
    pub journal: Vec<scan::Entry>,
    /// Keys, fields and entries that cannot be read.
    pub torn: Names,
    /// Marks there are.
    pub marks: usize,
    /// Buyers whose orders hold units, or who have a mark.
    pub holders: usize,
    /// Those whose marks are not the sums of their orders.
    pub differing: Vec<u64>,
    /// The same by name, with what their orders hold; those who only were busy left out.
    pub wrong: Vec<(UserId, Mark)>,
    /// How many they are.
    pub wrong_count: usize,
    /// Buyers whose marks say more than they ever were allowed.
    pub greedy: Names,
}

/// What is added up while the map is read.
struct Reading<'a> {
    seen: Seen,
    hashes: &'a RandomState,
    limits: &'a BTreeMap<SkuId, u64>,
    known: AHashMap<Lines, u32>,
    marks: Vec<Holding>,
}

impl Seen {
    /// Reads a segment: the journal first, because an entry that leaves it meanwhile has its order in the map
    /// all the same.
    pub async fn read(
        redis: &Redis,
        segment: Segment,
        hashes: &RandomState,
        limits: &BTreeMap<SkuId, u64>,
    ) -> Result<Self, Fault> {
        let (mut journal, mut torn) = (Vec::new(), Names::default());
        if crate::warden::image::kinds(redis, &segment).await?[3] == Kind::Right {
            let mut pages = Journal::of(redis, &segment);
            while let Some((entries, unreadable)) = pages.next().await? {
                journal.extend(entries);
                unreadable.iter().for_each(|id| torn.push(|| format!("journal {id}")));
            }
        }
        let image = Image::read(redis, &segment).await?;
        image.torn.iter().for_each(|what| torn.push(|| what.clone()));
        let seen = Self {
            segment,
            image,
            epoch: 1,
            entries: Vec::new(),
            lines: Vec::new(),
            journal,
            torn,
            marks: 0,
            holders: 0,
            differing: Vec::new(),
            wrong: Vec::new(),
            wrong_count: 0,
            greedy: Names::default(),
        };
        if !seen.image.has_orders() {
            return Ok(seen);
        }
        let fields: usize = redis.run("counting the map", cmd("HLEN").arg(seen.segment.orders())).await?;
        let mut scan = Scan::of(redis, &seen.segment, Wanted::All);
        let mut reading = Reading { seen, hashes, limits, known: AHashMap::new(), marks: Vec::new() };
        // About one order to each mark.
        reading.seen.entries.reserve_exact(fields / 2);
        reading.marks.reserve_exact(fields / 2);
        while let Some(page) = scan.next().await? {
            page.into_iter().for_each(|field| reading.take(field));
        }
        Ok(reading.done())
    }

    /// Where an order of the map stands. Rows come in the order of their ids too, so it is mostly `next`.
    pub fn find(&self, uuid: &[u8; 16], next: usize) -> Option<usize> {
        match self.entries.get(next) {
            Some(entry) if entry.uuid == *uuid => Some(next),
            _ => self.entries.binary_search_by(|entry| entry.uuid.cmp(uuid)).ok(),
        }
    }

    /// What an entry took.
    pub fn lines(&self, entry: &Entry) -> &Lines {
        &self.lines[entry.lines as usize]
    }

    /// Whether the order's units were off the shelf when the shelf was read.
    pub fn held_then(&self, entry: &Entry) -> bool {
        held_then(&self.image, [entry.epoch, entry.seq], entry.released, entry.updated)
    }

    /// Units that were off the shelf when it was read, by SKU.
    pub fn held(&self) -> BTreeMap<SkuId, i64> {
        let mut times = vec![0_i64; self.lines.len()];
        for entry in self.entries.iter().filter(|entry| self.held_then(entry)) {
            times[entry.lines as usize] += 1;
        }
        let mut held = BTreeMap::new();
        for (lines, times) in self.lines.iter().zip(times).filter(|(_, times)| *times > 0) {
            for (sku, n) in lines.iter() {
                *held.entry(sku.clone()).or_default() += i64::from(n) * times;
            }
        }
        held
    }

    /// Whether something happened after the shelf was read: times of another day are nobody's business.
    pub fn meanwhile(&self, at: Millis, until: Millis) -> bool {
        at >= self.image.at && at <= until
    }

    /// Finds out who is behind the marks that differ. A buyer whose orders changed while they were read is
    /// looked at again next time.
    pub async fn name(
        &mut self,
        redis: &Redis,
        hashes: &RandomState,
        mut busy: AHashSet<u64>,
        until: Millis,
    ) -> Result<(), Fault> {
        let differing: AHashSet<u64> = self.differing.iter().copied().collect();
        let changed = |entry: &&Entry| {
            differing.contains(&entry.user)
                && [entry.updated, entry.accepted].iter().any(|at| self.meanwhile(*at, until))
        };
        busy.extend(self.entries.iter().filter(changed).map(|entry| entry.user));
        let mut wrong: Vec<u64> = differing.difference(&busy).copied().collect();
        self.wrong_count = wrong.len();
        if wrong.is_empty() {
            return Ok(());
        }
        wrong.sort_unstable();
        wrong.truncate(NAMED);
        let mut due: AHashMap<UserId, Mark> = AHashMap::new();
        let mut scan = Scan::of(redis, &self.segment, Wanted::All);
        while let Some(page) = scan.next().await? {
            for field in page {
                let (user, lines) = match field {
                    Field::Order(_, record) => (record.user, (!record.released).then_some(record.lines)),
                    Field::Mark(user, _) => (user, None),
                    Field::Torn(_) => continue,
                };
                if wrong.binary_search(&hashes.hash_one(&user)).is_ok() {
                    let mark = due.entry(user).or_default();
                    lines.iter().for_each(|lines| mark.add(lines));
                }
            }
        }
        self.wrong = due.into_iter().collect();
        Ok(())
    }

    /// The name of an order of this segment.
    pub fn order(&self, sale: u32, uuid: &[u8; 16]) -> OrderId {
        OrderId { uuid: *uuid, sale, segment: self.segment.index }
    }
}

impl Reading<'_> {
    fn take(&mut self, field: Field) {
        match field {
            Field::Order(uuid, record) => self.order(uuid, record),
            Field::Mark(user, mark) => {
                for (sku, n) in over(&mark, self.limits) {
                    self.seen.greedy.push(|| format!("{user} {sku}={n}"));
                }
                let units = units(self.hashes, mark.iter());
                self.marks.push((self.hashes.hash_one(&user), units));
            }
            Field::Torn(field) => self.seen.torn.push(|| field),
        }
    }

    fn order(&mut self, uuid: [u8; 16], record: Record) {
        let seen = &mut self.seen;
        let lines = *self.known.entry(record.lines).or_insert_with_key(|lines| {
            seen.lines.push(lines.clone());
            u32::try_from(seen.lines.len() - 1).unwrap_or(u32::MAX)
        });
        seen.entries.push(Entry {
            uuid,
            epoch: record.epoch,
            seq: record.seq,
            accepted: record.accepted,
            updated: record.updated,
            user: self.hashes.hash_one(&record.user),
            lines,
            state: record.state,
            released: record.released,
            refund: record.refund,
        });
    }

    /// In order, each once; and marks compared with what orders hold.
    fn done(self) -> Seen {
        let Self { mut seen, hashes, mut marks, .. } = self;
        seen.entries.sort_unstable_by_key(|entry| entry.uuid);
        seen.entries.dedup_by(|next, kept| next.uuid == kept.uuid);
        let of_lines: Vec<u64> = seen
            .lines
            .iter()
            .map(|lines| units(hashes, lines.iter().map(|(sku, n)| (sku, u64::from(n)))))
            .collect();
        let holding = seen.entries.iter().filter(|entry| !entry.released);
        let due = summed(holding.map(|entry| (entry.user, of_lines[entry.lines as usize])).collect());
        marks.sort_unstable();
        marks.dedup_by_key(|mark| mark.0);
        seen.marks = marks.len();
        compare(&due, &marks, &mut seen);
        seen
    }
}

/// What each buyer has in all.
fn summed(mut holdings: Vec<Holding>) -> Vec<Holding> {
    holdings.sort_unstable();
    holdings.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 = kept.1.wrapping_add(next.1);
        }
        same
    });
    holdings
}

/// Goes through both, which are in the order of buyers.
fn compare(due: &[Holding], marks: &[Holding], seen: &mut Seen) {
    let (mut due, mut marks) = (due.iter().peekable(), marks.iter().peekable());
    loop {
        let user = match (due.peek(), marks.peek()) {
            (Some(one), Some(other)) => one.0.min(other.0),
            (Some(one), None) | (None, Some(one)) => one.0,
            (None, None) => return,
        };
        let held = due.next_if(|holding| holding.0 == user).map_or(0, |holding| holding.1);
        let marked = marks.next_if(|holding| holding.0 == user).map_or(0, |holding| holding.1);
        seen.holders += 1;
        if held != marked {
            seen.differing.push(user);
        }
    }
}

/// Units of SKUs as one number: two that are equal are of the same units.
fn units<'a>(hashes: &RandomState, units: impl Iterator<Item = (&'a SkuId, u64)>) -> u64 {
    units.fold(0, |sum, (sku, n)| sum.wrapping_add(hashes.hash_one(sku).wrapping_mul(n)))
}

/// SKUs of which a buyer has more than he ever was allowed, and how many.
pub fn over<'a>(
    mark: &'a Mark,
    limits: &'a BTreeMap<SkuId, u64>,
) -> impl Iterator<Item = (&'a SkuId, u64)> + 'a {
    mark.iter().filter(|(sku, n)| limits.get(*sku).is_none_or(|most| n > most))
}
