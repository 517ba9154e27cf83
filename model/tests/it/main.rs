//! The protocol holds, and each of its mechanisms is needed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod knocked_out;
mod whole;

use sluice_model::explore::{Exploration, Found};
use sluice_model::rules::Faults;

/// Explores all of it, and prints the way to what is wrong.
fn explore(exploration: Exploration, ends: bool) -> Found {
    let found = exploration.run(ends);
    if let Some((violation, way)) = &found.violation {
        println!("{violation:?} after {} states, {:?}", found.states, exploration.faults);
        way.iter().for_each(|step| println!("  {step:?}"));
    }
    found
}

/// One fault of each kind, by itself; the warden may die besides.
fn each_alone() -> [Faults; 8] {
    let none = Faults { warden: 1, ..Faults::NONE };
    [
        Faults { kill: 1, ..none },
        Faults { pause: 1, ..none },
        Faults { restart: 1, ..none },
        Faults { stale: 1, ..none },
        Faults { wipe: 1, ..none },
        Faults { broker: 1, ..none },
        Faults { machine: 1, ..none },
        Faults { lapse: 1, ..none },
    ]
}
