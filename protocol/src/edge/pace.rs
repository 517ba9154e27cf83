//! How a desk behaves while its segment is frozen: buyers are answered at once, and Redis is asked now
//! and then whether it goes on. No I/O and no clock.

use std::time::{Duration, Instant};

/// Between two probes while buyers ask.
const BUSY: Duration = Duration::from_millis(100);
/// Between two probes while nobody does.
const IDLE: Duration = Duration::from_secs(1);

/// Whether a segment sells, as far as its replies tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// It does, or has not been asked yet.
    #[default]
    Selling,
    /// It said that it does not.
    Frozen {
        /// When Redis was last asked.
        probed: Instant,
        /// When a buyer was last turned away.
        asked: Option<Instant>,
    },
}

impl Pace {
    /// Whether buyers are turned away at once.
    pub fn is_frozen(self) -> bool {
        matches!(self, Self::Frozen { .. })
    }

    /// A reply said "frozen".
    pub fn freeze(&mut self, now: Instant) {
        if let Self::Selling = self {
            *self = Self::Frozen { probed: now, asked: None };
        }
    }

    /// A reply was good.
    pub fn thaw(&mut self) {
        *self = Self::Selling;
    }

    /// A buyer was turned away.
    pub fn turned_away(&mut self, now: Instant) {
        if let Self::Frozen { asked, .. } = self {
            *asked = Some(now);
        }
    }

    /// Redis is asked now.
    pub fn probe(&mut self, now: Instant) {
        if let Self::Frozen { probed, .. } = self {
            *probed = now;
        }
    }

    /// When Redis is to be asked next; `None` while selling.
    pub fn due(self) -> Option<Instant> {
        let Self::Frozen { probed, asked } = self else { return None };
        let busy = asked.is_some_and(|asked| asked + IDLE >= probed);
        Some(probed + if busy { BUSY } else { IDLE })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_segment_is_probed_often_only_while_buyers_ask() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.due(), None);
        pace.freeze(start);
        assert_eq!(pace.due(), Some(start + IDLE));
        pace.turned_away(start);
        assert_eq!(pace.due(), Some(start + BUSY));
        pace.probe(start + BUSY);
        assert_eq!(pace.due(), Some(start + BUSY * 2));
        let later = start + IDLE * 3;
        pace.probe(later);
        assert_eq!(pace.due(), Some(later + IDLE));
    }

    #[test]
    fn one_good_reply_thaws_it_and_further_bad_ones_do_not_hasten_the_probe() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.freeze(start);
        pace.freeze(start + BUSY);
        assert_eq!(pace.due(), Some(start + IDLE));
        pace.thaw();
        assert!(!pace.is_frozen());
    }
}
