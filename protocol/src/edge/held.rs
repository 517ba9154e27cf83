//! Orders that this edge answers for, until the broker has confirmed them. No I/O and no clock.
//!
//! Two promises are kept here. What was accepted is held before the buyer is told, stamped with the
//! epoch of the reply that said so, and let go by nothing but a confirm. And an epoch that was closed
//! stays closed: from then on nothing is taken in under it, so that "nothing held" stays true.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::ids::{OrderId, SaleId};
use crate::keys::Segment;
use crate::message::{Accepted, OrderMessage};
use crate::place::write_shard;
use ahash::AHashMap;

use super::lane::Lane;
pub use super::lane::Ticket;
use super::room::Place;

/// What is published for an order, and what is deleted after.
#[derive(Debug)]
pub struct Parcel {
    /// Which order.
    pub order: OrderId,
    /// The segment that it was taken from.
    pub segment: Arc<Segment>,
    /// Epoch of the reply that it was accepted by.
    pub stamp: u64,
    /// Epoch and sequence of its journal entry.
    pub entry: (u64, u64),
    /// The message.
    pub body: Vec<u8>,
}

impl Parcel {
    /// The parcel of an accepted order; `None` should it not be expressible, which no order is.
    pub fn new(segment: &Arc<Segment>, entry: (u64, u64), accepted: Accepted) -> Option<Self> {
        let (order, stamp) = (accepted.order, accepted.epoch);
        let body = serde_json::to_vec(&OrderMessage::Accepted(accepted)).ok()?;
        Some(Self { order, segment: Arc::clone(segment), stamp, entry, body })
    }
}

/// An order that is to be held.
#[derive(Debug)]
pub struct Arrival<W> {
    /// What is published for it.
    pub parcel: Parcel,
    /// The place that it takes up.
    pub place: Place,
    /// Told when the broker has it.
    pub waiter: Option<W>,
}

/// The epoch is closed: the outcome counts as unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

#[derive(Debug)]
struct Entry<W> {
    parcel: Arc<Parcel>,
    since: Instant,
    waiters: Vec<W>,
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

/// All orders held; `W` is what tells a buyer who waits until the broker has his order.
#[derive(Debug)]
pub struct Held<W> {
    next: Ticket,
    entries: BTreeMap<Ticket, Entry<W>>,
    tickets: AHashMap<OrderId, Ticket>,
    lanes: Vec<Lane>,
    segments: AHashMap<Segment, Epochs>,
}

impl<W> Held<W> {
    /// Nothing is held yet, for so many write queues.
    pub fn new(shards: u16) -> Self {
        let lanes = (0..shards.max(1)).map(|_| Lane::default()).collect();
        let (entries, tickets, segments) = Default::default();
        Self { next: 0, entries, tickets, lanes, segments }
    }

    /// Holds what one reply of `epoch` accepted: all of it, or nothing when the epoch is closed.
    pub fn accept(
        &mut self,
        segment: &Segment,
        epoch: u64,
        arrivals: impl IntoIterator<Item = Arrival<W>>,
        now: Instant,
    ) -> Result<(), Closed> {
        if epoch <= self.closed(segment) {
            return Err(Closed);
        }
        for arrival in arrivals {
            self.hold(arrival, now);
        }
        Ok(())
    }

    /// Takes in an entry that somebody left in the journal, unless it is held already or its epoch is
    /// closed: those the warden drains, and the closing would never end.
    pub fn adopt(&mut self, parcel: Parcel, place: Place, now: Instant) -> bool {
        if parcel.stamp <= self.closed(&parcel.segment) || self.holds(&parcel.order) {
            return false;
        }
        self.hold(Arrival { parcel, place, waiter: None }, now);
        true
    }

    /// Takes back an order that the broker had confirmed, and that Redis has lost since: it is published
    /// once more, of a closed epoch as well, and answers for that epoch until it is confirmed again.
    pub fn recall(&mut self, parcel: Arc<Parcel>, place: Place, now: Instant) {
        self.put(parcel, place, Vec::new(), now);
    }

