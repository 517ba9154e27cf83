//! When requests are due, whatever becomes of the ones before.

use crate::client::Micros;

/// The shape of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Profile {
    /// So many a second, evenly.
    Rate(f64),
    /// All at once: as fast as answers come over the connections there are.
    Step,
}

/// Due times of a number of requests from a moment on.
#[derive(Debug, Clone)]
pub struct Schedule {
    profile: Profile,
    from: Micros,
    count: u64,
    next: u64,
}

impl Schedule {
    /// `count` requests from `from` on.
    pub fn new(profile: Profile, from: Micros, count: u64) -> Self {
        Self { profile, from, count, next: 0 }
    }

    /// Counts from another moment.
    pub fn begin(&mut self, from: Micros) {
        self.from = from;
    }

    /// When the next one is due.
    pub fn peek(&self) -> Option<Micros> {
        (self.next < self.count).then(|| self.due(self.next))
    }

    /// Takes the next one: its number and when it is due.
    pub fn take(&mut self) -> Option<(u64, Micros)> {
        let due = self.peek()?;
        self.next += 1;
        Some((self.next - 1, due))
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn due(&self, number: u64) -> Micros {
        match self.profile {
            Profile::Step => self.from,
            // Exact for as many requests and as long as a drill lasts.
            Profile::Rate(rate) => self.from + (number as f64 * 1e6 / rate) as Micros,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_whatever_happens() {
        let mut schedule = Schedule::new(Profile::Rate(2_000.0), 1_000_000, 200_000);
        let (mut taken, mut last) = (0, 0);
        while let Some((number, due)) = schedule.take() {
            assert_eq!((number, due), (taken, 1_000_000 + taken * 500));
            (taken, last) = (taken + 1, due);
        }
        assert_eq!((taken, last, schedule.peek()), (200_000, 100_999_500, None));
    }

    #[test]
    fn a_step_is_due_at_once() {
        let mut schedule = Schedule::new(Profile::Step, 7, 3);
        assert_eq!(schedule.peek(), Some(7));
        let due: Vec<_> = std::iter::from_fn(|| schedule.take()).collect();
        assert_eq!(due, [(0, 7), (1, 7), (2, 7)]);
    }
}
