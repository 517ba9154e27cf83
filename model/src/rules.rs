//! What is explored: who buys what, which faults may strike, and which mechanisms work.

pub use sluice_protocol::sale::AcceptAfter;

use crate::bounds::{CALLS, ORDERS};

/// Who buys what through which edge.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Units on sale.
    pub units: i8,
    /// The buyer of each order.
    pub buyers: [u8; ORDERS],
    /// Orders that a buyer may hold.
    pub per_buyer: usize,
    /// Attempts: which order, through which edge.
    pub calls: [Option<(usize, usize)>; CALLS],
    /// An order that may be cancelled once it is written.
    pub cancels: Option<usize>,
}

/// One order, the same token through two edges.
pub const ONE_ORDER: Shape = Shape {
    units: 1,
    buyers: [0, 1],
    per_buyer: 1,
    calls: [Some((0, 0)), Some((0, 1)), None],
    cancels: Some(0),
};

/// One order, the same token twice through one edge.
pub const ONE_EDGE: Shape = Shape { calls: [Some((0, 0)), Some((0, 0)), None], cancels: None, ..ONE_ORDER };

/// One order, once.
pub const ONE_BUYER: Shape = Shape { calls: [Some((0, 0)), None, None], cancels: None, ..ONE_ORDER };

/// One unit, two buyers, an edge each.
pub const TWO_BUYERS: Shape = Shape { calls: [Some((0, 0)), Some((1, 1)), None], cancels: None, ..ONE_ORDER };

/// One unit, two buyers, and the first token once more through the other edge.
pub const REPLAY: Shape = Shape { calls: [Some((0, 0)), Some((1, 1)), Some((0, 1))], ..TWO_BUYERS };

/// Two units, and a buyer with two tokens who may have one.
pub const GREEDY: Shape = Shape { units: 2, buyers: [0, 0], ..TWO_BUYERS };

/// Which mechanisms work; a `false` is a mechanism knocked out.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// An edge holds what it accepted; else only the journal does.
    pub memory: bool,
    /// It holds an order until the broker's confirm; else until it has sent it.
    pub until_confirmed: bool,
    /// It keeps a copy of what is confirmed until there is a row, and publishes it when Redis has lost it.
    pub copies: bool,
    /// It does not hold a replay that it keeps a copy of from the same epoch.
    pub spares_copied: bool,
    /// It goes on holding when it is told that the sale is frozen.
    pub holds_frozen: bool,
    /// It goes on publishing while the sale is frozen.
    pub publishes_frozen: bool,
    /// It holds what a replay tells it, like what it accepted.
    pub holds_replays: bool,
    /// Also when the journal has no entry of it any more.
    pub holds_old_replays: bool,
    /// It stamps an order with the epoch of the reply; else with the present one.
    pub stamps_reply: bool,
    /// It closes an epoch before it says that it holds nothing of it.
    pub gate: bool,
    /// A re-opening asks the edges.
    pub collects: bool,
    /// It asks again when somebody has taken the question away.
    pub asks_again: bool,
    /// It waits until they hold nothing; else only until they have heard.
    pub waits: bool,
    /// The register of edges is in PostgreSQL; else in Redis.
    pub register: bool,
    /// A silent edge leaves the register only as the next two say; else by time.
    pub strikes_carefully: bool,
    /// The script refuses it first.
    pub refuses_first: bool,
    /// And the journal holds nothing any more of what was there by then.
    pub leaves_nothing: bool,
    /// reserve.lua refuses an edge that is not in the register.
    pub membership: bool,
    /// Redis writes to disk before it answers.
    pub always: bool,
    /// Edges publish what a dead edge left in the journal.
    pub sweep: bool,
    /// The warden publishes what has no row.
    pub reconciles: bool,
    /// Also what is in the journal.
    pub reconciles_journal: bool,
    /// Writers refuse messages of an epoch that is over.
    pub fence: bool,
    /// A re-opening publishes what has no row.
    pub drains: bool,
    /// A warden ends only the epoch that it has asked the edges to close; else whichever there is.
    pub ends_asked: bool,
    /// Every re-opening raises the epoch; else not where Redis seems to have lost nothing.
    pub raises: Raises,
    /// Only the warden loads scripts.
    pub loads_alone: bool,
    /// It loads them once an epoch.
    pub loads_once: bool,
    /// Journal entries are deleted after the confirm; else with the sending.
    pub erases_confirmed: bool,
    /// Deleting a journal entry leaves the order map alone.
    pub erase_keeps_record: bool,
    /// Units are released only for orders with a row.
    pub releases_rows: bool,
    /// release.lua carries the fence in its text; else it is told the fence that Redis has.
    pub fences_release: bool,
    /// The warden tells again what is dead in the books and held in Redis.
    pub tells_releases_again: bool,
    /// An order without a row may be cancelled: it is inserted as cancelled.
    pub early_cancel: bool,
    /// When buyers are told.
    pub accept_after: AcceptAfter,
    /// A fault strikes only while everything is in two places.
    pub one_after_another: bool,
}

/// When a re-opening raises the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raises {
    /// Always.
    Always,
    /// Unless Redis has seen what PostgreSQL has seen.
    UnlessBooksAgree,
    /// Unless Redis has seen what PostgreSQL and every living edge have seen.
    UnlessEdgesAgree,
}

impl Rules {
    /// The whole protocol.
    pub const fn whole(accept_after: AcceptAfter) -> Self {
        Self {
            memory: true,
            until_confirmed: true,
            copies: true,
            spares_copied: true,
            holds_frozen: true,
            publishes_frozen: true,
            holds_replays: true,
            holds_old_replays: true,
            stamps_reply: true,
            gate: true,
            collects: true,
            asks_again: true,
            waits: true,
            register: true,
            strikes_carefully: true,
            refuses_first: true,
            leaves_nothing: true,
            membership: true,
            always: true,
            sweep: true,
            reconciles: true,
            reconciles_journal: true,
            fence: true,
            drains: true,
            ends_asked: true,
            raises: Raises::Always,
            loads_alone: true,
            loads_once: true,
            erases_confirmed: true,
            erase_keeps_record: true,
            releases_rows: true,
            fences_release: true,
            tells_releases_again: true,
            early_cancel: false,
            accept_after,
            one_after_another: false,
        }
    }
}
