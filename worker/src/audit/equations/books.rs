//! PostgreSQL against itself: one snapshot.

use ahash::{AHashMap, AHashSet};
use sluice_shared::ids::{OrderId, SkuId, UserId};
use sluice_shared::record::OrderState;

use super::{Sheet, shelf::greedy, signed};
use crate::audit::gather::{Chain, Gathered, Moves};
use crate::store::books::{ChangeFact, OfferFact, OrderFact, PaymentFact};
use crate::warden::mark::Mark;

pub(super) fn judge(all: &Gathered) -> Sheet {
    let (mut sheet, empty) = (Sheet::default(), Chain::default());
    for offer in &all.offers {
        let chain = all.chains.get(&offer.sku).unwrap_or(&empty);
        offers(offer, chain, all, &mut sheet);
        ledger(offer, chain, &mut sheet);
        moves(offer, chain, all, &mut sheet);
    }
    let mut held: AHashMap<UserId, Mark> = AHashMap::new();
    for row in all.orders.values().filter(|row| row.live) {
        held.entry(row.user.clone()).or_default().add(&row.lines);
    }
    sheet.each(("P2", "no user has more than he may"), "", held.len(), greedy(&held, &all.limits));
    strangers(all, &mut sheet);
    prices(all, &mut sheet);
    changes(all, &mut sheet);
    payments(all, &mut sheet);
    epochs(all, &mut sheet);
    deadlines(all, &mut sheet);
    sheet
}

/// An unpaid order may be overdue by so much: the timeout role looks every second.
const OVERDUE_MS: i64 = 60_000;

/// No unpaid order outlives its deadline, and no deadline is later than its sale ever allowed.
fn deadlines(all: &Gathered, sheet: &mut Sheet) {
    let longest = i64::try_from(all.sale.pay_within.as_millis()).unwrap_or(i64::MAX);
    let unpaid = || all.orders.iter().filter(|(_, row)| row.state == OrderState::PendingPayment);
    let late = |row: &OrderFact| row.pay_before.0.saturating_add(OVERDUE_MS) < all.sale.now.0;
    // Times are rounded to milliseconds, each by itself.
    let moved = |row: &OrderFact| row.pay_before.0 - row.created.0 > longest.saturating_add(1);
    let wrong = unpaid().filter(|(_, row)| late(row) || moved(row)).map(|(order, _)| order.to_string());
    let title = ("P6", "every unpaid order ends when its time to pay is over");
    sheet.each(title, "", unpaid().count(), wrong.collect());
}

fn offers(offer: &OfferFact, chain: &Chain, all: &Gathered, sheet: &mut Sheet) {
    let sku = offer.sku.as_str();
    let live = all.orders.values().filter(|row| row.live);
    let taken: i64 = live.map(|row| i64::from(units(row, &offer.sku))).sum();
    let booked = signed(offer.taken);
    sheet.equal(("P1", "units taken = units of live orders"), sku, booked, taken, Vec::new());
    let more = (taken - signed(offer.stock)).max(0);
    let title = ("P1m", "no more units are taken than there are (left: units too many)");
    sheet.equal(title, sku, more, 0, Vec::new());
    let (took, back) = (chain.sum("take"), chain.sum("release"));
    let title = ("P1l", "units taken = taken − released in the ledger");
    sheet.equal(title, sku, booked, took - back, Vec::new());
    let given = chain.sum("preload") + chain.sum("add") - chain.sum("withdraw");
    let title = ("P1s", "stock = preloaded + added − withdrawn in the ledger");
    sheet.equal(title, sku, signed(offer.stock), given, Vec::new());
}

/// The chain of hashes, recomputed.
fn ledger(offer: &OfferFact, chain: &Chain, sheet: &mut Sheet) {
    let mut wrong: Vec<String> =
        chain.broken.iter().map(|line| format!("{} line {line}", offer.sku)).collect();
    if chain.last != offer.line || chain.hash != offer.hash {
        wrong.push(format!("{} ends at line {}, its head is {}", offer.sku, chain.last, offer.line));
    }
    let title = ("H", "every ledger line's hash follows from the line before, up to the head");
    sheet.equal(title, offer.sku.as_str(), chain.lines, chain.sound, wrong);
}

/// What the ledger must say of an order of this many units.
fn due(row: &OrderFact, units: u64) -> Moves {
    let line = |is: bool| if is { (1, units) } else { (0, 0) };
    let paid = matches!(row.state, OrderState::Paid | OrderState::Refunded);
    Moves {
        take: line(true),
        release: line(!row.live),
        sold: line(paid),
        refund: line(row.state == OrderState::Refunded),
        early: false,
    }
}

/// Each order took its units once, and gave them back once when it is dead.
fn moves(offer: &OfferFact, chain: &Chain, all: &Gathered, sheet: &mut Sheet) {
    let (mut takes, mut releases, mut sales, mut orders) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (order, row) in &all.orders {
        let units = u64::from(units(row, &offer.sku));
        if units == 0 {
            continue;
        }
        orders += 1;
        let (there, due) = (chain.moves.get(order).copied().unwrap_or_default(), due(row, units));
        if there.take != due.take || there.early {
            takes.push(order.to_string());
        }
        if there.release != due.release {
            releases.push(order.to_string());
        }
        if (there.sold, there.refund) != (due.sold, due.refund) {
            sales.push(order.to_string());
        }
    }
    let sku = offer.sku.as_str();
    let title = ("P3t", "every order has exactly one take, of its units, before anything else");
    sheet.each(title, sku, orders, takes);
    let title = ("P3r", "every dead order has exactly one release, and no live one has any");
    sheet.each(title, sku, orders, releases);
    let title = ("P3s", "sold once when paid, refunded once when refunded");
    sheet.each(title, sku, orders, sales);
}

