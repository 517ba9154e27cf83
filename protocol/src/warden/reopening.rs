//! The re-opening of one sale segment, as a state machine without I/O: what happened goes in, what to
//! do next comes out.
//!
//! Freeze, every registered edge closes the epoch and holds nothing of it, the accepted orders without
//! a row are published, a barrier message comes through every write queue, Redis is compared with the
//! books, the epoch is raised, its scripts are loaded once. Nothing here is remembered across a crash:
//! the next leader starts from the first step with what the stores say, and each step may be repeated.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::clock::Millis;
use crate::ids::InstanceId;

/// A barrier that has not come through by then was lost with its broker, or the writers are away, or have
/// much to write: the next one is given twice as long, up to the second figure.
const BARRIER: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(300)];
/// Between two looks at what others have to do.
const LOOK: Duration = Duration::from_millis(50);
/// After something that did not work.
const AGAIN: Duration = Duration::from_millis(100);
/// Between two comparisons of a segment that does not fit its books.
const FROZEN: Duration = Duration::from_secs(5);

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Command {
    /// End the lease, and ask the edges to close the epoch.
    Close,
    /// Read the register and the heartbeats, after a pause.
    Listen(Duration),
    /// Publish every accepted order without a row, with confirm.
    Drain,
    /// Send a new barrier through every write queue, with confirm.
    PushBarrier,
    /// Look how far the barrier has come, after a pause.
    WatchBarrier(Duration),
    /// Compare Redis with the books, and raise the epoch when they agree.
    Raise,
    /// Wait, then begin again.
    Rest(Duration),
    /// Done: the segment may be leased again.
    Finish,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The lease has ended and the question stands in Redis since then, by Redis' clock.
    Closed {
        /// The epoch that edges have to close.
        epoch: u64,
        /// When.
        asked: Millis,
    },
    /// The register, and what each edge in it last said: when the question was asked that it answers, and
    /// which epoch of this segment it has closed and holds nothing of.
    Heard(BTreeMap<InstanceId, Option<(Millis, u64)>>),
    /// So many orders were published and confirmed.
    Drained(usize),
    /// The barrier is in every write queue.
    BarrierPushed,
    /// The barrier has come through this many of so many queues.
    BarrierThrough(usize, usize),
    /// Redis and the books agree; epoch and scripts are new.
    Raised,
    /// Accepted orders without a row have turned up.
    Unwritten,
    /// Redis and the books differ.
    Different,
    /// Redis is another one than at the beginning, or did not answer.
    RedisFault,
    /// RabbitMQ or PostgreSQL did not answer.
    Trouble,
}

/// Where a re-opening stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Freezing.
    Closing,
    /// Waiting for edges.
    Collecting,
    /// Publishing what has no row.
    Draining,
    /// Waiting for the writers.
    Barrier,
    /// Comparing.
    Verifying,
    /// Does not fit its books.
    Frozen,
    /// Open again.
    Done,
}

impl Stage {
    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closing => "closing",
            Self::Collecting => "collecting",
            Self::Draining => "draining",
            Self::Barrier => "barrier",
            Self::Verifying => "verifying",
            Self::Frozen => "frozen",
            Self::Done => "done",
        }
    }
}

/// One re-opening.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reopening {
    stage: Stage,
    epoch: u64,
    asked: Millis,
    pushed: Option<Instant>,
    /// How long the present barrier may take.
    patience: Duration,
    waited_for: Vec<InstanceId>,
}

