//! The audit for people.

use std::fmt::Write;

use super::{Equation, Report, SaleReport, Units};

/// Offenders shown of one equation.
const SHOWN: usize = 5;

/// Every term and every equation of every sale.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = report.sales.iter().try_for_each(|sale| of_sale(&mut text, sale));
    let verdict = match (report.balanced, report.at_rest) {
        (true, true) => "balanced, at rest",
        (true, false) => "balanced, with entries under way",
        (false, _) => "NOT BALANCED",
    };
    let sales = report.sales.len();
    let plural = if sales == 1 { "" } else { "s" };
    let _ = writeln!(text, "{verdict}: {sales} sale{plural}, looked {} times, {}", report.looks, report.at);
    text
}

fn of_sale(text: &mut String, sale: &SaleReport) -> std::fmt::Result {
    writeln!(text, "sale {} ({})", sale.sale, sale.state)?;
    for units in &sale.units {
        of_units(text, units)?;
    }
    let wide = |of: fn(&Equation) -> usize| sale.equations.iter().map(of).max().unwrap_or(0);
    let (name, scope) = (wide(|e| e.name.len()), wide(|e| e.scope.chars().count()));
    let number = wide(|e| e.left.to_string().len().max(e.right.to_string().len()));
    for equation in &sale.equations {
        let mark = if equation.holds { "ok  " } else { "FAIL" };
        writeln!(
            text,
            "  {mark} {:name$}  {:scope$}  {:>number$} = {:>number$}  {}",
            equation.name, equation.scope, equation.left, equation.right, equation.says
        )?;
        if !equation.holds {
            offenders(text, equation)?;
        }
    }
    for note in &sale.notes {
        writeln!(text, "  note: {note}")?;
    }
    writeln!(text)
}

fn of_units(text: &mut String, units: &Units) -> std::fmt::Result {
    let Units { sku, preloaded, added, withdrawn, left, journalled, in_broker, held, sold, difference } =
        units;
    writeln!(text, "  {sku}: {preloaded} preloaded + {added} added − {withdrawn} withdrawn")?;
    write!(text, "    = {left} left + {journalled} journalled + {in_broker} in broker unwritten")?;
    writeln!(text, " + {held} held + {sold} sold")?;
    if *difference != 0 {
        writeln!(text, "    difference {difference}")?;
    }
    Ok(())
}

fn offenders(text: &mut String, equation: &Equation) -> std::fmt::Result {
    writeln!(text, "       left − right = {}", equation.difference)?;
    for offender in equation.offenders.iter().take(SHOWN) {
        writeln!(text, "       {offender}")?;
    }
    match equation.offending.saturating_sub(SHOWN) {
        0 => Ok(()),
        more => writeln!(text, "       … and {more} more (all in --json up to 50)"),
    }
}
