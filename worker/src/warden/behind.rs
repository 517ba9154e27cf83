//! What the books say of an order and Redis does not: the message that should have told it was lost with
//! the broker that had it, or what it did was lost with the end of Redis' file.

use sluice_shared::record::{OrderState, Record, Refund};

use crate::store::orders::Standing;

/// What a buyer is told of an order: its record, as far as a row can say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Where the order is in its life.
    pub state: OrderState,
    /// Whether its units are back on the shelf.
    pub released: bool,
    /// Money to give back.
    pub refund: Refund,
}

impl From<&Record> for Told {
    fn from(record: &Record) -> Self {
        Self { state: record.state, released: record.released, refund: record.refund }
    }
}

/// What has to be told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// The order moved on with its units, or its money did.
    Change,
    /// The order is dead and its units go back.
    Release,
}

/// Compares a record with its row. States and refunds only ever move to a higher rank, as in
/// `settle.lua`; a row that is behind its record was read before it moved on.
pub fn behind(told: Told, row: Standing) -> Option<Behind> {
    if !row.live && !told.released {
        return Some(Behind::Release);
    }
    let state = !told.released && rank(row.state) > rank(told.state);
    (state || row.refund.rank() > told.refund.rank()).then_some(Behind::Change)
}

/// Whether a record says what its row does not: rows come first. One whose units are back keeps the state
/// that it had then.
pub fn ahead(told: Told, row: Standing) -> bool {
    let (says, known) = (rank(told.state), rank(row.state));
    says > known
        || says == known && says == 2 && told.state != row.state
        || told.refund.rank() > row.refund.rank()
}

fn rank(state: OrderState) -> u8 {
    match state {
        OrderState::Accepted | OrderState::Pending => 0,
        OrderState::PendingPayment => 1,
        OrderState::Paid | OrderState::Expired | OrderState::Cancelled | OrderState::Failed => 2,
        OrderState::Refunded => 3,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(state: OrderState, released: bool, refund: Refund) -> Told {
        Told { state, released, refund }
    }

    fn row(state: OrderState, live: bool, refund: Refund) -> Standing {
        Standing { state, live, refund }
    }

    #[test]
    fn a_record_that_says_what_its_row_says_is_not_behind() {
        for state in [OrderState::PendingPayment, OrderState::Paid] {
            assert_eq!(behind(entry(state, false, Refund::None), row(state, true, Refund::None)), None);
        }
        let gone = entry(OrderState::Expired, true, Refund::Done(1));
        assert_eq!(behind(gone, row(OrderState::Expired, false, Refund::Done(1))), None);
    }

    #[test]
    fn a_row_that_moved_on_leaves_its_record_behind() {
        let accepted = entry(OrderState::Accepted, false, Refund::None);
        let waiting = entry(OrderState::PendingPayment, false, Refund::None);
        for (entry, state) in [
            (accepted, OrderState::PendingPayment),
            (accepted, OrderState::Paid),
            (waiting, OrderState::Paid),
        ] {
            assert_eq!(behind(entry, row(state, true, Refund::None)), Some(Behind::Change));
        }
        let kept = entry(OrderState::Paid, false, Refund::None);
        assert_eq!(behind(kept, row(OrderState::Refunded, true, Refund::Due(1))), Some(Behind::Change));
    }

    #[test]
    fn units_of_a_dead_row_that_are_still_held_go_back() {
        let waiting = entry(OrderState::PendingPayment, false, Refund::None);
        assert_eq!(behind(waiting, row(OrderState::Expired, false, Refund::None)), Some(Behind::Release));
    }

    #[test]
    fn a_refund_moves_on_after_the_units_are_back() {
        let gone = entry(OrderState::Refunded, true, Refund::Due(1));
        assert_eq!(behind(gone, row(OrderState::Refunded, false, Refund::Done(1))), Some(Behind::Change));
    }

    #[test]
    fn a_record_that_is_ahead_of_a_row_read_before_it_is_not_behind() {
        // Whose money went back has paid again.
        let again = row(OrderState::Refunded, false, Refund::Due(2));
        assert_eq!(behind(entry(OrderState::Refunded, true, Refund::Done(1)), again), Some(Behind::Change));
        assert!(ahead(entry(OrderState::Refunded, true, Refund::Done(2)), again));
        let paid = entry(OrderState::Paid, false, Refund::Due(1));
        assert_eq!(behind(paid, row(OrderState::PendingPayment, true, Refund::None)), None);
    }
}