impl Reopening {
    /// A re-opening that begins; the first thing to do is [`Command::Close`].
    pub fn begin() -> Self {
        Self {
            stage: Stage::Closing,
            epoch: 0,
            asked: Millis(0),
            pushed: None,
            patience: BARRIER[0],
            waited_for: Vec::new(),
        }
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The edges that have not closed the epoch yet.
    pub fn waited_for(&self) -> &[InstanceId] {
        &self.waited_for
    }

    /// Takes note of what happened; says what to do next.
    pub fn next(&mut self, event: Event, now: Instant) -> Command {
        match event {
            // A new Redis may have lost what the old one knew: every edge is asked again.
            Event::RedisFault => {
                self.stage = Stage::Closing;
                Command::Rest(AGAIN)
            }
            Event::Closed { epoch, asked } => {
                (self.stage, self.epoch, self.asked) = (Stage::Collecting, epoch, asked);
                self.waited_for.clear();
                Command::Listen(Duration::ZERO)
            }
            Event::Heard(edges) => self.heard(edges),
            Event::Drained(_) => {
                (self.stage, self.pushed) = (Stage::Barrier, None);
                Command::PushBarrier
            }
            Event::BarrierPushed => {
                self.pushed = Some(now);
                Command::WatchBarrier(Duration::ZERO)
            }
            Event::BarrierThrough(some, all) if some >= all => {
                self.stage = Stage::Verifying;
                Command::Raise
            }
            Event::BarrierThrough(..) => self.barrier_waits(now),
            Event::Raised => {
                self.stage = Stage::Done;
                Command::Finish
            }
            Event::Unwritten => self.begin_again(),
            Event::Different => {
                self.stage = Stage::Frozen;
                Command::Rest(FROZEN)
            }
            Event::Trouble => self.trouble(),
        }
    }

    /// After [`Command::Rest`].
    pub fn rested(&mut self) -> Command {
        self.stage = Stage::Closing;
        Command::Close
    }

    /// Every edge in the register must have answered since it was asked.
    fn heard(&mut self, edges: BTreeMap<InstanceId, Option<(Millis, u64)>>) -> Command {
        let (asked, epoch) = (self.asked, self.epoch);
        let answered =
            |word: &Option<(Millis, u64)>| word.is_some_and(|(at, closed)| at >= asked && closed >= epoch);
        self.waited_for =
            edges.into_iter().filter(|(_, word)| !answered(word)).map(|(edge, _)| edge).collect();
        if !self.waited_for.is_empty() {
            return Command::Listen(LOOK);
        }
        self.stage = Stage::Draining;
        Command::Drain
    }

    /// A barrier that is lost means a broker that lost its queues: what was confirmed before may be
    /// lost too, so edges and order map are looked at again before the next one.
    fn barrier_waits(&mut self, now: Instant) -> Command {
        match self.pushed {
            Some(pushed) if now.duration_since(pushed) < self.patience => Command::WatchBarrier(LOOK),
            _ => {
                // What the former one waits behind is published again, and in the new one's way too.
                self.patience = (self.patience * 2).min(BARRIER[1]);
                self.begin_again()
            }
        }
    }

    fn begin_again(&mut self) -> Command {
        self.stage = Stage::Closing;
        Command::Rest(AGAIN)
    }

    fn trouble(&mut self) -> Command {
        match self.stage {
            // Nothing but a look was missed.
            Stage::Collecting => Command::Listen(AGAIN),
            Stage::Barrier if self.pushed.is_some() => Command::WatchBarrier(AGAIN),
            _ => self.begin_again(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn edge(name: &str) -> InstanceId {
        InstanceId::parse(name).unwrap()
    }

    fn collecting(now: Instant) -> Reopening {
        let mut machine = Reopening::begin();
        let asked = Event::Closed { epoch: 3, asked: Millis(1000) };
        assert_eq!(machine.next(asked, now), Command::Listen(Duration::ZERO));
        machine
    }

    fn heard(words: &[(&str, Option<(i64, u64)>)]) -> Event {
        Event::Heard(
            words.iter().map(|(name, word)| (edge(name), word.map(|(at, e)| (Millis(at), e)))).collect(),
        )
    }

    #[test]
    fn the_steps_come_in_their_order() {
        let now = Instant::now();
        let mut machine = collecting(now);
        assert_eq!(machine.next(heard(&[("a", Some((1000, 3)))]), now), Command::Drain);
        assert_eq!(machine.next(Event::Drained(7), now), Command::PushBarrier);
        assert_eq!(machine.next(Event::BarrierPushed, now), Command::WatchBarrier(Duration::ZERO));
        assert_eq!(machine.next(Event::BarrierThrough(1, 4), now), Command::WatchBarrier(LOOK));
        assert_eq!(machine.next(Event::BarrierThrough(4, 4), now), Command::Raise);
        assert_eq!(machine.next(Event::Raised, now), Command::Finish);
        assert_eq!(machine.stage(), Stage::Done);
    }

    #[test]
    fn every_registered_edge_is_waited_for() {
        let now = Instant::now();
        let silent: [Option<(i64, u64)>; 3] = [None, Some((999, 3)), Some((2000, 2))];
        for word in silent {
            let mut machine = collecting(now);
            let event = heard(&[("a", Some((1000, 3))), ("b", word)]);
            assert_eq!(machine.next(event, now), Command::Listen(LOOK), "{word:?}");
            assert_eq!(machine.waited_for(), [edge("b")]);
        }
        assert_eq!(collecting(now).next(heard(&[]), now), Command::Drain);
    }

    #[test]
    fn a_new_fault_asks_every_edge_again() {
        let now = Instant::now();
        for events in [vec![], vec![Event::Drained(0), Event::BarrierPushed]] {
            let mut machine = collecting(now);
            machine.next(heard(&[]), now);
            for event in events {
                machine.next(event, now);
            }
            assert_eq!(machine.next(Event::RedisFault, now), Command::Rest(AGAIN));
            assert_eq!(machine.rested(), Command::Close);
        }
    }

    #[test]
    fn a_barrier_that_is_lost_begins_the_collection_again() {
        let now = Instant::now();
        let mut machine = collecting(now);
        machine.next(heard(&[]), now);
        machine.next(Event::Drained(0), now);
        machine.next(Event::BarrierPushed, now);
        assert_eq!(machine.next(Event::Trouble, now), Command::WatchBarrier(AGAIN));
        assert_eq!(machine.next(Event::BarrierThrough(3, 4), now + BARRIER[0]), Command::Rest(AGAIN));
        assert_eq!(machine.rested(), Command::Close);
    }

    #[test]
    fn each_barrier_that_is_lost_gives_the_next_one_twice_as_long() {
        let mut now = Instant::now();
        let mut machine = collecting(now);
        for patience in [10, 20, 40, 80, 160, 300, 300].map(Duration::from_secs) {
            machine.next(Event::Drained(0), now);
            machine.next(Event::BarrierPushed, now);
            let early = now + patience - LOOK;
            assert_eq!(machine.next(Event::BarrierThrough(3, 4), early), Command::WatchBarrier(LOOK));
            now += patience;
            assert_eq!(machine.next(Event::BarrierThrough(3, 4), now), Command::Rest(AGAIN));
        }
    }

    #[test]
    fn what_differs_stays_frozen_and_is_compared_again() {
        let now = Instant::now();
        let mut machine = collecting(now);
        assert_eq!(machine.next(Event::Different, now), Command::Rest(FROZEN));
        assert_eq!(machine.stage(), Stage::Frozen);
        assert_eq!(machine.rested(), Command::Close);
        assert_eq!(machine.next(Event::Unwritten, now), Command::Rest(AGAIN));
    }

    #[test]
    fn trouble_with_other_servers_repeats_what_is_safe_to_repeat() {
        let now = Instant::now();
        let mut machine = collecting(now);
        assert_eq!(machine.next(Event::Trouble, now), Command::Listen(AGAIN));
        machine.next(heard(&[]), now);
        assert_eq!(machine.next(Event::Trouble, now), Command::Rest(AGAIN));
        assert_eq!(machine.rested(), Command::Close);
    }
}
