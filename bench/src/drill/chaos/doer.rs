//! Who carries out the faults of one lane.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use sluice_shared::ids::SaleId;

use super::ground::Ground;
use super::journal::Journal;

/// Carries faults out, one after another: a lane has one of its own.
pub(super) struct Doer<'a> {
    /// What is broken.
    pub(super) ground: &'a Ground,
    /// Where it is told.
    pub(super) journal: &'a Journal,
    /// What is sold meanwhile.
    pub(super) sale: &'a SaleId,
}

/// A time between these, in milliseconds.
pub(super) fn millis(random: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}
