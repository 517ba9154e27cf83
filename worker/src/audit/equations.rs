//! The equations, over what was gathered; no I/O. R: Redis alone. P: PostgreSQL alone. X: across.
//! A: against what buyers were told.

mod across;
mod books;
mod claims;
mod segment;

use sluice_shared::sale::SaleStep;

use super::broker::Depths;
use super::gather::Gathered;
use super::names::Names;
use super::{Equation, SaleReport, Units};

/// Judges one sale; `depths` bounds what may still be in the broker, where that is known.
pub fn judge(gathered: &Gathered, depths: Option<Depths>) -> SaleReport {
    if gathered.sale.step == SaleStep::Created {
        let mut sheet = Sheet::default();
        let orders = gathered.rows.names.clone();
        sheet.each(("P7", "a sale that was never on the shelf has no orders"), "", orders.count(), orders);
        return report(gathered, sheet, Vec::new(), 0);
    }
    let (across, units, under_way) = across::judge(gathered, depths);
    let mut sheet = Sheet::default();
    for side in [segment::judge(gathered), books::judge(gathered), across, claims::judge(gathered)] {
        sheet.equations.extend(side.equations);
    }
    report(gathered, sheet, units, under_way)
}

fn report(gathered: &Gathered, sheet: Sheet, units: Vec<Units>, under_way: usize) -> SaleReport {
    let mut notes = Vec::new();
    for name in &gathered.reopening {
        notes.push(format!("{name} is frozen: a warden is re-opening it, or it does not fit the books"));
    }
    if !gathered.fenced.is_empty() {
        let some = gathered.fenced.iter().take(5).cloned().collect::<Vec<_>>().join(" ");
        notes.push(format!("{} messages of an ended epoch left no order: {some}", gathered.fenced.len()));
    }
    if gathered.segments.is_empty() {
        notes.push("redis has no keys of this sale; only PostgreSQL was judged".to_owned());
    }
    if under_way > 0 {
        notes.push(format!("{under_way} entries are under way"));
    }
    SaleReport {
        sale: gathered.sale.sale.clone(),
        state: gathered.sale.step.as_str(),
        balanced: sheet.equations.iter().all(|equation| equation.holds),
        at_rest: under_way == 0,
        in_redis: !gathered.segments.is_empty(),
        units,
        equations: sheet.equations,
        notes,
    }
}

/// The equations as they come.
#[derive(Debug, Default)]
struct Sheet {
    equations: Vec<Equation>,
}

impl Sheet {
    /// Left and right have to be equal, and nobody may offend.
    fn equal(
        &mut self,
        (name, says): (&'static str, &'static str),
        scope: impl Into<String>,
        left: i64,
        right: i64,
        offenders: Names,
    ) {
        let offending = offenders.count();
        let offenders = offenders.into_sorted();
        let difference = left - right;
        let holds = difference == 0 && offending == 0;
        let scope = scope.into();
        self.equations.push(Equation {
            name,
            says,
            scope,
            left,
            right,
            difference,
            holds,
            offenders,
            offending,
        });
    }

    /// Of `all`, everything but the offenders is as it should be.
    fn each(
        &mut self,
        title: (&'static str, &'static str),
        scope: impl Into<String>,
        all: usize,
        offenders: Names,
    ) {
        let (all, good) = (count(all), count(all.saturating_sub(offenders.count())));
        self.equal(title, scope, all, good, offenders);
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
