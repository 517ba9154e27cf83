//! PostgreSQL against itself: one snapshot.

use ahash::{AHashMap, AHashSet};
use sluice_shared::ids::SkuId;

use super::{Names, Sheet, signed};
use crate::audit::chain::Chain;
use crate::audit::gather::Gathered;
use crate::audit::rows::OfSku;
use crate::store::books::{ChangeFact, OfferFact};

pub(super) fn judge(all: &Gathered) -> Sheet {
    let (mut sheet, no_lines, no_orders) = (Sheet::default(), Chain::default(), OfSku::default());
    for offer in &all.offers {
        let chain = all.chains.get(&offer.sku).unwrap_or(&no_lines);
        let orders = all.rows.skus.get(&offer.sku).unwrap_or(&no_orders);
        offers(offer, chain, orders, &mut sheet);
        ledger(offer, chain, &mut sheet);
        moves(offer, orders, &mut sheet);
    }
    let rows = &all.rows;
    let greedy = rows.greedy.iter().map(|((user, sku), n)| format!("{user} {sku}={n}")).collect();
    sheet.each(("P2", "no user has more than he may"), "", rows.holders(), greedy);
    let lines: usize = all.chains.values().map(|chain| chain.ordered + chain.nameless.count()).sum();
    sheet.each(("P3o", "every order in the ledger has a row"), "", lines, all.strangers.clone());
    sheet.each(("P4a", "every order costs what its units cost"), "", rows.count, rows.prices.clone());
    changes(all, &mut sheet);
    payments(all, &mut sheet);
    let title = ("P5", "no order is of an epoch that has not begun");
    sheet.each(title, "", rows.count, rows.early.clone());
    let title = ("P6", "every unpaid order ends when its time to pay is over");
    sheet.each(title, "", rows.waiting, rows.late.clone());
    sheet
}

fn offers(offer: &OfferFact, chain: &Chain, orders: &OfSku, sheet: &mut Sheet) {
    let sku = offer.sku.as_str();
    let (taken, booked) = (orders.taken, signed(offer.taken));
    sheet.equal(("P1", "units taken = units of live orders"), sku, booked, taken, Names::default());
    let more = (taken - signed(offer.stock)).max(0);
    let title = ("P1m", "no more units are taken than there are (left: units too many)");
    sheet.equal(title, sku, more, 0, Names::default());
    let (took, back) = (chain.sum("take"), chain.sum("release"));
    let title = ("P1l", "units taken = taken − released in the ledger");
    sheet.equal(title, sku, booked, took - back, Names::default());
    let given = chain.sum("preload") + chain.sum("add") - chain.sum("withdraw");
    let title = ("P1s", "stock = preloaded + added − withdrawn in the ledger");
    sheet.equal(title, sku, signed(offer.stock), given, Names::default());
}

/// The chain of hashes, recomputed.
fn ledger(offer: &OfferFact, chain: &Chain, sheet: &mut Sheet) {
    let mut wrong: Names = chain.broken.iter().map(|line| format!("{} line {line}", offer.sku)).collect();
    if chain.last != offer.line || chain.hash != offer.hash {
        wrong.push(|| format!("{} ends at line {}, its head is {}", offer.sku, chain.last, offer.line));
    }
    let title = ("H", "every ledger line's hash follows from the line before, up to the head");
    sheet.equal(title, offer.sku.as_str(), chain.lines, chain.sound, wrong);
}

/// Each order took its units once, and gave them back once when it is dead.
fn moves(offer: &OfferFact, orders: &OfSku, sheet: &mut Sheet) {
    let sku = offer.sku.as_str();
    let title = ("P3t", "every order has exactly one take, of its units, before anything else");
    sheet.each(title, sku, orders.orders, orders.takes.clone());
    let title = ("P3r", "every dead order has exactly one release, and no live one has any");
    sheet.each(title, sku, orders.orders, orders.releases.clone());
    let title = ("P3s", "sold once when paid, refunded once when refunded");
    sheet.each(title, sku, orders.orders, orders.sales.clone());
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
    let wrong = all.stock_changes.iter().filter(|change| !fits(change)).map(|change| change.key.clone());
    let asked: AHashSet<(&SkuId, &str)> =
        all.stock_changes.iter().map(|change| (&change.sku, change.key.as_str())).collect();
    let strangers = booked.keys().filter(|change| !asked.contains(*change));
    let strangers = strangers.map(|(sku, key)| format!("{sku} {key}"));
    let title = ("P1c", "every stock change that is done is in the ledger, with its units, and no other is");
    sheet.each(title, "", all.stock_changes.len(), wrong.chain(strangers).collect());
}

/// What was captured is what paid orders cost, and nobody pays an order that does not exist.
fn payments(all: &Gathered, sheet: &mut Sheet) {
    let mut wrong = all.rows.unpaid.clone();
    wrong.join(&all.paying_strangers);
    let title = ("P4", "money captured = amounts of paid orders, one payment each");
    sheet.equal(title, "", all.payments.captured, all.rows.owed, wrong);
}