/// No ledger line is about an order that has no row, or not this SKU.
fn strangers(all: &Gathered, sheet: &mut Sheet) {
    let (mut wrong, mut lines) = (Vec::new(), 0);
    for (sku, chain) in &all.chains {
        lines += chain.moves.len() + chain.nameless.len();
        let stranger = |order: &&OrderId| all.orders.get(order).is_none_or(|row| units(row, sku) == 0);
        wrong.extend(chain.moves.keys().filter(stranger).map(OrderId::to_string));
        wrong.extend(chain.nameless.iter().cloned());
    }
    sheet.each(("P3o", "every order in the ledger has a row"), "", lines, wrong);
}

fn units(row: &OrderFact, sku: &SkuId) -> u32 {
    row.lines.iter().find(|(other, _)| *other == sku).map_or(0, |(_, n)| n)
}

/// An order costs what its units cost. The price of what is on sale never changes.
fn prices(all: &Gathered, sheet: &mut Sheet) {
    let offers: AHashMap<&SkuId, &OfferFact> = all.offers.iter().map(|offer| (&offer.sku, offer)).collect();
    let fits = |row: &OrderFact| {
        let cost = row.lines.iter().try_fold(0_i64, |sum, (sku, n)| {
            let offer = offers.get(sku).filter(|offer| offer.currency == row.currency)?;
            offer.price.checked_mul(i64::from(n))?.checked_add(sum)
        });
        cost == Some(row.amount)
    };
    let wrong = all.orders.iter().filter(|(_, row)| !fits(row)).map(|(order, _)| order.to_string());
    let title = ("P4a", "every order costs what its units cost");
    sheet.each(title, "", all.orders.len(), wrong.collect());
}

/// What changed the stock is in the ledger, with its units, once it is done; and nothing else is.
fn changes(all: &Gathered, sheet: &mut Sheet) {
    let booked: AHashMap<(&SkuId, &str), i64> = all
        .chains
        .iter()
        .flat_map(|(sku, chain)| chain.changes.iter().map(move |(key, n)| ((sku, key.as_str()), *n)))
        .collect();
    let fits = |change: &ChangeFact| match booked.get(&(&change.sku, change.key.as_str())) {
        Some(units) => *units == change.delta && change.state != "refused",
        None => change.state != "done",
    };
    let mut wrong: Vec<String> =
        all.stock_changes.iter().filter(|change| !fits(change)).map(|change| change.key.clone()).collect();
    let asked: AHashSet<(&SkuId, &str)> =
        all.stock_changes.iter().map(|change| (&change.sku, change.key.as_str())).collect();
    let strangers = booked.keys().filter(|change| !asked.contains(*change));
    wrong.extend(strangers.map(|(sku, key)| format!("{sku} {key}")));
    let title = ("P1c", "every stock change that is done is in the ledger, with its units, and no other is");
    sheet.each(title, "", all.stock_changes.len(), wrong);
}

/// A paid order has one payment of its amount, an unpaid one has none, and money that nobody owes is
/// told as due. Nobody pays an order that does not exist.
fn payments(all: &Gathered, sheet: &mut Sheet) {
    let none = Vec::new();
    let (mut captured, mut owed, mut wrong) = (0, 0, Vec::new());
    for (order, row) in &all.orders {
        let payments: &Vec<PaymentFact> = all.payments.get(order).unwrap_or(&none);
        let of = |state: &str| payments.iter().filter(|payment| payment.state == state).count();
        let amount: i64 =
            payments.iter().filter(|payment| payment.state == "captured").map(|p| p.amount).sum();
        captured += amount;
        let fits = match row.state {
            OrderState::Paid => of("captured") == 1 && amount == row.amount,
            OrderState::Refunded => of("captured") <= 1 && of("captured") + of("refunded") >= 1,
            _ => of("captured") == 0,
        };
        if row.state == OrderState::Paid || row.state == OrderState::Refunded && of("captured") == 1 {
            owed += row.amount;
        }
        // A notice of another amount is refused, whatever becomes of its money.
        let same = |payment: &PaymentFact| (payment.amount, payment.currency) == (row.amount, row.currency);
        let owes = of("surplus") > 0 || row.state == OrderState::Refunded && of("captured") > 0;
        let refund = match (owes, of("refunded")) {
            (true, _) => "due",
            (false, 0) => "-",
            (false, _) => "done",
        };
        if !fits || row.refund.as_str() != refund || !payments.iter().all(same) {
            wrong.push(order.to_string());
        }
    }
    for (order, payments) in all.payments.iter().filter(|(order, _)| !all.orders.contains_key(order)) {
        captured += payments.iter().filter(|p| p.state == "captured").map(|p| p.amount).sum::<i64>();
        wrong.push(order.to_string());
    }
    let title = ("P4", "money captured = amounts of paid orders, one payment each");
    sheet.equal(title, "", captured, owed, wrong);
}

/// No row is of an epoch that has not begun.
fn epochs(all: &Gathered, sheet: &mut Sheet) {
    let early = |(order, row): &(&OrderId, &OrderFact)| {
        let epoch = all.sale.epochs.get(usize::from(order.segment));
        epoch.is_none_or(|epoch| row.epoch > *epoch)
    };
    let wrong: Vec<String> = all.orders.iter().filter(early).map(|(order, _)| order.to_string()).collect();
    sheet.each(("P5", "no order is of an epoch that has not begun"), "", all.orders.len(), wrong);
}
