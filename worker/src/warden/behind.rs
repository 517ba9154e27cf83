//! What the books say of an order and Redis does not: the message that should have told it was lost with
//! the broker that had it, or what it did was lost with the end of Redis' file.

use sluice_shared::record::{OrderState, Refund};

use super::image::{Entry, Image};
use crate::store::orders::Standing;

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
pub fn behind(entry: &Entry, row: Standing) -> Option<Behind> {
    if !row.live && !entry.released {
        return Some(Behind::Release);
    }
    let state = !entry.released && rank(row.state) > rank(entry.state);
    (state || row.refund.rank() > entry.refund.rank()).then_some(Behind::Change)
}

/// Whether a record says what its row does not: rows come first. One whose units are back keeps the state
/// that it had then.
pub fn ahead(entry: &Entry, row: Standing) -> bool {
    let (told, known) = (rank(entry.state), rank(row.state));
    told > known
        || told == known && told == 2 && entry.state != row.state
        || entry.refund.rank() > row.refund.rank()
}

fn rank(state: OrderState) -> u8 {
    match state {
        OrderState::Accepted | OrderState::Pending => 0,
        OrderState::PendingPayment => 1,
        OrderState::Paid | OrderState::Expired | OrderState::Cancelled | OrderState::Failed => 2,
        OrderState::Refunded => 3,
    }
}

/// The next orders of an image after one, in the order of their ids; none after the last.
pub fn next_page(image: &Image, after: Option<&[u8; 16]>, most: usize) -> Vec<[u8; 16]> {
    let next = |uuid: &&[u8; 16]| after.is_none_or(|after| *uuid > after);
    let mut page: Vec<[u8; 16]> = image.orders.keys().filter(next).copied().collect();
    if page.len() > most {
        page.select_nth_unstable(most);
        page.truncate(most);
    }
    page.sort_unstable();
    page
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sluice_shared::clock::Millis;
    use sluice_shared::ids::UserId;
    use sluice_shared::lines::Lines;

    use super::*;

    fn entry(state: OrderState, released: bool, refund: Refund) -> Entry {
        Entry {
            state,
            released,
            epoch: 1,
            seq: 1,
            accepted: Millis(0),
            updated: Millis(0),
            refund,
            lines: Lines::parse("phone=1").unwrap(),
            user: UserId::parse("ann").unwrap(),
        }
    }

    fn row(state: OrderState, live: bool, refund: Refund) -> Standing {
        Standing { state, live, refund }
    }

    #[test]
    fn a_record_that_says_what_its_row_says_is_not_behind() {
        for state in [OrderState::PendingPayment, OrderState::Paid] {
            assert_eq!(behind(&entry(state, false, Refund::None), row(state, true, Refund::None)), None);
        }
        let gone = entry(OrderState::Expired, true, Refund::Done(1));
        assert_eq!(behind(&gone, row(OrderState::Expired, false, Refund::Done(1))), None);
    }

    #[test]
    fn a_row_that_moved_on_leaves_its_record_behind() {
        let accepted = entry(OrderState::Accepted, false, Refund::None);
        let waiting = entry(OrderState::PendingPayment, false, Refund::None);
        for (entry, state) in [
            (&accepted, OrderState::PendingPayment),
            (&accepted, OrderState::Paid),
            (&waiting, OrderState::Paid),
        ] {
            assert_eq!(behind(entry, row(state, true, Refund::None)), Some(Behind::Change));
        }
        let kept = entry(OrderState::Paid, false, Refund::None);
        assert_eq!(behind(&kept, row(OrderState::Refunded, true, Refund::Due(1))), Some(Behind::Change));
    }

    #[test]
    fn units_of_a_dead_row_that_are_still_held_go_back() {
        let waiting = entry(OrderState::PendingPayment, false, Refund::None);
        assert_eq!(behind(&waiting, row(OrderState::Expired, false, Refund::None)), Some(Behind::Release));
    }

    #[test]
    fn a_refund_moves_on_after_the_units_are_back() {
        let gone = entry(OrderState::Refunded, true, Refund::Due(1));
        assert_eq!(behind(&gone, row(OrderState::Refunded, false, Refund::Done(1))), Some(Behind::Change));
    }

    #[test]
    fn a_record_that_is_ahead_of_a_row_read_before_it_is_not_behind() {
        // Whose money went back has paid again.
        let again = row(OrderState::Refunded, false, Refund::Due(2));
        assert_eq!(behind(&entry(OrderState::Refunded, true, Refund::Done(1)), again), Some(Behind::Change));
        assert!(ahead(&entry(OrderState::Refunded, true, Refund::Done(2)), again));
        let paid = entry(OrderState::Paid, false, Refund::Due(1));
        assert_eq!(behind(&paid, row(OrderState::PendingPayment, true, Refund::None)), None);
    }

    #[test]
    fn pages_go_through_all_orders_in_their_order() {
        let mut image = Image::default();
        for n in [5_u8, 1, 9, 3] {
            image.orders.insert([n; 16], entry(OrderState::Accepted, false, Refund::None));
        }
        assert_eq!(next_page(&image, None, 2), [[1; 16], [3; 16]]);
        assert_eq!(next_page(&image, Some(&[3; 16]), 2), [[5; 16], [9; 16]]);
        assert!(next_page(&image, Some(&[9; 16]), 2).is_empty());
    }
}