    fn hold(&mut self, arrival: Arrival<W>, now: Instant) {
        let Arrival { parcel, place, waiter } = arrival;
        self.put(Arc::new(parcel), place, waiter.into_iter().collect(), now);
    }

    fn put(&mut self, parcel: Arc<Parcel>, place: Place, mut waiters: Vec<W>, now: Instant) {
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
        let epochs = self.segments.entry((*parcel.segment).clone()).or_default();
        *epochs.held.entry(parcel.stamp).or_default() += 1;
        let lane = self.lane_of(&parcel.order);
        self.lanes[lane].arrive(ticket);
        let entry = Entry { parcel, since: now, waiters, _place: place };
        self.entries.insert(ticket, entry);
    }

    fn lane_of(&self, order: &OrderId) -> usize {
        let lanes = u16::try_from(self.lanes.len()).unwrap_or(u16::MAX);
        usize::from(write_shard(&order.uuid, lanes))
    }

    fn forget(&mut self, ticket: Ticket) -> Option<Entry<W>> {
        let entry = self.entries.remove(&ticket)?;
        let parcel = &entry.parcel;
        let lane = self.lane_of(&parcel.order);
        self.lanes[lane].leave(ticket);
        self.tickets.remove(&parcel.order);
        if let Some(epochs) = self.segments.get_mut(&*parcel.segment)
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
    pub fn take(&mut self, most: usize, now: Instant) -> Vec<(Ticket, usize, Arc<Parcel>)> {
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

    /// The broker has these: they are let go, to be deleted from the journal. Beside them come the
    /// buyers who wait to be told.
    pub fn confirmed(&mut self, tickets: &[Ticket]) -> (Vec<Arc<Parcel>>, Vec<W>) {
        let (mut done, mut waiters) = (Vec::with_capacity(tickets.len()), Vec::new());
        for ticket in tickets {
            let Some(mut entry) = self.forget(*ticket) else { continue };
            waiters.append(&mut entry.waiters);
            done.push(entry.parcel);
        }
        (done, waiters)
    }

    /// The broker gave this one back or refused it: still held, and its lane rests for a while.
    /// Answers whether the rest begins with it.
    pub fn failed(&mut self, ticket: Ticket, now: Instant) -> bool {
        let Some(entry) = self.entries.get(&ticket) else { return false };
        let lane = self.lane_of(&entry.parcel.order);
        self.lanes[lane].fail(ticket, now)
    }

    /// The connection is gone: whatever was sent is unknown, and will be sent again.
    pub fn broken(&mut self) {
        self.lanes.iter_mut().for_each(Lane::broken);
    }

    /// Closes an epoch and all before it, for good.
    pub fn close(&mut self, segment: &Segment, epoch: u64) {
        let epochs = self.segments.entry(segment.clone()).or_default();
        epochs.closed = epochs.closed.max(epoch);
    }

    /// The newest closed epoch of a segment; 0 when none is.
    pub fn closed(&self, segment: &Segment) -> u64 {
        self.segments.get(segment).map_or(0, |epochs| epochs.closed)
    }

    /// Segments whose closed epoch holds nothing any more, with that epoch.
    pub fn nothing_held(&self) -> BTreeMap<String, u64> {
        let empty = self.segments.iter().filter(|(_, epochs)| {
            epochs.closed > 0 && epochs.held.keys().next().is_none_or(|oldest| *oldest > epochs.closed)
        });
        empty.map(|(segment, epochs)| (segment.name(), epochs.closed)).collect()
    }

    /// Forgets the epochs of sales that are gone for good, where nothing is held.
    pub fn prune(&mut self, gone: impl Fn(&SaleId) -> bool) {
        self.segments.retain(|segment, epochs| !epochs.held.is_empty() || !gone(&segment.sale));
    }

    /// Whether an order is held.
    pub fn holds(&self, order: &OrderId) -> bool {
        self.tickets.contains_key(order)
    }

    /// How many are held.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Since when the oldest has been held.
    pub fn oldest(&self) -> Option<Instant> {
        self.entries.values().next().map(|entry| entry.since)
    }
}

#[cfg(test)]
mod tests;
