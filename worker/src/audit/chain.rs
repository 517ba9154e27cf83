//! The ledger: its hash chain, line by line, and what an order's lines add up to.

use std::collections::BTreeMap;

use sluice_shared::ids::{OrderId, SaleId, SkuId};

use super::names::Names;
use crate::store::books::LedgerFact;
use crate::store::ledger::LineText;

/// What an order's ledger lines of one SKU add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moves {
    /// Lines and units of `take`.
    pub take: (u32, u64),
    /// Of `release`.
    pub release: (u32, u64),
    /// Of `sold`.
    pub sold: (u32, u64),
    /// Of `refund`.
    pub refund: (u32, u64),
    /// Whether something was given back or sold before it was taken, or refunded before it was sold.
    pub early: bool,
}

impl Moves {
    /// Takes the next line, in their order.
    pub fn add(&mut self, kind: &str, quantity: u64) {
        self.early |= match kind {
            "release" | "sold" => self.take.0 == 0,
            "refund" => self.sold.0 == 0,
            _ => false,
        };
        let (lines, units) = match kind {
            "take" => &mut self.take,
            "release" => &mut self.release,
            "sold" => &mut self.sold,
            "refund" => &mut self.refund,
            _ => return,
        };
        *lines += 1;
        *units += quantity;
    }
}

/// An offer's ledger, without its lines.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Units of each kind of line.
    pub sums: BTreeMap<String, i64>,
    /// Lines there are.
    pub lines: i64,
    /// Lines whose number and hash follow from the one before.
    pub sound: i64,
    /// The first line that does not.
    pub broken: Option<u64>,
    /// The last line's hash.
    pub hash: Vec<u8>,
    /// Number of the last line.
    pub last: u64,
    /// Lines that name an order.
    pub ordered: usize,
    /// What stands in an order's place and is none.
    pub nameless: Names,
    /// Units that stock changes have added, by their key; withdrawn when negative.
    pub changes: BTreeMap<String, i64>,
}

impl Chain {
    /// Takes the next line; recomputes its hash from the one before.
    pub fn add(&mut self, sale: &SaleId, sku: &SkuId, line: LedgerFact) {
        let about = line.order.as_deref().or(line.change.as_deref()).unwrap_or("");
        let text = LineText {
            sale: sale.as_str(),
            sku: sku.as_str(),
            line: i64::try_from(line.line).unwrap_or(i64::MAX),
            kind: &line.kind,
            about,
            quantity: i64::try_from(line.quantity).unwrap_or(i64::MAX),
            at_micros: line.at_micros,
        };
        self.lines += 1;
        if line.line == self.last + 1 && text.hash(&self.hash).as_slice() == line.hash {
            self.sound += 1;
        } else {
            self.broken = self.broken.or(Some(line.line));
        }
        let units = i64::try_from(line.quantity).unwrap_or(i64::MAX);
        match self.sums.get_mut(&line.kind) {
            Some(sum) => *sum += units,
            None => drop(self.sums.insert(line.kind.clone(), units)),
        }
        if let Some(key) = &line.change {
            let delta = if line.kind == "withdraw" { -units } else { units };
            *self.changes.entry(key.clone()).or_default() += delta;
        }
        match line.order.as_deref() {
            Some(name) if OrderId::parse(name).is_none() => self.nameless.push(|| name.to_owned()),
            Some(_) => self.ordered += 1,
            None => {}
        }
        (self.last, self.hash) = (line.line, line.hash);
    }

    /// Units of all lines of a kind.
    pub fn sum(&self, kind: &str) -> i64 {
        self.sums.get(kind).copied().unwrap_or(0)
    }
}
