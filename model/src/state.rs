//! One moment of the whole system, small enough for millions of them.

use crate::bounds::{CALLS, EDGES, EPOCHS, ORDERS, WARDENS};
use crate::faults::{Faults, pack};

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
    /// Whether there is no lease: it lapsed, a warden has ended it, or none was given yet.
    pub closing: bool,
    /// The epoch that edges are asked to close; 0 for none.
    pub asked: u8,
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
    /// Epoch of the copy of each order that the broker has confirmed and that has no row; 0 for none.
    pub copies: [u8; ORDERS],
    /// The epoch of which it has said that it holds nothing, since each warden asked.
    pub said: [u8; WARDENS],
    /// Orders that the journal still had when the script began to refuse it, a bit each.
    pub owes: u8,
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

/// A warden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Warden {
    /// Where its re-opening stands; see [`crate::warden`].
    pub at: u16,
    /// The epoch of the books when it asked the edges.
    pub booked: u8,
    /// The epoch that it has begun in the books and not yet in Redis; 0 for none.
    pub raised: u8,
    /// The epoch whose scripts it is to load; 0 for none.
    pub loading: u8,
    /// The rows as they were when it read them, to make Redis anew from; see [`crate::rules::Rules`].
    pub image: [u8; ORDERS],
    /// Whether Redis is the one that it began with.
    pub same: bool,
    /// Whether its barrier is in the queue or has come through.
    pub barrier: bool,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// PostgreSQL.
    pub books: Books,
    /// Sequence number of each order's last reservation.
    pub seqs: [u8; ORDERS],
    /// The wardens; the second one idles unless there are rivals.
    pub wardens: [Warden; WARDENS],
    /// Whether both wardens believe that they lead.
    pub rivals: bool,
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

    /// Whether Redis has data and scripts of the epoch of the books: a lease is all that it may lack.
    pub fn is_loaded(&self) -> bool {
        self.redis.script == self.redis.data.epoch && self.redis.data.epoch == self.books.epoch
    }

    /// Whether the sale sells, as the books mean it.
    pub fn open(&self) -> bool {
        self.redis.sells() && self.redis.data.epoch == self.books.epoch
    }

    /// The wardens that believe that they lead.
    pub fn leaders(&self) -> std::ops::Range<usize> {
        0..if self.rivals { WARDENS } else { 1 }
    }

    /// Orders that the journal has, a bit each.
    pub fn journalled(&self) -> u8 {
        let has = |order: &usize| self.redis.data.journal[*order] > 0;
        (0..ORDERS).filter(has).fold(0, |all, order| all | 1 << order)
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

    /// Whether an order is dead in the books and still has its unit in Redis.
    pub fn dead_and_held(&self, order: usize) -> bool {
        self.reserved(order) && matches!(self.books.rows[order], Row::Cancelled | Row::Failed)
    }

    /// Units that rows have taken.
    pub fn taken(&self) -> i8 {
        let live = self.books.rows.iter().filter(|row| **row == Row::Live).count();
        i8::try_from(live).unwrap_or(i8::MAX)
    }

    /// What became of an order stands in the books; copies of it are of no use any more.
    pub fn book(&mut self, order: usize, row: Row) {
        self.books.rows[order] = row;
        self.edges.iter_mut().for_each(|edge| edge.copies[order] = 0);
    }

    /// Whether any message of this order is in the queue.
    pub fn is_queued(&self, order: usize) -> bool {
        (1..=EPOCHS).any(|epoch| self.queue & Self::queued(order, epoch) != 0)
    }
}

impl Redis {
    fn packed(&self) -> u64 {
        let Data { epoch, stock, seq, cells, journal, members, closing, asked } = self.data;
        let small = [epoch, seq, members, u8::from(closing), asked, self.script];
        let all = pack(pack(0, 4, small), 4, cells.map(|cell| cell as u8));
        pack(all, 4, journal) << 8 | u64::from(stock.cast_unsigned())
    }
}

impl Edge {
    fn packed(&self) -> u64 {
        let Memory { closed, stamps } = self.memory;
        let all = pack(0, 4, [self.life as u8, closed, self.owes]);
        let all = pack(pack(all, 4, stamps), 4, self.erase);
        pack(pack(all, 4, self.copies), 4, self.said) << 8 | u64::from(self.seen)
    }
}

impl Call {
    fn packed(self) -> u8 {
        match self {
            Self::New => 0,
            Self::Waiting => 1,
            Self::Done => 2,
            Self::Reply(epoch, said) => {
                let said = match said {
                    Said::Taken => 4,
                    Said::Replay(journalled) => 5 + u8::from(journalled),
                    Said::Refused => 7,
                };
                epoch << 3 | said
            }
        }
    }
}

impl Warden {
    fn packed(self) -> u64 {
        let small = [self.booked, self.raised, self.loading, u8::from(self.same), u8::from(self.barrier)];
        pack(pack(u64::from(self.at), 4, small), 4, self.image)
    }
}

impl State {
    /// All of it in a few numbers: no two moments have the same.
    pub fn packed(&self) -> [u64; 10] {
        let Books { epoch, rows, due, register, seq } = self.books;
        let small = [epoch, due, register, seq, self.told, u8::from(self.refused)];
        let books = pack(pack(0, 4, small), 4, rows.map(|row| row as u8));
        let books = pack(books, 4, self.seqs);
        let calls = pack(0, 8, self.calls.map(Call::packed));
        let replica = Redis { data: self.replica, script: 0 };
        let [first, second] = self.edges;
        let [leader, rival] = self.wardens;
        [
            self.redis.packed(),
            replica.packed(),
            self.deposed.map_or(0, |other| other.packed() << 1 | 1),
            self.net,
            calls << 40 | books,
            first.packed(),
            second.packed(),
            leader.packed() << 1 | u64::from(self.rivals),
            rival.packed(),
            self.faults.packed() << 16 | u64::from(self.queue),
        ]
    }
}
