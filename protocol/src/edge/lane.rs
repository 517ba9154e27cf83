//! The way to one write queue: which held orders wait for it, and when it rests. No I/O and no clock.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Names one stay of an order; an order that comes again under a newer epoch gets a newer one. They
/// grow in the order of acceptance.
pub type Ticket = u64;

/// How long a queue is left alone after it gave a message back: it is full, or does not exist.
pub(crate) const REST: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Pace {
    /// Takes what comes.
    #[default]
    Open,
    /// Gave a message back; is tried with a single one when the time has come.
    Resting(Instant),
    /// Is being tried.
    Trying(Ticket),
}

/// Orders of one write queue.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    waiting: BTreeSet<Ticket>,
    sent: BTreeSet<Ticket>,
    pace: Pace,
}

impl Lane {
    /// A new order.
    pub(crate) fn arrive(&mut self, ticket: Ticket) {
        self.waiting.insert(ticket);
    }

    /// The next order to send, if one may be sent now.
    pub(crate) fn first(&self, now: Instant) -> Option<Ticket> {
        match self.pace {
            Pace::Open => self.waiting.first().copied(),
            Pace::Resting(until) if now >= until => self.waiting.first().copied(),
            Pace::Resting(_) | Pace::Trying(_) => None,
        }
    }

    /// It is being sent.
    pub(crate) fn send(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.sent.insert(ticket);
        if matches!(self.pace, Pace::Resting(_)) {
            self.pace = Pace::Trying(ticket);
        }
    }

    /// It is no longer held: the broker has it, or a newer stay took its place.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.sent.remove(&ticket);
        self.waiting.remove(&ticket);
        if self.pace == Pace::Trying(ticket) {
            self.pace = Pace::Open;
        }
    }

    /// The broker gave it back. Answers whether a rest begins.
    pub(crate) fn fail(&mut self, ticket: Ticket, now: Instant) -> bool {
        if self.sent.remove(&ticket) {
            self.waiting.insert(ticket);
        }
        // Others of the same burst come back too; they do not lengthen the rest.
        let begins = !matches!(self.pace, Pace::Resting(_));
        if begins {
            self.pace = Pace::Resting(now + REST);
        }
        begins
    }

    /// The connection is gone.
    pub(crate) fn broken(&mut self) {
        self.waiting.append(&mut self.sent);
        self.pace = Pace::Open;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn drain(lane: &mut Lane, now: Instant) -> Vec<Ticket> {
        std::iter::from_fn(|| {
            let ticket = lane.first(now)?;
            lane.send(ticket);
            Some(ticket)
        })
        .collect()
    }

    #[test]
    fn a_queue_that_gave_a_message_back_is_tried_with_one() {
        let (mut lane, now) = (Lane::default(), Instant::now());
        (0..10).for_each(|ticket| lane.arrive(ticket));
        assert_eq!(drain(&mut lane, now).len(), 10);
        lane.fail(3, now);
        lane.fail(1, now);
        assert_eq!(lane.first(now), None);
        let later = now + REST;
        assert_eq!(drain(&mut lane, later), [1]);
        lane.fail(1, later);
        assert_eq!(lane.first(later), None);
        assert_eq!(drain(&mut lane, later + REST), [1]);
        lane.leave(1);
        assert_eq!(drain(&mut lane, later + REST), [3]);
    }

    #[test]
    fn a_broken_connection_sends_everything_again_in_the_order_of_acceptance() {
        let (mut lane, now) = (Lane::default(), Instant::now());
        (0..4).for_each(|ticket| lane.arrive(ticket));
        drain(&mut lane, now);
        lane.leave(2);
        lane.arrive(9);
        lane.broken();
        assert_eq!(drain(&mut lane, now), [0, 1, 3, 9]);
    }

    /// One that was tried and replaced meanwhile must not keep the lane shut for ever.
    #[test]
    fn a_try_that_vanishes_opens_the_lane() {
        let (mut lane, now) = (Lane::default(), Instant::now());
        (0..2).for_each(|ticket| lane.arrive(ticket));
        drain(&mut lane, now);
        lane.fail(0, now);
        assert_eq!(drain(&mut lane, now + REST), [0]);
        lane.leave(0);
        lane.arrive(5);
        assert_eq!(drain(&mut lane, now + REST), [5]);
    }
}
