//! The HTTP/1.1 client that makes the load: requests as bytes, answers as outcomes.
//!
//! [`engine`] sends what a [`Load`] asks for when it is due, over many keep-alive connections whose
//! own addresses are spread over 127.x, one thread for all of them. [`call`] is one request at a time,
//! for drills that do one thing after the other.

pub mod answer;
pub mod call;
mod connection;
pub mod engine;
pub mod outcome;

use bytes::Bytes;
use sluice_shared::ids::OrderId;

use answer::Answer;
use outcome::Outcome;

/// Microseconds since the load began.
pub type Micros = u64;

/// What a request is for. The word is what logs and tables say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A sale token is fetched.
    Token,
    /// The first order with a token.
    Buy,
    /// The second click of a double click.
    Twin,
    /// The same token again, later.
    Again,
    /// A second token of a user who has what he may have.
    Second,
    /// More units than a user may have.
    Greedy,
    /// A sale token of nobody's.
    Forged,
    /// A sale token that has expired.
    Expired,
    /// A JWT of nobody's.
    Stranger,
    /// One of very many from one address.
    Bot,
    /// A payment notice.
    Pay,
    /// An order is looked at.
    Look,
    /// An order is given up.
    Cancel,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Token,
        Self::Buy,
        Self::Twin,
        Self::Again,
        Self::Second,
        Self::Greedy,
        Self::Forged,
        Self::Expired,
        Self::Stranger,
        Self::Bot,
        Self::Pay,
        Self::Look,
        Self::Cancel,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Buy => "buy",
            Self::Twin => "twin",
            Self::Again => "again",
            Self::Second => "second",
            Self::Greedy => "greedy",
            Self::Forged => "forged",
            Self::Expired => "expired",
            Self::Stranger => "stranger",
            Self::Bot => "bot",
            Self::Pay => "pay",
            Self::Look => "look",
            Self::Cancel => "cancel",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Whether it asks for units.
    pub fn is_order(self) -> bool {
        matches!(
            self,
            Self::Buy
                | Self::Twin
                | Self::Again
                | Self::Second
                | Self::Greedy
                | Self::Forged
                | Self::Expired
                | Self::Stranger
                | Self::Bot
        )
    }
}

/// Which connections a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Those of the crowd, each from an address of its own.
    Crowd,
    /// Those of the bots, all from one address.
    Bots,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Shot {
    /// When it is to be sent, whatever became of the others.
    pub due: Micros,
    /// What it is for.
    pub kind: Kind,
    /// Whose it is.
    pub buyer: u32,
    /// The order of its sale token.
    pub order: Option<OrderId>,
    /// Units that it asks for.
    pub units: u32,
    /// Its bytes.
    pub request: Bytes,
    /// What may come of it; anything else is a failure.
    pub allowed: &'static [Outcome],
    /// Its connections.
    pub lane: Lane,
    /// Which attempt at the same thing, from 0.
    pub attempt: u16,
}

/// Who wants what, when.
pub trait Load {
    /// The connections stand and the clock runs: the plan counts from `now`.
    fn begin(&mut self, now: Micros) {
        let _ = now;
    }

    /// When the next request of the plan is due; `None` when there is none left.
    fn peek(&self) -> Option<Micros>;

    /// Takes it.
    fn take(&mut self) -> Option<Shot>;

    /// An answer came at `now`; what follows from it is pushed into `more`.
    fn answered(&mut self, shot: &Shot, answer: &Answer<'_>, now: Micros, more: &mut Vec<Shot>);
}

/// One request with what came of it: a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// When it should have been sent.
    pub due: Micros,
    /// When it was.
    pub sent: Micros,
    /// When its answer was whole.
    pub done: Micros,
    /// What it was for.
    pub kind: Kind,
    /// Whose it was.
    pub buyer: u32,
    /// The order of its sale token.
    pub order: Option<OrderId>,
    /// The order that the answer names.
    pub named: Option<OrderId>,
    /// Units that it asked for.
    pub units: u32,
    /// The answer's status, 0 when there was none.
    pub status: u16,
    /// What it amounted to.
    pub outcome: Outcome,
}

impl Entry {
    /// What became of a shot.
    pub fn of(shot: &Shot, sent: Micros, done: Micros, answer: &Answer<'_>) -> Self {
        Self {
            due: shot.due,
            sent,
            done,
            kind: shot.kind,
            buyer: shot.buyer,
            order: shot.order,
            named: answer.order,
            units: shot.units,
            status: answer.status,
            outcome: answer.outcome,
        }
    }

    /// From when it was due to when it was answered: what its buyer felt.
    pub fn latency(&self) -> Micros {
        self.done.saturating_sub(self.due)
    }
}
