//! Redis against PostgreSQL. Redis was read first: a row may be ahead of its record, never behind.

use std::collections::BTreeMap;

use ahash::AHashSet;
use sluice_shared::ids::SkuId;
use sluice_shared::record::OrderState;

use super::{Names, Sheet, signed};
use crate::audit::Units;
use crate::audit::broker::Depths;
use crate::audit::gather::Gathered;
use crate::audit::rows::{Followed, OfSegment};
use crate::audit::segment::{Entry, Seen};
use crate::warden::verify::expected;

/// How long an accepted order may have no row.
const UNWRITTEN_MS: i64 = 5_000;
/// Orders in one message of the outbox.
const A_MESSAGE: usize = 100;

/// Judges; answers where every unit is, and how many entries are under way.
pub(super) fn judge(all: &Gathered, depths: Option<Depths>) -> (Sheet, Vec<Units>, usize) {
    let mut sheet = Sheet::default();
    let mut under_way = all.unsent_releases.len() + all.unsent_changes.len() + all.changes.len();
    let queued = |of: fn(&Depths) -> usize| depths.as_ref().map_or(0, of);
    for (seen, rows) in all.segments.iter().zip(&all.rows.segments) {
        let name = || seen.segment.name();
        under_way += seen.journal.len();
        let title = ("X1", "every live order of the books holds its units in redis");
        sheet.each(title, name(), rows.live, rows.unheld.clone());
        under_way += unwritten(seen, rows, all, depths, &mut sheet);
        let title = ("X4", "every dead order has given its units back, or is about to");
        under_way += followed(title, &rows.released, name(), queued(|depths| depths.releases), &mut sheet);
        let title = ("X6", "redis tells of every order what the books say, or is about to");
        under_way += followed(title, &rows.told, name(), queued(|depths| depths.changes), &mut sheet);
        released(seen, rows, all, &mut sheet);
        let title = ("X7", "redis tells of no order what the books do not say");
        sheet.each(title, name(), rows.known, rows.ahead.clone());
        control(seen, all, &mut sheet);
    }
    if !all.segments.is_empty() {
        stocks(all, &mut sheet);
    }
    let units = units(all, &mut sheet);
    (sheet, units, under_way)
}

/// Entries without a row.
fn without_row<'a>(seen: &'a Seen, rows: &'a OfSegment) -> impl Iterator<Item = &'a Entry> {
    seen.entries.iter().zip(&rows.matched).filter(|(_, matched)| !**matched).map(|(entry, _)| entry)
}

/// Every order that holds units is in the books, or on its way there.
fn unwritten(
    seen: &Seen,
    rows: &OfSegment,
    all: &Gathered,
    depths: Option<Depths>,
    sheet: &mut Sheet,
) -> usize {
    let journal: AHashSet<[u8; 16]> = seen.journal.iter().map(|entry| entry.order).collect();
    let (mut young, mut late, mut wrong) = (0, Names::default(), Names::default());
    for entry in without_row(seen, rows).filter(|entry| !entry.released) {
        let name = || seen.order(all.sale.number, &entry.uuid).to_string();
        // Its message would be fenced, or it has been further than a message can bring it.
        if entry.epoch < seen.epoch || entry.told().state != OrderState::Accepted {
            wrong.push(name);
        } else if journal.contains(&entry.uuid) || (seen.image.at.0 - entry.accepted.0).abs() < UNWRITTEN_MS {
            young += 1;
        } else {
            late.push(name);
        }
    }
    // What is neither in the books nor in the journal can only be in the broker.
    let waiting = depths.map_or(0, |depths| depths.orders);
    let under_way = young + late.count();
    if late.count() > waiting {
        wrong.join(&late);
    }
    let held = seen.entries.iter().filter(|entry| !entry.released).count();
    let title = ("X2", "every order that holds units has a row, or is on its way to one");
    sheet.each(title, seen.segment.name(), held, wrong);
    under_way
}

/// Whether redis has followed the books, or is about to: so many messages that tell it wait in the queue.
fn followed(
    title: (&'static str, &'static str),
    followed: &Followed,
    scope: String,
    queued: usize,
    sheet: &mut Sheet,
) -> usize {
    let may_be_queued = followed.late.count() <= queued * A_MESSAGE;
    let late = if may_be_queued { Names::default() } else { followed.late.clone() };
    sheet.each(title, scope, followed.looked, late);
    followed.young + followed.late.count()
}

/// Nothing is given back that the books do not know as dead.
fn released(seen: &Seen, rows: &OfSegment, all: &Gathered, sheet: &mut Sheet) {
    let mut wrong = rows.given_back.clone();
    for entry in without_row(seen, rows).filter(|entry| entry.released) {
        wrong.push(|| seen.order(all.sale.number, &entry.uuid).to_string());
    }
    let released = seen.entries.iter().filter(|entry| entry.released).count();
    let title = ("X5", "units were given back only for orders that are dead in the books");
    sheet.each(title, seen.segment.name(), released, wrong);
}

