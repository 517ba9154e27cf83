//! What wardens and edges tell each other through Redis.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::ids::{InstanceId, SaleId, SkuId};

/// A step of a sale's life, as PostgreSQL and `meta` hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaleStep {
    /// Known to the back office only.
    Created,
    /// On the shelf, not armed.
    Preloaded,
    /// Sells within its window.
    Open,
    /// Refuses until resumed.
    Paused,
    /// Over.
    Closed,
}

impl SaleStep {
    /// The word in rows, `meta` and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Preloaded => "preloaded",
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Closed => "closed",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Created, Self::Preloaded, Self::Open, Self::Paused, Self::Closed]
            .into_iter()
            .find(|step| step.as_str() == word)
    }
}

/// When an order counts as accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcceptAfter {
    /// When the script has run: the journal is durable (`appendfsync always`).
    Journal,
    /// When the broker has confirmed, else `pending`.
    Broker,
}

/// One thing of a sale as edges need it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The SKU.
    pub sku: SkuId,
    /// What buyers read.
    pub title: String,
    /// Price of a unit in minor units of the currency.
    pub price: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// Units one user may hold.
    pub per_user: u32,
}

/// A sale as edges know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaleView {
    /// The sale.
    pub sale: SaleId,
    /// Its number in order ids.
    pub number: u32,
    /// Preloaded, open, paused or closed.
    pub step: SaleStep,
    /// When selling starts.
    pub starts_at: Millis,
    /// When it ends.
    pub ends_at: Millis,
    /// Configuration version; grows with each change.
    pub cfg: u64,
    /// How many segments.
    pub segments: u16,
    /// When an order counts as accepted.
    pub accept_after: AcceptAfter,
    /// Epoch of each segment; 0 where it is frozen by the warden.
    pub epochs: Vec<u64>,
    /// What is sold, in the order of the back office.
    pub items: Vec<Item>,
}

/// What a re-opening asks of every edge, for one segment: to close this epoch and all before it, and to
/// say so once nothing of them is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Question {
    /// The epoch to close.
    pub epoch: u64,
    /// When it was asked, by Redis' clock: a later question of the same epoch wants a new answer.
    pub asked: Millis,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.epoch, self.asked.0)
    }
}

impl Question {
    /// Reads what [`Display`](fmt::Display) writes: `epoch@milliseconds`.
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, asked) = text.split_once('@')?;
        Some(Self { epoch: epoch.parse().ok()?, asked: Millis(asked.parse().ok()?) })
    }
}

impl From<Question> for String {
    fn from(question: Question) -> Self {
        question.to_string()
    }
}

impl TryFrom<String> for Question {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not EPOCH@MILLISECONDS"))
    }
}

/// One edge's sign of life, and its answers to the warden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// This start of the edge.
    pub instance: InstanceId,
    /// Its configured name.
    pub name: String,
    /// Identity of its lock file: who holds that lock proves all earlier starts dead.
    pub lock: String,
    /// Which start of that lock file this is; grows by one each time.
    pub start: u64,
    /// When it was written, by Redis' clock as the edge knows it.
    pub at: Millis,
    /// Generation of the sale list that the edge works by.
    pub generation: u64,
    /// Orders it holds that no broker has confirmed.
    pub held: u64,
    /// Whether it is shutting down.
    pub draining: bool,
    /// Whether this is its last word: it has ended, and holds nothing.
    pub gone: bool,
    /// `sale:segment` → the question that it answers: this epoch is closed for good and nothing of it is
    /// held.
    pub closed: BTreeMap<String, Question>,
    /// Whether the broker is connected.
    pub broker: bool,
}
