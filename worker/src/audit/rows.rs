//! The orders' rows, page by page, each with its ledger lines, its payments and its record: everything that is
//! judged of an order by itself, and the sums of all.

mod shelved;

use std::collections::{BTreeMap, HashSet};

use ahash::{AHashMap, RandomState};
use sluice_shared::ids::{OrderId, SkuId, UserId};
use sluice_shared::record::OrderState;

use super::chain::Moves;
use super::names::Names;
use super::segment::Seen;
use crate::store::books::{MoveFact, OfferFact, OrderFact, PaymentFact, SaleFact};

pub use shelved::{Followed, OfSegment, SKEW_MS};

/// An unpaid order may be overdue by so much: the timeout role looks every second.
const OVERDUE_MS: i64 = 60_000;

/// Some rows, and what else the books have of them.
#[derive(Debug, Default)]
pub struct Page {
    /// The rows, in the order of their ids.
    pub orders: Vec<(OrderId, OrderFact)>,
    /// Their ledger lines, in the order of the lines.
    pub moves: Vec<MoveFact>,
    /// Their payments.
    pub payments: Vec<PaymentFact>,
}

/// What does not change from row to row.
pub struct About<'a> {
    /// The sale.
    pub sale: &'a SaleFact,
    /// What it offers.
    pub offers: &'a [OfferFact],
    /// The most units a user was ever allowed.
    pub limits: &'a BTreeMap<SkuId, u64>,
    /// Its segments in Redis.
    pub segments: &'a [Seen],
    /// Orders whose release has not left the outbox.
    pub unsent_releases: &'a HashSet<OrderId>,
    /// Orders of which a change has not.
    pub unsent_changes: &'a HashSet<OrderId>,
    /// Names buyers.
    pub hashes: &'a RandomState,
}

/// What the rows say of a SKU.
#[derive(Debug, Default)]
pub struct OfSku {
    /// Orders that are about it.
    pub orders: usize,
    /// Units of live ones.
    pub taken: i64,
    /// Units in unpaid orders, or on their way back to the shelf.
    pub held: i64,
    /// Units in paid ones.
    pub sold: i64,
    /// Orders that were not taken exactly once, and first.
    pub takes: Names,
    /// Those that were not given back exactly when they are dead.
    pub releases: Names,
    /// Those that were not sold, or refunded, exactly when they say so.
    pub sales: Names,
}

/// What the rows come to.
#[derive(Debug, Default)]
pub struct Rows {
    /// How many there are.
    pub count: usize,
    /// The first of them by name.
    pub names: Names,
    /// By SKU, those of the offers.
    pub skus: BTreeMap<SkuId, OfSku>,
    /// By segment in Redis.
    pub segments: Vec<OfSegment>,
    /// Ledger lines of orders that have a row and are about the SKU.
    pub moves: usize,
    /// Those of other SKUs.
    pub strange_moves: Names,
    /// Payments of orders that have a row.
    pub payments: usize,
    /// Amounts of paid orders.
    pub owed: i64,
    /// Orders whose payments do not fit.
    pub unpaid: Names,
    /// Orders that do not cost what their units cost.
    pub prices: Names,
    /// Orders of an epoch that has not begun.
    pub early: Names,
    /// Unpaid orders.
    pub waiting: usize,
    /// Those that do not end in time.
    pub late: Names,
    /// Units that live orders give to each buyer, by keyed hash.
    holdings: AHashMap<u64, u64>,
    /// Buyers and SKUs of which they have more than they may.
    pub greedy: BTreeMap<(UserId, SkuId), u64>,
}

/// Buyers with too much that are kept by name.
const GREEDY: usize = 10_000;

impl Rows {
    /// None yet.
    pub fn new(about: &About<'_>) -> Self {
        Self {
            skus: about.offers.iter().map(|offer| (offer.sku.clone(), OfSku::default())).collect(),
            segments: about.segments.iter().map(OfSegment::new).collect(),
            ..Self::default()
        }
    }

    /// Takes a page in.
    pub fn take(&mut self, about: &About<'_>, page: &Page) {
        let moves = self.moves(page);
        let mut payments: AHashMap<OrderId, Vec<&PaymentFact>> = AHashMap::new();
        for payment in &page.payments {
            self.payments += usize::from(payment.order.sale == about.sale.number);
            payments.entry(payment.order).or_default().push(payment);
        }
        for (order, row) in &page.orders {
            self.count += 1;
            self.names.push(|| order.to_string());
            self.order(about, order, row);
            self.paid(order, row, payments.get(order).map_or(&[][..], Vec::as_slice));
            let mut is_newer = false;
            let mut on_its_way_back = false;
            if let Some(at) = about.segments.iter().position(|seen| seen.segment.index == order.segment) {
                let (seen, of) = (&about.segments[at], &mut self.segments[at]);
                let entry = of.find(seen, &order.uuid);
                of.take(about, seen, entry.as_ref(), order, row);
                is_newer = shelved::is_newer(seen, row, about.sale.now);
                on_its_way_back = entry.is_some_and(|entry| seen.held_then(&entry));
            }
            for (sku, n) in row.lines.iter() {
                let Some(of) = self.skus.get_mut(sku) else { continue };
                of.moved(order, row, u64::from(n), moves.get(&(*order, sku)).copied().unwrap_or_default());
                if !is_newer {
                    of.stand(row, i64::from(n), on_its_way_back);
                }
            }
        }
    }

