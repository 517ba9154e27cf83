//! Redis against PostgreSQL. Redis was read first: a row may be ahead of its record, never behind.

use std::collections::{BTreeMap, HashSet};

use ahash::AHashSet;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SkuId};
use sluice_shared::record::OrderState;

use super::{Sheet, signed};
use crate::audit::Units;
use crate::audit::broker::Depths;
use crate::audit::gather::{Gathered, Seen};
use crate::store::books::OrderFact;
use crate::warden::behind::{Behind, ahead, behind};
use crate::warden::image::Entry;
use crate::warden::verify::expected;

/// An accepted order may be without a row so long.
const UNWRITTEN_MS: i64 = 5_000;
/// Redis may not have followed so long in what the books say of an order.
const UNTOLD_MS: i64 = 10_000;
/// Orders in one message of the outbox.
const A_MESSAGE: usize = 100;

/// Judges; answers where every unit is, and how many entries are under way.
pub(super) fn judge(all: &Gathered, depths: Option<Depths>) -> (Sheet, Vec<Units>, usize) {
    let mut sheet = Sheet::default();
    let mut under_way = all.unsent_releases.len() + all.unsent_changes.len() + all.changes.len();
    for seen in &all.shelves {
        under_way += seen.image.journal.len();
        rows(seen, all, &mut sheet);
        under_way += unwritten(seen, all, depths, &mut sheet);
        under_way += unreleased(seen, all, depths, &mut sheet);
        under_way += untold(seen, all, depths, &mut sheet);
        released(seen, all, &mut sheet);
        told(seen, all, &mut sheet);
        control(seen, all, &mut sheet);
    }
    if !all.shelves.is_empty() {
        stocks(all, &mut sheet);
    }
    let units = units(all, &mut sheet);
    (sheet, units, under_way)
}

fn order(seen: &Seen, all: &Gathered, uuid: &[u8; 16]) -> OrderId {
    OrderId { uuid: *uuid, sale: all.sale.number, segment: seen.shelf.segment }
}

/// The clocks of Redis and PostgreSQL may differ by so much.
pub(super) const SKEW_MS: i64 = 5_000;

/// Whether a row was written for units that were taken after the shelf was read. One that was written
/// before, and is ahead of Redis all the same, is what Redis has lost.
fn newer(seen: &Seen, row: &OrderFact, now: Millis) -> bool {
    let head = &seen.image.head;
    let ahead = (row.epoch, row.seq) > (head.epoch, head.seq);
    let since = row.created.0 + SKEW_MS >= seen.image.at.0 && row.created.0 <= now.0 + SKEW_MS;
    head.fence.is_some() && ahead && since
}

/// Every live row holds its units in Redis, under the same name.
fn rows(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let (mut live, mut wrong) = (0, Vec::new());
    for (order, row) in all.orders.iter().filter(|(order, _)| order.segment == seen.shelf.segment) {
        if newer(seen, row, all.sale.now) {
            continue;
        }
        let entry = seen.image.orders.get(&order.uuid);
        // A tombstone has no place: nothing was ever taken under it.
        let place = |entry: &Entry| entry.seq == 0 || (entry.epoch, entry.seq) == (row.epoch, row.seq);
        let same =
            entry.is_some_and(|entry| entry.lines == row.lines && entry.user == row.user && place(entry));
        live += usize::from(row.live);
        let held = entry.is_some_and(|entry| !entry.released);
        if !same || row.live && !held {
            wrong.push(order.to_string());
        }
    }
    let title = ("X1", "every live order of the books holds its units in redis");
    sheet.each(title, seen.shelf.name(), live, wrong);
}

/// Every order that holds units is in the books, or on its way there.
fn unwritten(seen: &Seen, all: &Gathered, depths: Option<Depths>, sheet: &mut Sheet) -> usize {
    let journal: AHashSet<[u8; 16]> = seen.image.journal.iter().map(|(_, _, order)| *order).collect();
    let (mut held, mut young, mut late, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for (uuid, entry) in seen.image.orders.iter().filter(|(_, entry)| !entry.released) {
        held += 1;
        let order = order(seen, all, uuid);
        if all.orders.contains_key(&order) {
            continue;
        }
        // Its message would be fenced, or it has been further than a message can bring it.
        if entry.epoch < seen.epoch || entry.state != OrderState::Accepted {
            wrong.push(order.to_string());
        } else if journal.contains(uuid) || (seen.image.at.0 - entry.accepted.0).abs() < UNWRITTEN_MS {
            young += 1;
        } else {
            late.push(order.to_string());
        }
    }
    // What is neither in the books nor in the journal can only be in the broker.
    let waiting = depths.map_or(0, |depths| depths.orders);
    let under_way = young + late.len();
    if late.len() > waiting {
        wrong.append(&mut late);
    }
    let title = ("X2", "every order that holds units has a row, or is on its way to one");
    sheet.each(title, seen.shelf.name(), held, wrong);
    under_way
}

/// What redis has to follow the books in, and the message that tells it to.
struct Telling<'a> {
    title: (&'static str, &'static str),
    /// Orders whose message is still in the outbox.
    unsent: &'a HashSet<OrderId>,
    /// Messages that wait in the queue.
    queued: usize,
}

