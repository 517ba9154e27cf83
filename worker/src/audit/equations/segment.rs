//! Each segment in Redis against itself.

use std::collections::BTreeSet;

use sluice_shared::ids::SkuId;

use super::{Names, Sheet, count, signed};
use crate::audit::gather::Gathered;
use crate::audit::rows::OfSegment;
use crate::audit::segment::{Seen, over};

pub(super) fn judge(all: &Gathered) -> Sheet {
    let mut sheet = Sheet::default();
    for (seen, rows) in all.segments.iter().zip(&all.rows.segments) {
        segment(seen, rows, all, &mut sheet);
    }
    sheet
}

fn segment(seen: &Seen, rows: &OfSegment, all: &Gathered, sheet: &mut Sheet) {
    let (name, image) = (seen.segment.name(), &seen.image);
    let mut torn = seen.torn.clone();
    if image.head.fence.is_none() {
        torn.push(|| "meta".to_owned());
    }
    if image.keys() > 0 && image.head.stock.is_empty() {
        torn.push(|| "stock".to_owned());
    }
    if image.head.seq > 0 && !image.has_journal() {
        torn.push(|| "journal".to_owned());
    }
    sheet.each(("R0", "every field can be read"), &name, seen.entries.len() + seen.marks + 2, torn);
    let title = ("R4", "no key of the sale runs out by itself");
    sheet.each(title, &name, image.keys(), image.mortal.iter().cloned().collect());
    units(seen, all, sheet);
    journal(seen, sheet);
    sequence(seen, rows, sheet);
    marks(seen, all, sheet);
}

fn units(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let (head, held) = (&seen.image.head, seen.held());
    let skus: BTreeSet<&SkuId> =
        all.offers.iter().map(|offer| &offer.sku).chain(head.stock.keys()).chain(held.keys()).collect();
    for sku in skus {
        let scope = format!("{} {sku}", seen.segment.name());
        let (left, mut wrong) = match head.stock.get(sku) {
            Some(Some(left)) if *left >= 0 => (*left, Names::default()),
            Some(Some(left)) => (*left, named(format!("{sku} has fewer than no units left"))),
            _ => (0, named(format!("{sku} has no number of units left"))),
        };
        if !head.init.contains_key(sku) {
            wrong.push(|| format!("{sku} was never put on this shelf"));
        }
        let held = held.get(sku).copied().unwrap_or(0);
        let init = head.init.get(sku).map_or(0, |n| signed(*n));
        let title = ("R1", "units left + units of orders that hold them = units put on the shelf");
        sheet.equal(title, scope, left + held, init, wrong);
    }
}

fn named(what: String) -> Names {
    std::iter::once(what).collect()
}

/// Every entry names an order of the map, with its place, once, and none is ahead of the sequence.
fn journal(seen: &Seen, sheet: &mut Sheet) {
    let head = &seen.image.head;
    let (mut places, mut wrong) = (BTreeSet::new(), Names::default());
    for entry in &seen.journal {
        let place = (entry.epoch, entry.seq);
        let order = seen.find(&entry.order, 0).map(|at| &seen.entries[at]);
        let fits = order.is_some_and(|order| (order.epoch, order.seq) == place);
        if !fits || entry.seq > head.seq || entry.epoch > head.epoch || !places.insert(place) {
            wrong.push(|| format!("{}-{} {}", entry.epoch, entry.seq, hex::encode(entry.order)));
        }
    }
    let title = ("R2", "every journal entry is an order of the map, within the sequence");
    sheet.each(title, seen.segment.name(), seen.journal.len(), wrong);
}

/// The present epoch's sequence has no gap and no double.
fn sequence(seen: &Seen, rows: &OfSegment, sheet: &mut Sheet) {
    let head = &seen.image.head;
    let earlier = seen.entries.iter().filter(|entry| entry.epoch < head.epoch).map(|entry| entry.seq);
    let before = earlier.max().unwrap_or(0).max(rows.before);
    let present = seen.entries.iter().filter(|entry| entry.epoch == head.epoch);
    let mut places: Vec<u64> =
        present.map(|entry| entry.seq).filter(|seq| (1..=head.seq).contains(seq)).collect();
    places.sort_unstable();
    let (mut missing, mut doubles, mut expected) =
        (Names::default(), Names::default(), before.saturating_add(1));
    let mut gap = |from: u64, to: u64| {
        let first = (from..to).take(1_000);
        let unnamed = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX).saturating_sub(1_000);
        first.for_each(|seq| missing.push(|| format!("{}-{seq} is missing", head.epoch)));
        missing.nameless(unnamed);
    };
    let mut distinct = 0;
    for same in places.chunk_by(|one, other| one == other) {
        let (seq, times) = (same[0], same.len());
        distinct += 1;
        if times > 1 {
            doubles.push(|| format!("{}-{seq} is there {times} times", head.epoch));
        }
        if seq >= expected {
            gap(expected, seq);
            expected = seq.saturating_add(1);
        }
    }
    gap(expected, head.seq.saturating_add(1));
    missing.join(&doubles);
    let title = ("R2s", "the sequence of this epoch has no gap and no double");
    let wanted = signed(head.seq - before.min(head.seq));
    sheet.equal(title, seen.segment.name(), count(distinct), wanted, missing);
}

fn marks(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let mut wrong: Names = seen.wrong.iter().map(|(user, _)| user.to_string()).collect();
    wrong.nameless(seen.wrong_count.saturating_sub(wrong.count()));
    let title = ("R3", "every buyer's mark is the sum of his orders");
    sheet.each(title, seen.segment.name(), seen.holders, wrong);
    // A mark that is right says what its buyer's orders hold; of the others these are counted.
    let mut greedy = seen.greedy.clone();
    for (user, due) in &seen.wrong {
        for (sku, n) in over(due, &all.limits) {
            let name = format!("{user} {sku}={n}");
            if !greedy.has(&name) {
                greedy.push(|| name);
            }
        }
    }
    let title = ("R3l", "no buyer holds more than he may");
    sheet.each(title, seen.segment.name(), seen.holders, greedy);
}
