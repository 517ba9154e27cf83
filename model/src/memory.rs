//! What an edge holds, decided by the edge's own [`Held`]: a [`Memory`] is made into one, something is
//! done to it, and what it is then is read back. Each question is asked once and remembered.

use sluice_protocol::edge::held::{Arrival, Held, Parcel};
use sluice_protocol::edge::room::Room;
use sluice_protocol::ids::{OrderId, SaleId};
use sluice_protocol::keys::Segment;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;

use crate::bounds::ORDERS;
use crate::state::Memory;

/// What is done to a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deed {
    /// A reply of this epoch accepted the order.
    Accept(usize, u8),
    /// The journal has an entry of this epoch that somebody left.
    Adopt(usize, u8),
    /// The broker has the order.
    Confirm(usize),
    /// The warden asks for this epoch.
    Close(u8),
    /// Redis has lost an order of this epoch that the broker had confirmed.
    Recall(usize, u8),
}

/// The edge's memory, and what it said to each deed so far.
#[derive(Debug)]
pub struct Holder {
    segment: Arc<Segment>,
    now: Instant,
    known: RefCell<AHashMap<(Memory, Deed), (Memory, bool)>>,
    empty: RefCell<AHashMap<Memory, u8>>,
}

/// The name of an order of the model.
fn name(order: usize) -> OrderId {
    OrderId { uuid: [u8::try_from(order).unwrap_or(u8::MAX); 16], sale: 1, segment: 0 }
}

impl Holder {
    /// One that was asked nothing yet; `None` should the sale's name be none.
    pub fn new() -> Option<Self> {
        let segment = Arc::new(Segment::new(SaleId::parse("model").ok()?, 0));
        Some(Self { segment, now: Instant::now(), known: RefCell::default(), empty: RefCell::default() })
    }

    /// Does something to a memory: what it is then, and whether it agreed.
    pub fn after(&self, memory: Memory, deed: Deed) -> (Memory, bool) {
        if let Some(known) = self.known.borrow().get(&(memory, deed)) {
            return *known;
        }
        let mut held = self.make(memory);
        let agreed = match deed {
            Deed::Accept(order, epoch) => {
                let arrivals = self.arrival(order, epoch);
                held.accept(&self.segment, u64::from(epoch), arrivals, self.now).is_ok()
            }
            Deed::Adopt(order, epoch) => match self.arrival(order, epoch) {
                Some(Arrival { parcel, place, .. }) => held.adopt(parcel, place, self.now),
                None => false,
            },
            Deed::Confirm(order) => {
                let sent = held.take(ORDERS, self.now);
                let ticket = sent.iter().find(|(.., parcel)| parcel.order == name(order));
                ticket.is_some_and(|(ticket, ..)| !held.confirmed(&[*ticket]).0.is_empty())
            }
            Deed::Close(epoch) => {
                held.close(&self.segment, u64::from(epoch));
                true
            }
            Deed::Recall(order, epoch) => match self.arrival(order, epoch) {
                Some(Arrival { parcel, place, .. }) => {
                    held.recall(Arc::new(parcel), place, self.now);
                    true
                }
                None => false,
            },
        };
        let answer = (self.read(&mut held), agreed);
        self.known.borrow_mut().insert((memory, deed), answer);
        answer
    }

    /// The closed epoch of which it says that it holds nothing; 0 for none.
    pub fn says_empty(&self, memory: Memory) -> u8 {
        if let Some(known) = self.empty.borrow().get(&memory) {
            return *known;
        }
        let said = self.make(memory).nothing_held().get(&self.segment.name()).copied().unwrap_or(0);
        let said = u8::try_from(said).unwrap_or(u8::MAX);
        self.empty.borrow_mut().insert(memory, said);
        said
    }

    fn make(&self, memory: Memory) -> Held<()> {
        let mut held = Held::new(1);
        for (order, stamp) in memory.stamps.into_iter().enumerate().filter(|(_, stamp)| *stamp > 0) {
            // Nothing is closed yet, so it cannot refuse.
            let _ = held.accept(&self.segment, u64::from(stamp), self.arrival(order, stamp), self.now);
        }
        if memory.closed > 0 {
            held.close(&self.segment, u64::from(memory.closed));
        }
        held
    }

    fn read(&self, held: &mut Held<()>) -> Memory {
        let closed = u8::try_from(held.closed(&self.segment)).unwrap_or(u8::MAX);
        held.broken();
        let mut stamps = [0; ORDERS];
        for (.., parcel) in held.take(ORDERS, self.now) {
            let order = usize::from(parcel.order.uuid[0]);
            stamps[order] = u8::try_from(parcel.stamp).unwrap_or(u8::MAX);
        }
        Memory { closed, stamps }
    }

    fn arrival(&self, order: usize, epoch: u8) -> Option<Arrival<()>> {
        let (stamp, seq) = (u64::from(epoch), u64::try_from(order).unwrap_or(0));
        let segment = Arc::clone(&self.segment);
        let parcel = Parcel { order: name(order), segment, stamp, entry: (stamp, seq), body: Vec::new() };
        Some(Arrival { parcel, place: Room::new(1).take()?, waiter: None })
    }
}
