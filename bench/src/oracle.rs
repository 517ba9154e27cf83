//! Compares what buyers were told with what the books hold.
//!
//! The log says what each request was answered, the back office which orders there are. Both are
//! believed; what cannot both be true is a [`Contradiction`] of one of these rules:
//!
//! - A1: an accepted order has exactly one row, its buyer's, of what was asked for, that has not failed.
//! - A2: an order whose outcome its buyer was not told has at most one row, and whoever asks for it by its
//!   id is soon told what the row tells ([`contradicts`]).
//! - A3: "sold out" is told only when too little is left. Answers do not carry the place in the sequence
//!   at which they were true, so this is judged by time, while no units come back.
//! - A4: all answers to one token name one order; its units are taken once; accepted is never followed by
//!   a refusal.
//! - A5: an answer that refuses has taken nothing, and nothing is taken unasked.
//! - P1, P2, P4, Z4: those equations of the books that the rows alone can show.

use std::collections::{BTreeMap, HashMap, HashSet};

use sluice_shared::ids::OrderId;
use sluice_shared::record::OrderState;

use crate::admin::Row;
use crate::client::outcome::{PURCHASE_LIMIT, SOLD_OUT, TOKEN_SPENT};
use crate::client::{Entry, Kind, Micros};

/// What is known of a sale besides.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Units that were to be sold.
    pub stock: u32,
    /// Units that a user may hold.
    pub per_user: u32,
    /// Whether units came back while the log was written.
    pub returns: bool,
    /// Exactly so many units are taken at the end.
    pub taken: Option<u32>,
}

/// Two facts that cannot both be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// Which rule it breaks, by its id and in words: the same words for the same rule.
    pub rule: &'static str,
    /// The facts.
    pub facts: String,
}

/// Everything that happened to one token.
#[derive(Debug, Default)]
struct History<'a> {
    entries: Vec<&'a Entry>,
}

/// Names everything that does not fit together.
pub fn judge(
    log: &[Entry],
    rows: &[Row],
    buyer: impl Fn(&str) -> Option<u32>,
    rules: &Rules,
) -> Vec<Contradiction> {
    let mut found = Vec::new();
    let mut by_id: HashMap<OrderId, &Row> = HashMap::with_capacity(rows.len());
    for row in rows {
        if by_id.insert(row.id, row).is_some() {
            say(&mut found, "A1 an order has one row", format!("{} is listed twice", row.id));
        }
    }
    let histories = histories(log);
    for (order, history) in &histories {
        history.judge(*order, by_id.get(order).copied(), &buyer, &mut found);
    }
    for row in rows {
        if !histories.contains_key(&row.id) {
            say(
                &mut found,
                "A5 an order was asked for",
                format!("{} has a row, and no request had its token", row.id),
            );
        }
    }
    judge_units(rows, rules, &mut found);
    if !rules.returns {
        judge_sold_out(log, rules, &mut found);
    }
    found
}

