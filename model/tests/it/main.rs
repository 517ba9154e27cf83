//! The protocol holds, and each of its mechanisms is needed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod knocked_out;
mod whole;

use sluice_model::explore::{Exploration, Found};
use sluice_model::faults::Faults;

/// Millions of moments in one table: this one asks the system for large pages, and the table is read all
/// over the place.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Explores all of it, and prints the way to what is wrong.
fn explore(exploration: Exploration, ends: bool) -> Found {
    let found = exploration.run(ends);
    if let Some((violation, way)) = &found.violation {
        println!("{violation:?} after {} states, {:?}", found.states, exploration.faults);
        way.iter().for_each(|step| println!("  {step:?}"));
    }
    found
}

/// One fault of any kind. Where Redis' data may fall back, the replica is one more thing that differs from
/// moment to moment: that is explored by itself.
fn any_fault() -> [Faults; 2] {
    let stale = Faults { stale: 1, ..Faults::NONE };
    let other = Faults {
        kill: 1,
        pause: 1,
        restart: 1,
        wipe: 1,
        broker: 1,
        machine: 1,
        lapse: 1,
        most: Some(1),
        ..Faults::NONE
    };
    [stale, other]
}