/// Every dead order has given its units back, or is about to.
fn unreleased(seen: &Seen, all: &Gathered, depths: Option<Depths>, sheet: &mut Sheet) -> usize {
    let telling = Telling {
        title: ("X4", "every dead order has given its units back, or is about to"),
        unsent: &all.unsent_releases,
        queued: depths.map_or(0, |depths| depths.releases),
    };
    let owes = |entry: Option<&Entry>, row: &OrderFact| {
        (!row.live).then(|| entry.is_some_and(|entry| !entry.released))
    };
    followed(seen, all, &telling, owes, sheet)
}

/// What buyers are told of an order is what the books say, or is about to be.
fn untold(seen: &Seen, all: &Gathered, depths: Option<Depths>, sheet: &mut Sheet) -> usize {
    let telling = Telling {
        title: ("X6", "redis tells of every order what the books say, or is about to"),
        unsent: &all.unsent_changes,
        queued: depths.map_or(0, |depths| depths.changes),
    };
    let owes = |entry: Option<&Entry>, row: &OrderFact| {
        entry.map(|entry| behind(entry, row.standing()) == Some(Behind::Change))
    };
    followed(seen, all, &telling, owes, sheet)
}

/// Whether redis has followed the books in each order that this is about, or is about to. `owes` says
/// nothing of an order that it is not about.
fn followed(
    seen: &Seen,
    all: &Gathered,
    telling: &Telling<'_>,
    owes: impl Fn(Option<&Entry>, &OrderFact) -> Option<bool>,
    sheet: &mut Sheet,
) -> usize {
    let (mut looked, mut young, mut late) = (0, 0, Vec::new());
    for (order, row) in all.orders.iter().filter(|(order, _)| order.segment == seen.shelf.segment) {
        let Some(owing) = owes(seen.image.orders.get(&order.uuid), row) else { continue };
        looked += 1;
        if !owing {
            continue;
        }
        if telling.unsent.contains(order) || (all.sale.now.0 - row.updated.0).abs() < UNTOLD_MS {
            young += 1;
        } else {
            late.push(order.to_string());
        }
    }
    let under_way = young + late.len();
    if late.len() <= telling.queued * A_MESSAGE {
        late.clear();
    }
    sheet.each(telling.title, seen.shelf.name(), looked, late);
    under_way
}

/// Nothing is given back that the books do not know as dead.
fn released(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let released: Vec<(&[u8; 16], &Entry)> =
        seen.image.orders.iter().filter(|(_, entry)| entry.released).collect();
    let unproven =
        |(uuid, _): &&(&[u8; 16], &Entry)| all.orders.get(&order(seen, all, uuid)).is_none_or(|row| row.live);
    let wrong =
        released.iter().filter(unproven).map(|(uuid, _)| order(seen, all, uuid).to_string()).collect();
    let title = ("X5", "units were given back only for orders that are dead in the books");
    sheet.each(title, seen.shelf.name(), released.len(), wrong);
}

/// Buyers are told of no order what the books do not say: they say it first.
fn told(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let rows = all.orders.iter().filter(|(order, _)| order.segment == seen.shelf.segment);
    let known: Vec<_> =
        rows.filter_map(|(order, row)| Some((order, row, seen.image.orders.get(&order.uuid)?))).collect();
    let wrong = known.iter().filter(|(_, row, entry)| ahead(entry, row.standing()));
    let wrong = wrong.map(|(order, ..)| order.to_string()).collect();
    let title = ("X7", "redis tells of no order what the books do not say");
    sheet.each(title, seen.shelf.name(), known.len(), wrong);
}

