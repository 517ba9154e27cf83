//! What buyers were not told, asked for by the order's id: rule A2 of the oracle.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sluice_shared::ids::OrderId;
use sluice_shared::record::OrderState;

use super::{Ask, Scene};
use crate::client::Kind;
use crate::client::outcome::{OK, Outcome, UNAVAILABLE};
use crate::oracle::{contradicts, unknown};
use crate::report::Tally;

/// How long after the faults the gate may still tell something else than the books.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
const NOT_FOUND: Outcome = Outcome("not_found");

impl Scene {
    /// Asks for every order of which some answer left open what became of it, until the gate tells what
    /// the books tell. To be called as soon as everything that was broken is back.
    pub fn resolve(&mut self, tally: &mut Tally) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut open = unknown(&tally.entries()?);
        let (all, mut last) = (open.len(), String::new());
        let known = loop {
            let late = began.elapsed() > KNOWN_WITHIN;
            let told: Vec<_> =
                open.iter().map(|(order, buyer)| (*order, *buyer, self.told(tally, *buyer, order))).collect();
            let asked = began.elapsed();
            // The books afterwards: reading all of them takes longer than asking.
            let rows = self.admin.orders(&self.sale)?;
            let rows: HashMap<OrderId, OrderState> = rows.iter().map(|row| (row.id, row.state)).collect();
            let mut differ = BTreeMap::new();
            for (order, buyer, told) in told {
                let row = rows.get(&order).copied();
                let contradiction = match told {
                    Ok(told) => contradicts(order, told, row).map(|found| found.facts),
                    Err(outcome) => Some(format!("asking for {order} was answered {outcome}")),
                };
                if let Some(facts) = contradiction {
                    differ.insert(order, buyer);
                    last = facts;
                }
            }
            open = differ;
            if open.is_empty() || late {
                break asked;
            }
        };
        let words = format!(
            "A2: {} of {all} orders of unknown outcome were known by their id, {:.1} s after the faults",
            all - open.len(),
            known.as_secs_f64()
        );
        self.verdicts.say(open.is_empty(), words);
        if !open.is_empty() {
            println!("{last}");
        }
        Ok(())
    }

    /// What the gate tells of an order, `None` when there is none; else what came instead of an answer.
    fn told(&self, tally: &mut Tally, buyer: u32, order: &OrderId) -> Result<Option<OrderState>, Outcome> {
        let ask = Ask { buyer, order, units: 1, request: self.buyers.look_request(buyer, order) };
        // Who is told "not at the moment" asks again.
        let reply = self.ask(tally, Kind::Look, &ask, &[OK, NOT_FOUND, UNAVAILABLE]);
        match reply.outcome() {
            OK => Ok(reply.member("state").as_str().and_then(OrderState::parse)),
            NOT_FOUND => Ok(None),
            other => Err(other),
        }
    }
}
