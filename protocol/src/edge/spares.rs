//! Spare copies of orders that the broker has confirmed, for as long as their rows may be missing.
//! No I/O and no clock.
//!
//! A confirmed order is in the broker and in Redis. Should both lose it before its row is written, the
//! copy here is the last one: a re-opening takes back from it what Redis does not know any more. So an
//! order that is told again need not be published again while there is a copy of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ids::OrderId;
use crate::keys::Segment;
use ahash::{AHashMap, AHashSet};

use super::held::Parcel;

/// The copies, the oldest first: so many at the most, each for so long.
#[derive(Debug)]
pub struct Spares {
    most: usize,
    span: Duration,
    copies: VecDeque<(Instant, Arc<Parcel>)>,
    /// The youngest copy of each order.
    youngest: AHashMap<OrderId, (Instant, Arc<Parcel>)>,
    /// The broker was away until then, so nothing confirmed before is known to be with it.
    back: Option<Instant>,
}

impl Spares {
    /// None yet.
    pub fn new(most: usize, span: Duration) -> Self {
        Self { most, span, copies: VecDeque::new(), youngest: AHashMap::new(), back: None }
    }

    /// The broker has confirmed these; what is too old or too much goes.
    pub fn keep(&mut self, parcels: &[Arc<Parcel>], now: Instant) {
        for parcel in parcels {
            self.youngest.insert(parcel.order, (now, Arc::clone(parcel)));
            self.copies.push_back((now, Arc::clone(parcel)));
        }
        self.trim(now);
    }

    /// Whether there is a copy of an order that was accepted in this epoch, or in a later one. Who asks
    /// has been told that its row is missing: the copy begins its time anew before it grows old.
    pub fn covers(&mut self, parcel: &Parcel, now: Instant) -> bool {
        let copy = self.youngest.get(&parcel.order).filter(|(_, copy)| copy.stamp >= parcel.stamp);
        let Some((kept, copy)) = copy.cloned() else { return false };
        if now.duration_since(kept) > self.span / 2 {
            self.keep(&[copy], now);
        }
        true
    }

    /// The connection to the broker broke, or stands again: every copy begins its time anew.
    pub fn broken(&mut self, now: Instant) {
        self.back = Some(now);
    }

    /// Lets go of what is too old or too much.
    pub fn trim(&mut self, now: Instant) {
        let (span, back) = (self.span, self.back);
        let old = |kept: Instant| now.duration_since(back.map_or(kept, |back| kept.max(back))) > span;
        while self.youngest.len() > self.most || self.copies.front().is_some_and(|(kept, _)| old(*kept)) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((kept, parcel)) = self.copies.pop_front() else { return };
        if self.is_youngest(kept, &parcel) {
            self.youngest.remove(&parcel.order);
        }
    }

    fn is_youngest(&self, kept: Instant, parcel: &Parcel) -> bool {
        self.youngest.get(&parcel.order).is_some_and(|(youngest, _)| *youngest == kept)
    }

    /// The copies of a segment that were accepted in this epoch. Those of earlier ones were written
    /// before their epoch ended, and would meet the fence.
    pub fn of(&self, segment: &Segment, epoch: u64) -> Vec<Arc<Parcel>> {
        let copies = self.copies.iter().filter(|(kept, parcel)| self.is_youngest(*kept, parcel));
        let parcels = copies.map(|(_, parcel)| parcel);
        parcels.filter(|parcel| parcel.stamp == epoch && *parcel.segment == *segment).cloned().collect()
    }

    /// These are held again, and are kept again when they are confirmed.
    pub fn give(&mut self, recalled: &[Arc<Parcel>]) {
        let orders: AHashSet<OrderId> = recalled.iter().map(|parcel| parcel.order).collect();
        self.copies.retain(|(_, parcel)| !orders.contains(&parcel.order));
        self.youngest.retain(|order, _| !orders.contains(order));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.youngest.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::ids::SaleId;

    use super::*;

    const SPAN: Duration = Duration::from_secs(30);

    fn parcel(n: u8, stamp: u64) -> Arc<Parcel> {
        let segment = Arc::new(Segment::new(SaleId::parse("sale").unwrap(), 0));
        let order = OrderId { uuid: [n; 16], sale: 1, segment: 0 };
        Arc::new(Parcel { order, segment, stamp, entry: (stamp, u64::from(n)), body: vec![n] })
    }

    fn names(spares: &Spares, epoch: u64) -> Vec<u8> {
        let segment = Segment::new(SaleId::parse("sale").unwrap(), 0);
        spares.of(&segment, epoch).iter().map(|parcel| parcel.order.uuid[0]).collect()
    }

    #[test]
    fn a_copy_is_kept_for_its_time_and_no_longer() {
        let (mut spares, now) = (Spares::new(9, SPAN), Instant::now());
        spares.keep(&[parcel(1, 1)], now);
        spares.keep(&[parcel(2, 1)], now + SPAN);
        assert_eq!(names(&spares, 1), [1, 2]);
        spares.trim(now + SPAN + Duration::from_millis(1));
        assert_eq!(names(&spares, 1), [2]);
    }

    #[test]
    fn while_the_broker_is_away_no_copy_grows_old() {
        let (mut spares, now) = (Spares::new(9, SPAN), Instant::now());
        spares.keep(&[parcel(1, 1)], now);
        spares.broken(now + SPAN);
        spares.trim(now + SPAN * 2);
        assert_eq!(names(&spares, 1), [1]);
        spares.trim(now + SPAN * 2 + Duration::from_millis(1));
        assert_eq!(spares.count(), 0);
    }

    #[test]
    fn a_copy_that_is_asked_for_stays_and_there_is_one_of_each_order() {
        let (mut spares, now) = (Spares::new(2, SPAN), Instant::now());
        spares.keep(&[parcel(1, 2), parcel(2, 2)], now);
        for seconds in 0..90 {
            assert!(spares.covers(&parcel(1, 2), now + Duration::from_secs(seconds)));
        }
        assert!(spares.copies.len() <= 4, "{}", spares.copies.len());
        assert_eq!((names(&spares, 2), spares.count()), (vec![1], 1));
        assert!(spares.covers(&parcel(1, 1), now) && !spares.covers(&parcel(1, 3), now), "another epoch");
        assert!(!spares.covers(&parcel(2, 2), now));
        spares.trim(now + SPAN * 5);
        assert_eq!((spares.count(), spares.copies.len()), (0, 0));
    }

    #[test]
    fn the_oldest_makes_room() {
        let (mut spares, now) = (Spares::new(2, SPAN), Instant::now());
        spares.keep(&[parcel(1, 1), parcel(2, 1), parcel(3, 1)], now);
        assert_eq!(names(&spares, 1), [2, 3]);
    }

    #[test]
    fn what_is_held_again_is_no_copy_any_more() {
        let (mut spares, now) = (Spares::new(9, SPAN), Instant::now());
        let (one, two) = (parcel(1, 1), parcel(2, 1));
        spares.keep(&[one.clone(), two, one.clone()], now);
        spares.give(&[one]);
        assert_eq!(names(&spares, 1), [2]);
    }

    #[test]
    fn another_epoch_and_another_segment_are_not_asked_for() {
        let (mut spares, now) = (Spares::new(9, SPAN), Instant::now());
        spares.keep(&[parcel(1, 1), parcel(2, 2), parcel(3, 3)], now);
        assert_eq!(names(&spares, 2), [2]);
        let other = Segment::new(SaleId::parse("sale").unwrap(), 1);
        assert!(spares.of(&other, 9).is_empty());
    }
}