/// A segment that has the version of the books has what they say. An older one is about to get it.
fn control(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let Some(control) = &seen.image.head.control else { return };
    let mut wrong = Names::default();
    if control.cfg > all.sale.cfg {
        wrong.push(|| format!("cfg {}, {} in the books", control.cfg, all.sale.cfg));
    }
    if control.cfg == all.sale.cfg {
        let booked = (all.sale.step, all.sale.span);
        if (control.step, control.span) != booked {
            wrong.push(|| format!("{:?}, {booked:?} in the books", (control.step, control.span)));
        }
        for offer in &all.offers {
            let limit = seen.image.head.limits.get(&offer.sku);
            if limit != Some(&offer.per_user) {
                wrong.push(|| format!("limit of {}: {limit:?}, {} in the books", offer.sku, offer.per_user));
            }
        }
    }
    let title = ("X8", "a segment sells when and how the books say");
    sheet.each(title, seen.segment.name(), 1 + all.offers.len(), wrong);
}

/// What was put on all shelves is what the books put on sale.
fn stocks(all: &Gathered, sheet: &mut Sheet) {
    let mut head = crate::warden::image::Head::default();
    let mut shelved: BTreeMap<&SkuId, i64> = BTreeMap::new();
    for seen in &all.segments {
        head.changes.extend(seen.image.head.changes.iter().cloned());
        for (sku, units) in &seen.image.head.init {
            *shelved.entry(sku).or_default() += signed(*units);
        }
    }
    let booked = all.offers.iter().map(|offer| (offer.sku.clone(), offer.stock)).collect();
    for (sku, booked) in expected(booked, &all.changes, &head) {
        let shelved = shelved.get(&sku).copied().unwrap_or(0);
        let title = ("X3", "units put on the shelves = stock in the books");
        sheet.equal(title, sku.as_str(), shelved, signed(booked), Names::default());
    }
}

/// Where every unit is.
fn units(all: &Gathered, sheet: &mut Sheet) -> Vec<Units> {
    let units: Vec<Units> =
        all.offers.iter().map(|offer| of_sku(all, &offer.sku, signed(offer.stock))).collect();
    for of_sku in &units {
        let left = of_sku.preloaded + of_sku.added - of_sku.withdrawn;
        let title = ("C", "preloaded + added − withdrawn = left + journalled + in broker + held + sold");
        sheet.equal(title, of_sku.sku.as_str(), left, left - of_sku.difference, Names::default());
    }
    units
}

fn of_sku(all: &Gathered, sku: &SkuId, stock: i64) -> Units {
    let sum = |kind: &str| all.chains.get(sku).map_or(0, |chain| chain.sum(kind));
    let mut units = Units {
        sku: sku.to_string(),
        preloaded: sum("preload"),
        added: sum("add"),
        withdrawn: sum("withdraw"),
        left: 0,
        journalled: 0,
        in_broker: 0,
        held: 0,
        sold: 0,
        difference: 0,
    };
    let mut half_done = 0;
    for (seen, rows) in all.segments.iter().zip(&all.rows.segments) {
        units.left += seen.image.head.stock.get(sku).copied().flatten().unwrap_or(0);
        on_their_way(seen, rows, sku, &mut units);
        for (key, _, delta, booked) in all.changes.iter().filter(|change| change.1 == *sku) {
            let shelved = seen.image.head.changes.contains(key);
            half_done += if shelved && !booked { *delta } else { 0 };
            half_done -= if *booked && !shelved { *delta } else { 0 };
        }
    }
    if let Some(of) = all.rows.skus.get(sku) {
        (units.held, units.sold) = (of.held, of.sold);
    }
    if all.segments.is_empty() {
        units.left = stock - units.held - units.sold;
    }
    let right = units.left + units.journalled + units.in_broker + units.held + units.sold;
    units.difference = units.preloaded + units.added - units.withdrawn + half_done - right;
    units
}

/// Units of orders that have no row yet.
fn on_their_way(seen: &Seen, rows: &OfSegment, sku: &SkuId, units: &mut Units) {
    let journal: AHashSet<[u8; 16]> = seen.journal.iter().map(|entry| entry.order).collect();
    for entry in without_row(seen, rows).filter(|entry| seen.held_then(entry)) {
        let n = seen.lines(entry).iter().find(|(other, _)| *other == sku).map_or(0, |(_, n)| i64::from(n));
        if journal.contains(&entry.uuid) {
            units.journalled += n;
        } else {
            units.in_broker += n;
        }
    }
}
