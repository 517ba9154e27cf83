//! When the reconciler looks again: often, and never for much of Redis' time.

use std::time::{Duration, Instant};

use super::{AGAIN, Look};
use crate::warden::Warden;
use crate::warden::scan::time_spent;

/// Reading the maps takes at most one part in so many of Redis' time.
pub(super) const SHARE: u32 = 5;

/// When sales of a kind are looked at next, and how closely.
pub(super) struct Turn {
    pub(super) look: Look,
    pub(super) due: Instant,
}

impl Turn {
    /// A look that took so much of Redis' time is repeated `every` so often, or later where that is too much.
    pub(super) fn next(&mut self, began: Instant, spent: Duration, every: Duration) {
        self.due = (began + every.max(spent * SHARE)).max(Instant::now() + every.min(AGAIN));
    }
}

/// What Redis had spent on reading order maps when something began.
pub(super) struct Spent {
    pub(super) at: Instant,
    before: Duration,
}

impl Spent {
    pub(super) async fn now(warden: &Warden) -> Self {
        Self { at: Instant::now(), before: time_spent(warden.redis()).await.unwrap_or_default() }
    }

    /// What it has spent since: by its own account, and by the clock where it keeps none.
    pub(super) async fn since(&self, warden: &Warden) -> Duration {
        let spent = time_spent(warden.redis()).await.unwrap_or_default().saturating_sub(self.before);
        if spent.is_zero() { self.at.elapsed() } else { spent }
    }
}