    /// What the ledger says of each order and SKU.
    fn moves<'a>(&mut self, page: &'a Page) -> AHashMap<(OrderId, &'a SkuId), Moves> {
        let rows: AHashMap<OrderId, &OrderFact> =
            page.orders.iter().map(|(order, row)| (*order, row)).collect();
        let mut moves: AHashMap<(OrderId, &SkuId), Moves> = AHashMap::with_capacity(page.moves.len());
        for line in &page.moves {
            let row = rows.get(&line.order);
            if row.is_none_or(|row| row.lines.iter().all(|(sku, _)| *sku != line.sku)) {
                self.strange_moves.push(|| line.order.to_string());
                continue;
            }
            self.moves += 1;
            moves.entry((line.order, &line.sku)).or_default().add(&line.kind, line.quantity);
        }
        moves
    }

    fn order(&mut self, about: &About<'_>, order: &OrderId, row: &OrderFact) {
        let name = || order.to_string();
        if cost(row, about.offers) != Some(row.amount) {
            self.prices.push(name);
        }
        let epoch = about.sale.epochs.get(usize::from(order.segment));
        if epoch.is_none_or(|epoch| row.epoch > *epoch) {
            self.early.push(name);
        }
        if row.state == OrderState::PendingPayment {
            self.waiting += 1;
            let longest = i64::try_from(about.sale.pay_within.as_millis()).unwrap_or(i64::MAX);
            let overdue = row.pay_before.0.saturating_add(OVERDUE_MS) < about.sale.now.0;
            // Times are rounded to milliseconds, each by itself.
            let moved = row.pay_before.0.saturating_sub(row.created.0) > longest.saturating_add(1);
            if overdue || moved {
                self.late.push(name);
            }
        }
        if row.live {
            for (sku, n) in row.lines.iter() {
                let held = self.holdings.entry(about.hashes.hash_one((&row.user, sku))).or_default();
                *held += u64::from(n);
                let who = || (row.user.clone(), sku.clone());
                if about.limits.get(sku).is_none_or(|most| *held > *most)
                    && (self.greedy.len() < GREEDY || self.greedy.contains_key(&who()))
                {
                    self.greedy.insert(who(), *held);
                }
            }
        }
    }

    /// A paid order has one payment of its amount, an unpaid one has none, and money that nobody owes is
    /// told as due.
    fn paid(&mut self, order: &OrderId, row: &OrderFact, payments: &[&PaymentFact]) {
        let of = |state: &str| payments.iter().filter(|payment| payment.state == state).count();
        let captured = payments.iter().filter(|payment| payment.state == "captured");
        let amount: i64 = captured.map(|payment| payment.amount).sum();
        let fits = match row.state {
            OrderState::Paid => of("captured") == 1 && amount == row.amount,
            OrderState::Refunded => of("captured") <= 1 && of("captured") + of("refunded") >= 1,
            _ => of("captured") == 0,
        };
        if row.state == OrderState::Paid || row.state == OrderState::Refunded && of("captured") == 1 {
            self.owed += row.amount;
        }
        // A notice of another amount is refused, whatever becomes of its money.
        let same = |payment: &&PaymentFact| (payment.amount, payment.currency) == (row.amount, row.currency);
        let owes = of("surplus") > 0 || row.state == OrderState::Refunded && of("captured") > 0;
        let refund = match (owes, of("refunded")) {
            (true, _) => "due",
            (false, 0) => "-",
            (false, _) => "done",
        };
        if !fits || row.refund.as_str() != refund || !payments.iter().all(same) {
            self.unpaid.push(|| order.to_string());
        }
    }

    /// Buyers to whom live orders give something.
    pub fn holders(&self) -> usize {
        self.holdings.len()
    }
}

impl OfSku {
    /// Each order took its units once, and gave them back once when it is dead.
    fn moved(&mut self, order: &OrderId, row: &OrderFact, units: u64, there: Moves) {
        self.orders += 1;
        let (name, due) = (|| order.to_string(), due(row, units));
        if there.take != due.take || there.early {
            self.takes.push(name);
        }
        if there.release != due.release {
            self.releases.push(name);
        }
        if (there.sold, there.refund) != (due.sold, due.refund) {
            self.sales.push(name);
        }
        if row.live {
            self.taken += i64::try_from(units).unwrap_or(i64::MAX);
        }
    }

    /// Where an order's units are.
    fn stand(&mut self, row: &OrderFact, units: i64, on_its_way_back: bool) {
        let sold = matches!(row.state, OrderState::Paid | OrderState::Refunded);
        match (row.live, sold) {
            (true, true) => self.sold += units,
            (true, false) => self.held += units,
            (false, _) if on_its_way_back => self.held += units,
            (false, _) => {}
        }
    }
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

/// What an order's units cost. The price of what is on sale never changes.
fn cost(row: &OrderFact, offers: &[OfferFact]) -> Option<i64> {
    row.lines.iter().try_fold(0_i64, |sum, (sku, n)| {
        let offer = offers.iter().find(|offer| offer.sku == *sku && offer.currency == row.currency)?;
        offer.price.checked_mul(i64::from(n))?.checked_add(sum)
    })
}
