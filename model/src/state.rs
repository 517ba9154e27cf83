//! One moment of the whole system, small enough for millions of them.

use crate::bounds::{CALLS, EDGES, EPOCHS, ORDERS};
use crate::rules::Faults;

/// An order in Redis' order map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Cell {
    /// Not there.
    #[default]
    Nothing,
    /// It holds its unit.
    Reserved,
    /// Its unit went back, or never was taken.
    Released,
}

/// A data set of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Data {
    /// Its epoch; 0 when it is empty.
    pub epoch: u8,
    /// Units left.
    pub stock: i8,
    /// Reservations so far.
    pub seq: u8,
    /// The order map.
    pub cells: [Cell; ORDERS],
    /// Epoch of each order's journal entry; 0 for none.
    pub journal: [u8; ORDERS],
    /// Edges that may reserve, a bit each.
    pub members: u8,
    /// Whether a warden has ended the lease.
    pub closing: bool,
}

/// A server: its data, and the epoch of the scripts that it has loaded; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Redis {
    /// The data.
    pub data: Data,
    /// The scripts.
    pub script: u8,
}

impl Redis {
    /// Whether it sells.
    pub fn sells(&self) -> bool {
        self.script != 0 && self.script == self.data.epoch && !self.data.closing
    }
}

/// An order's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Row {
    /// None.
    #[default]
    Nothing,
    /// It counts as taken.
    Live,
    /// Cancelled or expired.
    Cancelled,
    /// The books had no unit for it.
    Failed,
}

/// PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Books {
    /// The epoch.
    pub epoch: u8,
    /// The rows.
    pub rows: [Row; ORDERS],
    /// Releases that the outbox has to bring about, a bit an order.
    pub due: u8,
    /// Edges that may hold orders, a bit each.
    pub register: u8,
    /// The highest sequence number in a row.
    pub seq: u8,
}

/// Whether an edge runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Life {
    /// It runs.
    #[default]
    Up,
    /// It stands still.
    Paused,
    /// It is gone.
    Dead,
}

/// What an edge holds: see [`crate::memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Memory {
    /// The newest epoch that is closed.
    pub closed: u8,
    /// Epoch that each order is held under; 0 for not held.
    pub stamps: [u8; ORDERS],
}

/// An edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Edge {
    /// Whether it runs.
    pub life: Life,
    /// What it holds.
    pub memory: Memory,
    /// Journal entries to delete, by their epoch; 0 for none.
    pub erase: [u8; ORDERS],
    /// The epoch of which it has said that it holds nothing, since it was asked.
    pub said: u8,
    /// The highest sequence number that it has seen.
    pub seen: u8,
}

/// What the script said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Said {
    /// The order has its unit now.
    Taken,
    /// It was known already; whether the journal had its entry.
    Replay(bool),
    /// It cannot have one, although its buyer was told before that it has.
    Refused,
}

/// An attempt to buy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Call {
    /// Not begun.
    #[default]
    New,
    /// The script has run; its reply of this epoch is under way.
    Reply(u8, Said),
    /// Held, and the buyer waits for the broker's confirm.
    Waiting,
    /// Over.
    Done,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// The Redis that everybody means.
    pub redis: Redis,
    /// One that was deposed and can still be reached.
    pub deposed: Option<Redis>,
    /// What the replica has; the present data when nobody asks.
    pub replica: Data,
    /// The edges.
    pub edges: [Edge; EDGES],
    /// The attempts.
    pub calls: [Call; CALLS],
    /// Orders whose buyers were told that they are accepted, a bit each.
    pub told: u8,
    /// Whether such a buyer was refused afterwards.
    pub refused: bool,
    /// Messages on the way to the broker; see [`State::message`].
    pub net: u64,
    /// Messages in the queue, a bit for each order and epoch.
    pub queue: u16,
    /// Whether the barrier is in the queue or has come through.
    pub barrier: bool,
    /// PostgreSQL.
    pub books: Books,
    /// Sequence number of each order's last reservation.
    pub seqs: [u8; ORDERS],
    /// Where the re-opening stands; see [`crate::warden`].
    pub warden: u16,
    /// The epoch whose data is restored and whose scripts are to be loaded; 0 for none.
    pub loading: u8,
    /// Whether Redis is the one that the re-opening began with.
    pub same: bool,
    /// Faults that may still strike.
    pub faults: Faults,
}

/// Who sends a message besides the edges: the warden.
pub const WARDEN: usize = EDGES;

impl State {
    /// The bit in [`State::net`] of an order's message, of an epoch, from an edge or the warden.
    pub fn message(from: usize, order: usize, epoch: u8) -> u64 {
        1 << ((from * ORDERS + order) * usize::from(EPOCHS) + usize::from(epoch) - 1)
    }

    /// The bit in [`State::queue`] of an order's message of an epoch.
    pub fn queued(order: usize, epoch: u8) -> u16 {
        1 << (order * usize::from(EPOCHS) + usize::from(epoch) - 1)
    }

    /// Whether the sale sells, as the books mean it.
    pub fn open(&self) -> bool {
        self.redis.sells() && self.redis.data.epoch == self.books.epoch
    }

    /// Whether buyers of this order were told that it is accepted.
    pub fn is_told(&self, order: usize) -> bool {
        self.told & (1 << order) != 0
    }

    /// Whether it holds its unit in Redis.
    pub fn reserved(&self, order: usize) -> bool {
        self.redis.data.cells[order] == Cell::Reserved
    }

    /// Whether an order holds its unit in Redis and has no row.
    pub fn unwritten(&self, order: usize) -> bool {
        self.reserved(order) && self.books.rows[order] == Row::Nothing
    }

    /// Units that rows have taken.
    pub fn taken(&self) -> i8 {
        let live = self.books.rows.iter().filter(|row| **row == Row::Live).count();
        i8::try_from(live).unwrap_or(i8::MAX)
    }

    /// Whether any message of this order is in the queue.
    pub fn is_queued(&self, order: usize) -> bool {
        (1..=EPOCHS).any(|epoch| self.queue & Self::queued(order, epoch) != 0)
    }
}