/// A segment that has the version of the books has what they say. An older one is about to get it.
fn control(seen: &Seen, all: &Gathered, sheet: &mut Sheet) {
    let Some(control) = &seen.image.head.control else { return };
    let mut wrong = Vec::new();
    if control.cfg > all.sale.cfg {
        wrong.push(format!("cfg {}, {} in the books", control.cfg, all.sale.cfg));
    }
    if control.cfg == all.sale.cfg {
        let booked = (all.sale.step, all.sale.span);
        if (control.step, control.span) != booked {
            wrong.push(format!("{:?}, {booked:?} in the books", (control.step, control.span)));
        }
        for offer in &all.offers {
            let limit = seen.image.head.limits.get(&offer.sku);
            if limit != Some(&offer.per_user) {
                wrong.push(format!("limit of {}: {limit:?}, {} in the books", offer.sku, offer.per_user));
            }
        }
    }
    let title = ("X8", "a segment sells when and how the books say");
    sheet.each(title, seen.shelf.name(), 1 + all.offers.len(), wrong);
}

/// What was put on all shelves is what the books put on sale.
fn stocks(all: &Gathered, sheet: &mut Sheet) {
    let mut head = crate::warden::image::Head::default();
    let mut shelved: BTreeMap<&SkuId, i64> = BTreeMap::new();
    for seen in &all.shelves {
        head.changes.extend(seen.image.head.changes.iter().cloned());
        for (sku, units) in &seen.image.head.init {
            *shelved.entry(sku).or_default() += signed(*units);
        }
    }
    let booked = all.offers.iter().map(|offer| (offer.sku.clone(), offer.stock)).collect();
    for (sku, booked) in expected(booked, &all.changes, &head) {
        let shelved = shelved.get(&sku).copied().unwrap_or(0);
        let title = ("X3", "units put on the shelves = stock in the books");
        sheet.equal(title, sku.as_str(), shelved, signed(booked), Vec::new());
    }
}

/// Where every unit is.
fn units(all: &Gathered, sheet: &mut Sheet) -> Vec<Units> {
    let units: Vec<Units> =
        all.offers.iter().map(|offer| of_sku(all, &offer.sku, signed(offer.stock))).collect();
    for of_sku in &units {
        let left = of_sku.preloaded + of_sku.added - of_sku.withdrawn;
        let title = ("C", "preloaded + added − withdrawn = left + journalled + in broker + held + sold");
        sheet.equal(title, of_sku.sku.as_str(), left, left - of_sku.difference, Vec::new());
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
    for seen in &all.shelves {
        units.left += seen.image.head.stock.get(sku).copied().flatten().unwrap_or(0);
        on_their_way(seen, all, sku, &mut units);
        for (key, _, delta, booked) in all.changes.iter().filter(|change| change.1 == *sku) {
            let shelved = seen.image.head.changes.contains(key);
            half_done += if shelved && !booked { *delta } else { 0 };
            half_done -= if *booked && !shelved { *delta } else { 0 };
        }
    }
    for (order, row) in &all.orders {
        let n = row.lines.iter().find(|(other, _)| *other == sku).map_or(0, |(_, n)| i64::from(n));
        let seen = all.shelves.iter().find(|seen| seen.shelf.segment == order.segment);
        if seen.is_some_and(|seen| newer(seen, row, all.sale.now)) {
            continue;
        }
        let sold = matches!(row.state, OrderState::Paid | OrderState::Refunded);
        let entry = seen.and_then(|seen| Some((seen, seen.image.orders.get(&order.uuid)?)));
        let on_its_way_back = entry.is_some_and(|(seen, entry)| seen.held_then(entry));
        match (row.live, sold) {
            (true, true) => units.sold += n,
            (true, false) => units.held += n,
            (false, _) if on_its_way_back => units.held += n,
            (false, _) => {}
        }
    }
    if all.shelves.is_empty() {
        units.left = stock - units.held - units.sold;
    }
    let right = units.left + units.journalled + units.in_broker + units.held + units.sold;
    units.difference = units.preloaded + units.added - units.withdrawn + half_done - right;
    units
}

/// Units of orders that have no row yet.
fn on_their_way(seen: &Seen, all: &Gathered, sku: &SkuId, units: &mut Units) {
    let journal: AHashSet<[u8; 16]> = seen.image.journal.iter().map(|(_, _, order)| *order).collect();
    for (uuid, entry) in seen.image.orders.iter().filter(|(_, entry)| seen.held_then(entry)) {
        if all.orders.contains_key(&order(seen, all, uuid)) {
            continue;
        }
        let n = entry.lines.iter().find(|(other, _)| *other == sku).map_or(0, |(_, n)| i64::from(n));
        if journal.contains(uuid) {
            units.journalled += n;
        } else {
            units.in_broker += n;
        }
    }
}
