//! Segments that take no steps for now, such as those of a frozen sale: whatever is asked of one waits,
//! longer each time, and nothing else waits with it. Without I/O.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_shared::keys::Segment;

use crate::backoff::Backoff;

/// The shortest and the longest pause: a sale that is re-opened in the ordinary way is not waited for long.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// The pauses of segments; one that takes steps again leaves.
#[derive(Debug, Default)]
pub(super) struct Pauses(Mutex<HashMap<Segment, Backoff>>);

impl Pauses {
    fn of(&self) -> MutexGuard<'_, HashMap<Segment, Backoff>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a segment is let alone yet.
    pub(super) fn left(&self, segment: &Segment, now: Instant) -> Option<Duration> {
        self.of().get(segment)?.left(now)
    }

    /// It took no step; answers how long it is let alone. Whoever asked at the same time counts once.
    pub(super) fn longer(&self, segment: &Segment, now: Instant) -> Duration {
        let mut of = self.of();
        let before = of.get(segment).copied();
        let next = match before {
            Some(before) if before.left(now).is_some() => before,
            before => Backoff::after(before, PAUSES, now),
        };
        of.insert(segment.clone(), next);
        next.left(now).unwrap_or(PAUSES[0])
    }

    /// It takes steps, or has none to take any more.
    pub(super) fn over(&self, segment: &Segment) {
        self.of().remove(segment);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sluice_shared::ids::SaleId;

    use super::*;

    #[test]
    fn a_segment_is_let_alone_longer_each_time_and_others_are_not() {
        let [frozen, other] = ["frozen", "other"].map(|sale| Segment::new(SaleId::parse(sale).unwrap(), 0));
        let (pauses, mut now) = (Pauses::default(), Instant::now());
        let mut before = Duration::ZERO;
        for _ in 0..5 {
            let pause = pauses.longer(&frozen, now);
            assert!(pause > before && pauses.longer(&frozen, now) == pause, "{before:?} {pause:?}");
            assert!(pauses.left(&frozen, now).is_some() && pauses.left(&other, now).is_none());
            (before, now) = (pause, now + pause);
        }
        pauses.over(&frozen);
        assert!(pauses.longer(&frozen, now) <= PAUSES[0]);
    }
}
