//! Orders that this edge answers for, until the broker has confirmed them. No I/O and no clock.
//!
//! Two promises are kept here. What was accepted is held before the buyer is told, stamped with the
//! epoch of the reply that said so, and let go by nothing but a confirm. And an epoch that was closed
//! stays closed: from then on nothing is taken in under it, so that "nothing held" stays true.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Shelf;
use sluice_shared::message::{Accepted, OrderMessage};
use sluice_shared::topology::write_shard;
use tokio::sync::oneshot;

use super::lane::Lane;
use super::room::Place;

/// Names one stay of an order; an order that comes again under a newer epoch gets a newer one. They
/// grow in the order of acceptance.
pub(crate) type Ticket = u64;

/// What is published for an order, and what is deleted after.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) order: OrderId,
    pub(crate) shelf: Arc<Shelf>,
    /// Epoch of the reply that it was accepted by.
    pub(crate) stamp: u64,
    /// Epoch and sequence of its journal entry.
    pub(crate) entry: (u64, u64),
    /// The message.
    pub(crate) body: Vec<u8>,
}

impl Parcel {
    /// The parcel of an accepted order; `None` should it not be expressible, which no order is.
    pub(crate) fn new(shelf: &Arc<Shelf>, entry: (u64, u64), accepted: Accepted) -> Option<Self> {
        let (order, stamp) = (accepted.order, accepted.epoch);
        let body = serde_json::to_vec(&OrderMessage::Accepted(accepted)).ok()?;
        Some(Self { order, shelf: Arc::clone(shelf), stamp, entry, body })
    }
}

/// An order that is to be held.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) parcel: Parcel,
    pub(crate) place: Place,
    /// Told when the broker has it.
    pub(crate) waiter: Option<oneshot::Sender<()>>,
}

/// The epoch is closed: the outcome counts as unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

#[derive(Debug)]
struct Entry {
    parcel: Arc<Parcel>,
    since: Instant,
    waiters: Vec<oneshot::Sender<()>>,
    _place: Place,
}

/// One segment's epochs.
#[derive(Debug, Default)]
struct Epochs {
    /// This one and all before it are closed.
    closed: u64,
    /// Epoch → orders held under it.
    held: BTreeMap<u64, usize>,
}

/// All orders held.
#[derive(Debug)]
pub(crate) struct Held {
    next: Ticket,
    entries: BTreeMap<Ticket, Entry>,
    tickets: HashMap<OrderId, Ticket>,
    lanes: Vec<Lane>,
    shelves: HashMap<Shelf, Epochs>,
}

impl Held {
    pub(crate) fn new(shards: u16) -> Self {
        let lanes = (0..shards.max(1)).map(|_| Lane::default()).collect();
        let (entries, tickets, shelves) = Default::default();
        Self { next: 0, entries, tickets, lanes, shelves }
    }

    /// Holds what one reply of `epoch` accepted: all of it, or nothing when the epoch is closed.
    pub(crate) fn accept(
        &mut self,
        shelf: &Shelf,
        epoch: u64,
        arrivals: impl IntoIterator<Item = Arrival>,
        now: Instant,
    ) -> Result<(), Closed> {
        if epoch <= self.closed(shelf) {
            return Err(Closed);
        }
        for arrival in arrivals {
            self.hold(arrival, now);
        }
        Ok(())
    }

    /// Takes in an entry that somebody left in the journal, unless it is held already or its epoch is
    /// closed: those the warden drains, and the closing would never end.
    pub(crate) fn adopt(&mut self, parcel: Parcel, place: Place, now: Instant) -> bool {
        if parcel.stamp <= self.closed(&parcel.shelf) || self.holds(&parcel.order) {
            return false;
        }
        self.hold(Arrival { parcel, place, waiter: None }, now);
        true
    }

    fn hold(&mut self, arrival: Arrival, now: Instant) {
        let Arrival { parcel, place, waiter } = arrival;
        let mut waiters: Vec<_> = waiter.into_iter().collect();
        if let Some(ticket) = self.tickets.get(&parcel.order).copied() {
            if let Some(entry) = self.entries.get_mut(&ticket).filter(|e| e.parcel.stamp >= parcel.stamp) {
                entry.waiters.append(&mut waiters);
                return;
            }
            // Accepted again under a newer epoch: the older message may meet the fence.
            if let Some(mut older) = self.forget(ticket) {
                waiters.append(&mut older.waiters);
            }
        }
        let ticket = self.next;
        self.next += 1;
        self.tickets.insert(parcel.order, ticket);
        let epochs = self.shelves.entry((*parcel.shelf).clone()).or_default();
        *epochs.held.entry(parcel.stamp).or_default() += 1;
        let lane = self.lane_of(&parcel.order);
        self.lanes[lane].arrive(ticket);
        let entry = Entry { parcel: Arc::new(parcel), since: now, waiters, _place: place };
        self.entries.insert(ticket, entry);
    }

