//! Growing pauses before something that was in vain is tried again.

use std::time::{Duration, Instant};

use rand::RngExt;

/// How often something was in vain, and when it may be tried again.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pause: Duration,
    until: Instant,
}

impl Backoff {
    /// It was in vain once more: the pause is twice as long as the one before, between the first and the
    /// longest; up to a quarter of it is left out, so that not all come back at once.
    pub fn after(before: Option<Self>, [first, longest]: [Duration; 2], now: Instant) -> Self {
        let pause = before.map_or(first, |before| (before.pause * 2).min(longest));
        Self { pause, until: now + pause.mul_f64(rand::rng().random_range(0.75..=1.0)) }
    }

    /// The same, and not before then.
    pub fn not_before(self, then: Instant) -> Self {
        Self { until: self.until.max(then), ..self }
    }

    /// How long it is until the next try; nothing when it is time.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_no_further() {
        let (pauses, now) = ([Duration::from_millis(100), Duration::from_secs(60)], Instant::now());
        let (mut backoff, mut slept) = (None, Vec::new());
        for _ in 0..12 {
            let next = Backoff::after(backoff, pauses, now);
            slept.push(next.left(now).unwrap());
            backoff = Some(next);
        }
        for (n, slept) in (0..).zip(&slept) {
            let whole = (pauses[0] * 2_u32.pow(n)).min(pauses[1]);
            assert!((whole.mul_f64(0.74)..=whole).contains(slept), "{n}: {slept:?}");
        }
        assert_eq!(backoff.unwrap().left(now + pauses[1]), None);
    }
}
