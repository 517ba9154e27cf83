//! What must never be.

use crate::bounds::ORDERS;
use crate::state::{Call, Cell, Life, Row, State};
use crate::step::World;
use crate::warden::IDLE;

/// Something that must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// Units left and units held are not the units of the sale.
    Ledger,
    /// A buyer has more than he may.
    Limit,
    /// A buyer who was told "accepted" was refused, or his order failed.
    AcceptedThenRefused,
    /// An accepted order is nowhere.
    AcceptedLost,
    /// A unit is held by nobody's order.
    Leak,
    /// An order has a unit that the shelf has not given.
    Phantom,
    /// From here on the sale never comes to rest.
    Stuck,
}

impl World {
    /// What is wrong with a moment.
    pub fn violation(&self, state: &State) -> Option<Violation> {
        let rows = &state.books.rows;
        let told_and_failed = (0..ORDERS).any(|order| state.is_told(order) && rows[order] == Row::Failed);
        if state.refused || told_and_failed {
            return Some(Violation::AcceptedThenRefused);
        }
        let data = &state.redis.data;
        let reserved = data.cells.iter().filter(|cell| **cell == Cell::Reserved).count();
        let reserved = i8::try_from(reserved).unwrap_or(i8::MAX);
        if state.redis.sells() && (data.stock < 0 || data.stock + reserved != self.shape.units) {
            return Some(Violation::Ledger);
        }
        let of = |buyer: u8| {
            let live = (0..ORDERS).filter(|order| rows[*order] == Row::Live);
            live.filter(|order| self.shape.buyers[*order] == buyer).count()
        };
        if self.shape.buyers.iter().any(|buyer| of(*buyer) > self.shape.per_buyer) {
            return Some(Violation::Limit);
        }
        if !self.at_rest(state) {
            return None;
        }
        for (order, row) in rows.iter().enumerate() {
            let told = state.is_told(order);
            match (row, state.reserved(order)) {
                (Row::Nothing, _) if told => return Some(Violation::AcceptedLost),
                (Row::Nothing, true) => return Some(Violation::Leak),
                (Row::Live, false) => return Some(Violation::Phantom),
                (Row::Cancelled | Row::Failed, true) => return Some(Violation::Leak),
                _ => {}
            }
        }
        None
    }

    /// Whether nothing is under way that would still change something. A message on the network is
    /// not: it may be lost as well.
    pub fn at_rest(&self, state: &State) -> bool {
        let idle = |call: &Call| matches!(call, Call::New | Call::Done);
        let quiet = |edge: &crate::state::Edge| match edge.life {
            Life::Dead => true,
            Life::Paused => false,
            Life::Up => edge.memory.stamps == [0; ORDERS] && edge.erase == [0; ORDERS],
        };
        let swept = self.rules.sweep && state.edges.iter().any(|edge| edge.life == Life::Up);
        let looked_after = |order: usize| {
            let journalled = state.redis.data.journal[order] > 0;
            let reconciled = self.rules.reconciles && (self.rules.reconciles_journal || !journalled);
            state.unwritten(order) && (reconciled || (swept && journalled))
        };
        state.open()
            && state.wardens.iter().all(|warden| warden.at == IDLE)
            && state.redis.data.asked == 0
            && state.queue == 0
            && state.books.due == 0
            && state.calls.iter().all(idle)
            && state.edges.iter().all(quiet)
            && !(0..ORDERS).any(looked_after)
            && !(self.rules.tells_releases_again && (0..ORDERS).any(|order| state.dead_and_held(order)))
    }
}