/// How much each rule of the log had to judge, by its id: a rule that judged nothing has shown nothing.
pub fn judged(log: &[Entry], rules: &Rules) -> [(&'static str, usize); 4] {
    let histories = histories(log);
    let tokens = |of: fn(&Entry) -> bool| {
        histories.values().filter(|history| history.entries.iter().any(|entry| of(entry))).count()
    };
    let refused = log.iter().filter(|entry| entry.outcome == SOLD_OUT && !rules.returns).count();
    [
        ("A1 accepted orders", tokens(|entry| entry.outcome.is_held())),
        ("A3 answers \"sold out\"", refused),
        ("A4 tokens", histories.len()),
        ("A5 tokens refused", tokens(|entry| !entry.outcome.is_held() && !entry.outcome.is_unknown())),
    ]
}

/// Orders of which some answer left open whether units were taken: those that rule A2 is about.
pub fn unknown(log: &[Entry]) -> BTreeMap<OrderId, u32> {
    let open = |entry: &&Entry| entry.kind.is_order() && entry.outcome.is_unknown();
    log.iter().filter(open).filter_map(|entry| Some((entry.order?, entry.buyer))).collect()
}

/// What the gate tells of an order by its id (`None`: there is none) against its row; `None` when they
/// agree. An order that the gate calls accepted and that has no row yet is still on its way.
pub fn contradicts(
    order: OrderId,
    told: Option<OrderState>,
    row: Option<OrderState>,
) -> Option<Contradiction> {
    let word = |state: Option<OrderState>| state.map_or("nothing", OrderState::as_str);
    (told != row).then(|| Contradiction {
        rule: "A2 an order asked for by its id is what its row is",
        facts: format!("{order} is {} to its buyer and {} in the books", word(told), word(row)),
    })
}

/// How many orders the log says were accepted, each counted once.
pub fn accepted(log: &[Entry]) -> u32 {
    let held = log.iter().filter(|entry| entry.kind.is_order() && entry.outcome.is_held());
    let orders: HashSet<OrderId> = held.filter_map(|entry| entry.order).collect();
    u32::try_from(orders.len()).unwrap_or(u32::MAX)
}

fn say(found: &mut Vec<Contradiction>, rule: &'static str, facts: String) {
    found.push(Contradiction { rule, facts });
}

/// Requests for units by the order of their token; those without a good token have none.
fn histories(log: &[Entry]) -> BTreeMap<OrderId, History<'_>> {
    let mut histories: BTreeMap<OrderId, History<'_>> = BTreeMap::new();
    for entry in log.iter().filter(|entry| entry.kind.is_order()) {
        if let Some(order) = entry.order {
            histories.entry(order).or_default().entries.push(entry);
        }
    }
    histories
}

impl History<'_> {
    fn judge(
        &self,
        order: OrderId,
        row: Option<&Row>,
        buyer: &impl Fn(&str) -> Option<u32>,
        found: &mut Vec<Contradiction>,
    ) {
        for entry in &self.entries {
            if let Some(named) = entry.named.filter(|named| *named != order) {
                say(found, "A4 a token names one order", format!("{order} was answered with {named}"));
            }
        }
        let held: Vec<&&Entry> = self.entries.iter().filter(|entry| entry.outcome.is_held()).collect();
        let taken = self.entries.iter().filter(|entry| entry.outcome.is_taken()).count();
        if taken > 1 {
            say(found, "A4 a token takes units once", format!("{order} was accepted {taken} times as new"));
        }
        if let Some(accepted) = held.iter().map(|entry| entry.done).min() {
            self.judge_after(order, accepted, found);
        }
        match row {
            None if !held.is_empty() => {
                say(
                    found,
                    "A1 every accepted order is a row",
                    format!("{order} was accepted and has no row"),
                );
            }
            Some(row) if !held.is_empty() && row.state == OrderState::Failed => {
                say(found, "A1 every accepted order is a row", format!("{order} was accepted and failed"));
            }
            Some(row) => self.judge_row(row, buyer, found),
            None => {}
        }
        let spent = self.entries.iter().any(|entry| entry.outcome == TOKEN_SPENT);
        if spent && row.is_none_or(Row::is_live) {
            say(
                found,
                "A4 a spent token gave its units back",
                format!("{order} is spent and still holds them"),
            );
        }
    }

    /// Once accepted, a token is never refused for what only a new purchase can lack.
    fn judge_after(&self, order: OrderId, accepted: Micros, found: &mut Vec<Contradiction>) {
        for entry in self.entries.iter().filter(|entry| entry.sent >= accepted) {
            let outcome = entry.outcome;
            let for_new_ones = ["ended", "paused", "not_started", "token_expired", "unknown_sku"];
            if matches!(outcome, SOLD_OUT | PURCHASE_LIMIT) || for_new_ones.contains(&outcome.0) {
                let facts = format!("{order} was accepted, and later answered {outcome}");
                say(found, "A4 accepted is never followed by a refusal", facts);
            }
        }
    }

    fn judge_row(&self, row: &Row, buyer: &impl Fn(&str) -> Option<u32>, found: &mut Vec<Contradiction>) {
        let owner = buyer(&row.user);
        if self.entries.iter().any(|entry| Some(entry.buyer) != owner) {
            say(
                found,
                "A1 an order is its buyer's",
                format!("{} is {}'s, who did not ask for it", row.id, row.user),
            );
        }
        if self.entries.iter().any(|entry| entry.units != row.units) {
            say(found, "A1 an order is what was asked for", format!("{} has {} units", row.id, row.units));
        }
        let may_have_taken = |entry: &&Entry| entry.outcome.is_held() || entry.outcome.is_unknown();
        if !self.entries.iter().any(may_have_taken) {
            say(
                found,
                "A5 a refusal takes nothing",
                format!("{} was refused each time and has a row", row.id),
            );
        }
    }
}

