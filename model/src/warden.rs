//! Where a re-opening stands, decided by the warden's own [`Reopening`]: every state that it comes into
//! is kept once, and a state of the model has its number.

use sluice_protocol::clock::Millis;
use sluice_protocol::ids::InstanceId;
use sluice_protocol::warden::reopening::{Command, Event, Reopening};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// No re-opening.
pub const IDLE: u16 = 0;

/// When edges are asked, by Redis' clock; the model's time stands still.
const ASKED: Millis = Millis(1);
/// After this a barrier counts as lost.
const LATER: Duration = Duration::from_secs(3600);

/// What happened to a re-opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// It begins.
    Begins,
    /// The lease has ended, the question for this epoch stands.
    Closed(u8),
    /// Every edge asked has answered.
    AllAnswered,
    /// What had no row is published.
    Drained,
    /// The barrier is in the queue.
    BarrierPushed,
    /// It has come through.
    BarrierThrough,
    /// It never will.
    BarrierLost,
    /// Orders without a row have turned up.
    Unwritten,
    /// Epoch and scripts are new.
    Raised,
    /// Redis is another one.
    RedisFault,
    /// Another warden has ended the epoch, or Redis is further.
    Overtaken,
    /// The pause is over.
    Rested,
}

/// Every state of a re-opening that was met, with what is to be done in it.
#[derive(Debug)]
pub struct Reopenings {
    began: Instant,
    edge: InstanceId,
    all: RefCell<Vec<(Reopening, Command)>>,
    numbers: RefCell<HashMap<(Reopening, Command), u16>>,
}

impl Reopenings {
    /// None met yet; `None` should the edge's name be none.
    pub fn new() -> Option<Self> {
        let edge = InstanceId::parse("edge.1.a").ok()?;
        let idle = (Reopening::begin(), Command::Finish);
        let numbers = RefCell::new(HashMap::from([(idle.clone(), IDLE)]));
        Some(Self { began: Instant::now(), edge, all: RefCell::new(vec![idle]), numbers })
    }

    /// What is to be done.
    pub fn command(&self, at: u16) -> Command {
        self.all.borrow()[usize::from(at)].1.clone()
    }

    /// Where a re-opening stands after something has happened.
    pub fn after(&self, at: u16, happened: Happened) -> u16 {
        let (mut machine, _) = self.all.borrow()[usize::from(at)].clone();
        let now = self.began;
        let command = match happened {
            Happened::Begins => {
                machine = Reopening::begin();
                Command::Close
            }
            Happened::Closed(epoch) => {
                machine.next(Event::Closed { epoch: u64::from(epoch), asked: ASKED }, now)
            }
            Happened::AllAnswered => {
                let word = BTreeMap::from([(self.edge.clone(), Some((ASKED, u64::MAX)))]);
                machine.next(Event::Heard(word), now)
            }
            Happened::Drained => machine.next(Event::Drained(0), now),
            Happened::BarrierPushed => machine.next(Event::BarrierPushed, now),
            Happened::BarrierThrough => machine.next(Event::BarrierThrough(1, 1), now),
            Happened::BarrierLost => machine.next(Event::BarrierThrough(0, 1), now + LATER),
            Happened::Unwritten => machine.next(Event::Unwritten, now),
            Happened::Raised => machine.next(Event::Raised, now),
            Happened::RedisFault => machine.next(Event::RedisFault, now),
            Happened::Overtaken => machine.next(Event::Trouble, now),
            Happened::Rested => machine.rested(),
        };
        if command == Command::Finish {
            return IDLE;
        }
        self.number((machine, command))
    }

    /// Whether the machine waits for this edge's word, given what it has said.
    pub fn waits_for(&self, at: u16, said: u8) -> bool {
        let (mut machine, _) = self.all.borrow()[usize::from(at)].clone();
        let word = (said > 0).then_some((ASKED, u64::from(said)));
        machine.next(Event::Heard(BTreeMap::from([(self.edge.clone(), word)])), self.began);
        !machine.waited_for().is_empty()
    }

    fn number(&self, state: (Reopening, Command)) -> u16 {
        let mut all = self.all.borrow_mut();
        *self.numbers.borrow_mut().entry(state).or_insert_with_key(|state| {
            all.push(state.clone());
            u16::try_from(all.len() - 1).unwrap_or(u16::MAX)
        })
    }
}
