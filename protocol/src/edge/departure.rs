//! When held orders go out to the broker. No I/O and no clock.

use std::time::{Duration, Instant};

/// How long an order for which nobody waits gathers company: one message at a time would wake the broker
/// and a worker for each, and have the broker's disc synchronised for each.
pub const LINGER: Duration = Duration::from_millis(10);

/// The moment from which on everything held is handed over, until nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Departure(Option<Instant>);

impl Departure {
    /// Somebody waits, or it was waited long enough.
    pub fn at_once(&mut self, now: Instant) {
        self.0 = Some(self.0.map_or(now, |due| due.min(now)));
    }

    /// Nobody waits: with whatever else comes until then. An earlier departure stays.
    pub fn soon(&mut self, now: Instant) {
        self.0.get_or_insert(now + LINGER);
    }

    /// Nothing is left that could go out now.
    pub fn left(&mut self) {
        self.0 = None;
    }

    /// Whether one is planned or under way.
    pub fn is_set(self) -> bool {
        self.0.is_some()
    }

    /// Whether its moment has come.
    pub fn is_due(self, now: Instant) -> bool {
        self.0.is_some_and(|due| due <= now)
    }

    /// Its moment, while that is to come. One that is under way waits for room, not for a time.
    pub fn to_come(self, now: Instant) -> Option<Instant> {
        self.0.filter(|due| *due > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_goes_out_together_once_the_first_has_lingered() {
        let (mut departure, now) = (Departure::default(), Instant::now());
        assert!(!departure.is_set() && !departure.is_due(now));
        departure.soon(now);
        departure.soon(now + LINGER / 2);
        assert_eq!(departure.to_come(now), Some(now + LINGER));
        assert!(!departure.is_due(now + LINGER / 2));
        assert!(departure.is_due(now + LINGER));
        departure.left();
        assert_eq!(departure, Departure::default());
    }

    #[test]
    fn what_somebody_waits_for_takes_the_others_along_at_once() {
        let (mut departure, now) = (Departure::default(), Instant::now());
        departure.soon(now);
        departure.at_once(now + LINGER / 2);
        assert!(departure.is_due(now + LINGER / 2));
        // And is not put off by what comes behind it while there is no room.
        departure.soon(now + LINGER);
        departure.at_once(now + LINGER);
        assert!(departure.is_due(now + LINGER / 2));
        assert_eq!(departure.to_come(now + LINGER), None);
    }
}