fn judge_units(rows: &[Row], rules: &Rules, found: &mut Vec<Contradiction>) {
    let mut users: HashMap<&str, u32> = HashMap::new();
    let mut live = 0;
    for row in rows.iter().filter(|row| row.is_live()) {
        *users.entry(&row.user).or_default() += row.units;
        live += row.units;
    }
    for (user, units) in users {
        if units > rules.per_user {
            let facts = format!("{user} holds {units}, the limit is {}", rules.per_user);
            say(found, "P2 no user holds more than the limit", facts);
        }
    }
    if live > rules.stock {
        say(found, "P1 no more is sold than there is", format!("{live} units of {} are taken", rules.stock));
    }
    if let Some(expected) = rules.taken.filter(|expected| *expected != live) {
        say(found, "Z4 what can be sold is sold", format!("{live} units are taken, {expected} should be"));
    }
}

/// While nothing comes back, "sold out" is true only if what was asked for until then, and not
/// refused, leaves too little.
fn judge_sold_out(log: &[Entry], rules: &Rules, found: &mut Vec<Contradiction>) {
    let mut taken: HashMap<OrderId, (Micros, u32)> = HashMap::new();
    let possible = |entry: &&Entry| entry.outcome.is_held() || entry.outcome.is_unknown();
    for entry in log.iter().filter(|entry| entry.kind.is_order()).filter(possible) {
        let Some(order) = entry.order else { continue };
        let first = taken.entry(order).or_insert((entry.sent, entry.units));
        first.0 = first.0.min(entry.sent);
    }
    let mut asked: Vec<(Micros, u32)> = taken.into_values().collect();
    asked.sort_unstable();
    let mut refused: Vec<&Entry> = log.iter().filter(|entry| entry.outcome == SOLD_OUT).collect();
    refused.sort_unstable_by_key(|entry| entry.done);
    let (mut at, mut units) = (0, 0_u64);
    let mut told = HashSet::new();
    for entry in refused {
        while let Some((sent, more)) = asked.get(at).filter(|(sent, _)| *sent < entry.done) {
            debug_assert!(*sent < entry.done);
            units += u64::from(*more);
            at += 1;
        }
        if units + u64::from(entry.units) <= u64::from(rules.stock) && told.insert(entry.buyer) {
            let facts = format!(
                "buyer {} was told so when at most {units} of {} were taken",
                entry.buyer, rules.stock
            );
            say(found, "A3 sold out is said only when it is so", facts);
        }
    }
}

/// Payments that the log says were taken, for orders that are neither paid nor paid back.
pub fn judge_payments(log: &[Entry], rows: &[Row]) -> Vec<Contradiction> {
    let rows: HashMap<OrderId, &Row> = rows.iter().map(|row| (row.id, row)).collect();
    let mut found = Vec::new();
    for entry in log.iter().filter(|entry| entry.kind == Kind::Pay && entry.status == 200) {
        let Some(order) = entry.order else { continue };
        let row = rows.get(&order);
        if !row.is_some_and(|row| row.state == OrderState::Paid || row.refund.is_some()) {
            let state = row.map_or("without a row", |row| row.state.as_str());
            let facts = format!("{order} is {state}, without a refund");
            say(&mut found, "P4 an order whose payment was taken is paid, or paid back", facts);
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "oracle_tests.rs"]
mod tests;
