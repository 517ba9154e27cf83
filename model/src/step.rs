//! What may happen next, whatever the moment: every step of every part.

mod faults;
mod reopening;
mod selling;
mod writing;

use crate::bounds::{CALLS, EDGES, ORDERS, WARDENS};
use crate::faults::Faults;
use crate::memory::Holder;
use crate::rules::{Rules, Shape};
use crate::state::{Books, Call, Data, Edge, Redis, Row, State, Warden};
use crate::warden::{Happened, Reopenings};

/// One step, for traces. Numbers are of calls, edges and orders; the last of a message is its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The script runs for a call.
    Ask(usize),
    /// It runs on the deposed Redis.
    AskDeposed(usize),
    /// Its reply is lost.
    LoseReply(usize),
    /// Its reply is taken.
    TakeReply(usize),
    /// The buyer is told "pending".
    GiveUp(usize),
    /// An edge sends an order.
    Publish(usize, usize),
    /// A message comes into the queue, and its sender is told.
    Deliver(usize, usize, u8),
    /// A message comes into the queue, and nobody is told.
    DeliverUnconfirmed(usize, usize, u8),
    /// An edge takes in an order that it finds in the journal.
    Adopt(usize, usize),
    /// An edge deletes a journal entry.
    Erase(usize, usize),
    /// An edge hears the warden's question.
    Hear(usize),
    /// An edge drops what it holds because the sale is frozen.
    DropFrozen(usize),
    /// A writer handles a message.
    Write(usize, u8),
    /// An order is cancelled or expires.
    Cancel(usize),
    /// An order is cancelled before it is written.
    CancelUnwritten(usize),
    /// The outbox brings units back.
    Release(usize),
    /// The warden tells a release again.
    TellReleaseAgain(usize),
    /// Units of an order without a row are brought back.
    ReleaseUnwritten(usize),
    /// The warden publishes what has no row.
    Reconcile(usize),
    /// A warden's re-opening goes on.
    Reopening(usize, Happened),
    /// A warden raises the epoch in the books.
    Raise(usize),
    /// It restores Redis from the books.
    Restore(usize),
    /// A warden puts its question again that is gone.
    AskAgain(usize),
    /// A warden gives a lease.
    Lease(usize),
    /// Scripts are loaded again without a new epoch.
    LoadAgain,
    /// The script refuses a silent edge from now on.
    Refuse(usize),
    /// A silent edge leaves the register.
    StrikeOff(usize),
    /// An edge that is heard comes into the register.
    Register(usize),
    /// The script serves an edge of the register.
    Admit(usize),
    /// A dead edge is proven dead.
    ProveDead(usize),
    /// A paused edge goes on.
    Wake(usize),
    /// The replica catches up.
    Replicate,
    /// The deposed Redis is gone.
    DeposedEnds,
    /// A fault: an edge dies.
    Kill(usize),
    /// A fault: an edge stands still.
    Pause(usize),
    /// A fault: Redis restarts.
    Restart,
    /// A fault: Redis falls back; whether the old one stays reachable.
    FallBack(bool),
    /// A fault: Redis is empty.
    Wipe,
    /// A fault: RabbitMQ is empty.
    LoseBroker,
    /// A fault: power cut.
    PowerCut,
    /// A fault: the warden dies.
    WardenDies,
    /// A fault: the lease lapses.
    Lapse,
    /// A fault: another warden comes to lead as well.
    Rival,
    /// One of two wardens learns that it does not lead.
    StepDown(usize),
}

impl Step {
    /// Whether it is a fault: nothing that the sale needs to come to rest.
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Kill(_)
                | Self::Pause(_)
                | Self::Restart
                | Self::FallBack(_)
                | Self::Wipe
                | Self::LoseBroker
                | Self::PowerCut
                | Self::WardenDies
                | Self::Lapse
                | Self::Rival
        )
    }
}

/// What is explored, and the code that decides.
#[derive(Debug)]
pub struct World {
    /// Who buys what.
    pub shape: Shape,
    /// Which mechanisms work.
    pub rules: Rules,
    pub(crate) holder: Holder,
    pub(crate) reopenings: Reopenings,
}

/// What may come of one moment.
pub type Next = Vec<(Step, State)>;

impl World {
    /// A world; `None` should one of the model's own names be none.
    pub fn new(shape: Shape, rules: Rules) -> Option<Self> {
        Some(Self { shape, rules, holder: Holder::new()?, reopenings: Reopenings::new()? })
    }

    /// The sale is open, nobody has come.
    pub fn begin(&self, faults: Faults) -> State {
        let everybody = (1 << EDGES) - 1;
        let data = Data { epoch: 1, stock: self.shape.units, members: everybody, ..Data::default() };
        let mut calls = [Call::Done; CALLS];
        for (call, attempt) in calls.iter_mut().zip(self.shape.calls) {
            *call = if attempt.is_some() { Call::New } else { Call::Done };
        }
        let books = Books { epoch: 1, rows: [Row::Nothing; ORDERS], due: 0, register: everybody, seq: 0 };
        let replica = if faults.need_a_replica(self.rules.always) { data } else { Data::default() };
        State {
            redis: Redis { data, script: 1 },
            deposed: None,
            replica,
            edges: [Edge::default(); EDGES],
            calls,
            told: 0,
            refused: false,
            net: 0,
            queue: 0,
            books,
            seqs: [0; ORDERS],
            wardens: [Warden::default(); WARDENS],
            rivals: false,
            faults,
        }
    }

    /// Every moment that may follow.
    pub fn next(&self, state: &State, next: &mut Next) {
        self.sell(state, next);
        self.write(state, next);
        state.leaders().for_each(|warden| self.reopen(state, warden, next));
        self.strike(state, next);
    }
}
