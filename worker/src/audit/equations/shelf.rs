//! Each segment in Redis against itself.

use std::collections::{BTreeMap, BTreeSet};

use ahash::{AHashMap, AHashSet};
use sluice_shared::clock::Millis;
use sluice_shared::ids::{SkuId, UserId};

use super::across::SKEW_MS;
use super::{Sheet, count, signed};
use crate::audit::gather::{Gathered, Seen};
use crate::warden::image::Entry;
use crate::warden::mark::Mark;

pub(super) fn judge(all: &Gathered) -> Sheet {
    let mut sheet = Sheet::default();
    for seen in &all.shelves {
        segment(seen, all, &mut sheet);
    }
    sheet
}

fn segment(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let (name, image) = (seen.shelf.name(), &seen.image);
    let mut torn = image.torn.clone();
    if image.head.fence.is_none() {
        torn.push("meta".to_owned());
    }
    if image.keys > 0 && image.head.stock.is_empty() {
        torn.push("stock".to_owned());
    }
    if image.head.seq > 0 && !image.has_journal {
        torn.push("journal".to_owned());
    }
    sheet.each(("R0", "every field can be read"), &name, image.orders.len() + image.marks.len() + 2, torn);
    let title = ("R4", "no key of the sale runs out by itself");
    sheet.each(title, &name, image.keys, image.mortal.clone());
    units(seen, all, sheet);
    journal(seen, sheet);
    sequence(seen, all, sheet);
    marks(seen, all, sheet);
}

impl Seen {
    /// Whether the order's units were off the shelf when the shelf was read: the map is read after it.
    pub(super) fn held_then(&self, entry: &Entry) -> bool {
        let later = entry.epoch >= self.image.head.epoch && entry.seq > self.image.head.seq;
        let released_since = entry.released && entry.updated >= self.image.at && entry.seq > 0;
        !later && (!entry.released || released_since)
    }

    /// Units that were off the shelf when it was read, by SKU.
    pub(super) fn held(&self) -> BTreeMap<SkuId, i64> {
        let mut held = BTreeMap::new();
        for entry in self.image.orders.values().filter(|entry| self.held_then(entry)) {
            for (sku, n) in entry.lines.iter() {
                *held.entry(sku.clone()).or_default() += i64::from(n);
            }
        }
        held
    }
}

fn units(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let (head, held) = (&seen.image.head, seen.held());
    let skus: BTreeSet<&SkuId> =
        all.offers.iter().map(|offer| &offer.sku).chain(head.stock.keys()).chain(held.keys()).collect();
    for sku in skus {
        let scope = format!("{} {sku}", seen.shelf.name());
        let (left, mut wrong) = match head.stock.get(sku) {
            Some(Some(left)) if *left >= 0 => (*left, Vec::new()),
            Some(Some(left)) => (*left, vec![format!("{sku} has fewer than no units left")]),
            _ => (0, vec![format!("{sku} has no number of units left")]),
        };
        if !head.init.contains_key(sku) {
            wrong.push(format!("{sku} was never put on this shelf"));
        }
        let held = held.get(sku).copied().unwrap_or(0);
        let init = head.init.get(sku).map_or(0, |n| signed(*n));
        let title = ("R1", "units left + units of orders that hold them = units put on the shelf");
        sheet.equal(title, scope, left + held, init, wrong);
    }
}

/// Every entry names an order of the map, with its place, once, and none is ahead of the sequence.
fn journal(seen: &Seen, sheet: &mut Sheet) {
    let image = &seen.image;
    let mut places = BTreeSet::new();
    let mut wrong = Vec::new();
    for (epoch, seq, order) in &image.journal {
        let name = || format!("{epoch}-{seq} {}", hex::encode(order));
        let fits = image.orders.get(order).is_some_and(|entry| (entry.epoch, entry.seq) == (*epoch, *seq));
        if !fits || *seq > image.head.seq || *epoch > image.head.epoch || !places.insert((*epoch, *seq)) {
            wrong.push(name());
        }
    }
    let title = ("R2", "every journal entry is an order of the map, within the sequence");
    sheet.each(title, seen.shelf.name(), image.journal.len(), wrong);
}

/// The present epoch's sequence has no gap and no double.
fn sequence(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let head = &seen.image.head;
    let rows = all.orders.iter().filter(|(order, _)| order.segment == seen.shelf.segment);
    let before = rows
        .map(|(_, row)| (row.epoch, row.seq))
        .chain(seen.image.orders.values().map(|entry| (entry.epoch, entry.seq)))
        .filter(|(epoch, _)| *epoch < head.epoch)
        .map(|(_, seq)| seq)
        .max()
        .unwrap_or(0);
    let mut places: BTreeMap<u64, u32> = BTreeMap::new();
    for entry in seen.image.orders.values().filter(|entry| entry.epoch == head.epoch && entry.seq > 0) {
        if entry.seq <= head.seq {
            *places.entry(entry.seq).or_default() += 1;
        }
    }
    let missing = (before + 1..=head.seq).filter(|seq| !places.contains_key(seq));
    let mut wrong: Vec<String> =
        missing.take(1_000).map(|seq| format!("{}-{seq} is missing", head.epoch)).collect();
    let doubles = places.iter().filter(|(_, times)| **times > 1);
    wrong.extend(doubles.map(|(seq, times)| format!("{}-{seq} is there {times} times", head.epoch)));
    let title = ("R2s", "the sequence of this epoch has no gap and no double");
    sheet.equal(
        title,
        seen.shelf.name(),
        count(places.len()),
        signed(head.seq - before.min(head.seq)),
        wrong,
    );
}

fn marks(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let image = &seen.image;
    let due = image.held_by_user();
    // A buyer whose orders change while they are read is looked at again next time. His mark may be read
    // after the order was taken, and his order's place before: then only the books know of it.
    // Whoever's orders are of another day is not busy.
    let meanwhile = |at: Millis| at >= image.at && at.0 <= all.sale.now.0 + SKEW_MS;
    let since = all.orders.values().filter(|row| meanwhile(row.accepted)).map(|row| &row.user);
    let busy: AHashSet<&UserId> = image
        .orders
        .values()
        .filter(|entry| meanwhile(entry.updated) || meanwhile(entry.accepted))
        .map(|entry| &entry.user)
        .chain(since)
        .collect();
    let none = Mark::default();
    let differs = |user: &&UserId| {
        due.get(*user).unwrap_or(&none) != image.marks.get(*user).unwrap_or(&none) && !busy.contains(*user)
    };
    let strangers = || image.marks.keys().filter(|user| !due.contains_key(*user));
    let wrong: Vec<String> = due.keys().chain(strangers()).filter(differs).map(UserId::to_string).collect();
    let title = ("R3", "every buyer's mark is the sum of his orders");
    sheet.each(title, seen.shelf.name(), due.len() + strangers().count(), wrong);
    let title = ("R3l", "no buyer holds more than he may");
    sheet.each(title, seen.shelf.name(), due.len(), greedy(&due, &all.limits));
}

/// Buyers who hold more than they ever were allowed.
pub(super) fn greedy(held: &AHashMap<UserId, Mark>, limits: &BTreeMap<SkuId, u64>) -> Vec<String> {
    let mut greedy = Vec::new();
    for (user, mark) in held {
        for (sku, n) in mark.iter() {
            if limits.get(sku).is_none_or(|most| n > *most) {
                greedy.push(format!("{user} {sku}={n}"));
            }
        }
    }
    greedy
}