    fn lane_of(&self, order: &OrderId) -> usize {
        let lanes = u16::try_from(self.lanes.len()).unwrap_or(u16::MAX);
        usize::from(write_shard(&order.uuid, lanes))
    }

    fn forget(&mut self, ticket: Ticket) -> Option<Entry> {
        let entry = self.entries.remove(&ticket)?;
        let parcel = &entry.parcel;
        let lane = self.lane_of(&parcel.order);
        self.lanes[lane].leave(ticket);
        self.tickets.remove(&parcel.order);
        if let Some(epochs) = self.shelves.get_mut(&*parcel.shelf)
            && let Some(count) = epochs.held.get_mut(&parcel.stamp)
        {
            *count -= 1;
            if *count == 0 {
                epochs.held.remove(&parcel.stamp);
            }
        }
        Some(entry)
    }

    /// Up to `most` orders to publish now, the oldest first; they count as sent until confirmed, failed
    /// or [`Self::broken`].
    pub(crate) fn take(&mut self, most: usize, now: Instant) -> Vec<(Ticket, usize, Arc<Parcel>)> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let first = |(at, lane): (usize, &Lane)| lane.first(now).map(|ticket| (ticket, at));
            let Some((ticket, at)) = self.lanes.iter().enumerate().filter_map(first).min() else { break };
            self.lanes[at].send(ticket);
            if let Some(entry) = self.entries.get(&ticket) {
                taken.push((ticket, at, Arc::clone(&entry.parcel)));
            }
        }
        taken
    }

    /// The broker has these: they are let go. What comes out is to be deleted from the journal.
    pub(crate) fn confirmed(&mut self, tickets: &[Ticket]) -> Vec<Arc<Parcel>> {
        let mut done = Vec::with_capacity(tickets.len());
        for ticket in tickets {
            let Some(entry) = self.forget(*ticket) else { continue };
            for waiter in entry.waiters {
                // Whoever waited has gone by now: nobody to tell.
                let _ = waiter.send(());
            }
            done.push(entry.parcel);
        }
        done
    }

    /// The broker gave this one back or refused it: still held, and its lane rests for a while.
    /// Answers whether the rest begins with it.
    pub(crate) fn failed(&mut self, ticket: Ticket, now: Instant) -> bool {
        let Some(entry) = self.entries.get(&ticket) else { return false };
        let lane = self.lane_of(&entry.parcel.order);
        self.lanes[lane].fail(ticket, now)
    }

    /// The connection is gone: whatever was sent is unknown, and will be sent again.
    pub(crate) fn broken(&mut self) {
        self.lanes.iter_mut().for_each(Lane::broken);
    }

    /// Closes an epoch and all before it, for good.
    pub(crate) fn close(&mut self, shelf: &Shelf, epoch: u64) {
        let epochs = self.shelves.entry(shelf.clone()).or_default();
        epochs.closed = epochs.closed.max(epoch);
    }

    /// The newest closed epoch of a segment; 0 when none is.
    pub(crate) fn closed(&self, shelf: &Shelf) -> u64 {
        self.shelves.get(shelf).map_or(0, |epochs| epochs.closed)
    }

    /// Segments whose closed epoch holds nothing any more, with that epoch.
    pub(crate) fn nothing_held(&self) -> BTreeMap<String, u64> {
        let empty = self.shelves.iter().filter(|(_, epochs)| {
            epochs.closed > 0 && epochs.held.keys().next().is_none_or(|oldest| *oldest > epochs.closed)
        });
        empty.map(|(shelf, epochs)| (shelf.name(), epochs.closed)).collect()
    }

    /// Forgets the epochs of segments whose sale is no more, where nothing is held.
    pub(crate) fn prune(&mut self, lives: impl Fn(&SaleId) -> bool) {
        self.shelves.retain(|shelf, epochs| !epochs.held.is_empty() || lives(&shelf.sale));
    }

    /// Whether an order is held.
    pub(crate) fn holds(&self, order: &OrderId) -> bool {
        self.tickets.contains_key(order)
    }

    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Since when the oldest has been held.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.entries.values().next().map(|entry| entry.since)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::lane::REST;
    use crate::engine::room::Room;

    fn shelf() -> Arc<Shelf> {
        Arc::new(Shelf::new(SaleId::parse("sale").unwrap(), 0))
    }

    fn order(n: u8) -> OrderId {
        OrderId { uuid: [n; 16], sale: 1, segment: 0 }
    }

    fn arrival(n: u8, stamp: u64) -> Arrival {
        let (order, entry) = (order(n), (1, u64::from(n)));
        let parcel = Parcel { order, shelf: shelf(), stamp, entry, body: vec![n, stamp as u8] };
        Arrival { parcel, place: Room::new(9).take().unwrap(), waiter: None }
    }

    /// Three orders of epoch 1.
    fn three() -> (Held, Instant) {
        let (mut held, now) = (Held::new(4), Instant::now());
        held.accept(&shelf(), 1, [1, 2, 3].map(|n| arrival(n, 1)), now).unwrap();
        (held, now)
    }

    fn sent(held: &mut Held, now: Instant) -> Vec<(Ticket, u8)> {
        held.take(9, now).into_iter().map(|(ticket, _, parcel)| (ticket, parcel.order.uuid[0])).collect()
    }

    #[test]
    fn what_was_sent_is_held_until_it_is_confirmed() {
        let (mut held, now) = three();
        let jobs = sent(&mut held, now);
        assert_eq!(jobs.iter().map(|job| job.1).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((held.len(), sent(&mut held, now).len()), (3, 0));
        held.close(&shelf(), 1);
        assert!(held.nothing_held().is_empty(), "bytes on the way are no confirm");
        let done = held.confirmed(&[jobs[0].0, jobs[2].0]);
        assert_eq!(done.iter().map(|parcel| parcel.entry).collect::<Vec<_>>(), [(1, 1), (1, 3)]);
        assert!(held.holds(&order(2)) && held.nothing_held().is_empty());
        held.confirmed(&[jobs[1].0]);
        assert_eq!(held.nothing_held(), BTreeMap::from([("sale:0".to_owned(), 1)]));
    }

    #[test]
    fn a_broken_connection_loses_nothing_and_keeps_the_order() {
        let (mut held, now) = three();
        let first = sent(&mut held, now);
        held.confirmed(&[first[0].0]);
        held.broken();
        assert_eq!(sent(&mut held, now), first[1..]);
    }

    #[test]
    fn what_the_broker_gave_back_is_held_and_goes_out_again() {
        let (mut held, now) = three();
        let jobs = sent(&mut held, now);
        assert!(held.failed(jobs[1].0, now));
        assert_eq!((held.len(), sent(&mut held, now).len()), (3, 0));
        assert_eq!(sent(&mut held, now + REST), [jobs[1]]);
    }

    #[test]
    fn a_closed_epoch_takes_nothing_in_and_is_never_opened_again() {
        let mut held = Held::new(1);
        held.close(&shelf(), 3);
        held.close(&shelf(), 2);
        let now = Instant::now();
        for epoch in [1, 2, 3] {
            assert_eq!(held.accept(&shelf(), epoch, [arrival(1, epoch)], now), Err(Closed));
        }
        assert_eq!((held.len(), held.closed(&shelf())), (0, 3));
        assert!(!held.adopt(arrival(1, 3).parcel, Room::new(1).take().unwrap(), now));
        held.accept(&shelf(), 4, [arrival(1, 4)], now).unwrap();
        assert_eq!(held.nothing_held().get("sale:0"), Some(&3), "a later epoch is none of the question");
    }

    #[test]
    fn what_is_held_goes_on_being_published_after_its_epoch_was_closed() {
        let (mut held, now) = three();
        held.close(&shelf(), 1);
        assert_eq!(sent(&mut held, now).len(), 3);
    }

    /// The older message may meet the fence, so its confirm is no confirm of the newer acceptance.
    #[test]
    fn an_order_accepted_again_under_a_newer_epoch_is_held_anew() {
        let (mut held, now) = three();
        let old = sent(&mut held, now);
        held.accept(&shelf(), 2, [arrival(1, 2)], now).unwrap();
        held.close(&shelf(), 1);
        held.confirmed(&[old[0].0, old[1].0, old[2].0]);
        assert!(held.holds(&order(1)));
        assert_eq!(held.nothing_held().get("sale:0"), Some(&1));
        let again = held.take(9, now);
        assert_eq!((again.len(), again[0].2.body.as_slice()), (1, [1, 2].as_slice()));
    }

    #[test]
    fn an_order_accepted_twice_is_held_once_and_both_are_told() {
        let (mut held, now) = three();
        let (tell, mut told) = oneshot::channel();
        held.accept(&shelf(), 1, [Arrival { waiter: Some(tell), ..arrival(2, 1) }], now).unwrap();
        let jobs = sent(&mut held, now);
        assert_eq!(jobs.len(), 3);
        assert!(told.try_recv().is_err());
        held.confirmed(&[jobs[1].0]);
        assert!(told.try_recv().is_ok());
    }

    #[test]
    fn an_entry_that_is_held_already_is_not_adopted() {
        let (mut held, now) = three();
        let place = || Room::new(1).take().unwrap();
        assert!(!held.adopt(arrival(2, 1).parcel, place(), now));
        assert!(held.adopt(arrival(7, 1).parcel, place(), now));
        assert_eq!(held.len(), 4);
    }

    #[test]
    fn a_place_is_given_back_with_the_confirm() {
        let (room, mut held, now) = (Room::new(1), Held::new(1), Instant::now());
        held.accept(&shelf(), 1, [Arrival { place: room.take().unwrap(), ..arrival(1, 1) }], now).unwrap();
        let job = sent(&mut held, now);
        assert!(room.take().is_none());
        held.confirmed(&[job[0].0]);
        assert_eq!(room.taken(), 0);
    }
}
