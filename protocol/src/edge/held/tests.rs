//! The promises of the held orders, each as a fact, and all of them under arbitrary events.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use std::collections::HashMap;

use super::*;
use crate::edge::lane::REST;
use crate::edge::room::Room;

fn segment() -> Arc<Segment> {
    Arc::new(Segment::new(SaleId::parse("sale").unwrap(), 0))
}

fn order(n: u8) -> OrderId {
    OrderId { uuid: [n; 16], sale: 1, segment: 0 }
}

fn arrival(n: u8, stamp: u64) -> Arrival<()> {
    let (order, entry) = (order(n), (1, u64::from(n)));
    let parcel = Parcel { order, segment: segment(), stamp, entry, body: vec![n, stamp as u8] };
    Arrival { parcel, place: Room::new(9).take().unwrap(), waiter: None }
}

/// Three orders of epoch 1.
fn three() -> (Held<()>, Instant) {
    let (mut held, now) = (Held::new(4), Instant::now());
    held.accept(&segment(), 1, [1, 2, 3].map(|n| arrival(n, 1)), now).unwrap();
    (held, now)
}

fn sent(held: &mut Held<()>, now: Instant) -> Vec<(Ticket, u8)> {
    held.take(9, now).into_iter().map(|(ticket, _, parcel)| (ticket, parcel.order.uuid[0])).collect()
}

#[test]
fn what_was_sent_is_held_until_it_is_confirmed() {
    let (mut held, now) = three();
    let jobs = sent(&mut held, now);
    assert_eq!(jobs.iter().map(|job| job.1).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((held.count(), sent(&mut held, now).len()), (3, 0));
    held.close(&segment(), 1);
    assert!(held.nothing_held().is_empty(), "bytes on the way are no confirm");
    let (done, _) = held.confirmed(&[jobs[0].0, jobs[2].0]);
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
    assert_eq!((held.count(), sent(&mut held, now).len()), (3, 0));
    assert_eq!(sent(&mut held, now + REST), [jobs[1]]);
}

#[test]
fn a_closed_epoch_takes_nothing_in_and_is_never_opened_again() {
    let mut held = Held::new(1);
    held.close(&segment(), 3);
    held.close(&segment(), 2);
    let now = Instant::now();
    for epoch in [1, 2, 3] {
        assert_eq!(held.accept(&segment(), epoch, [arrival(1, epoch)], now), Err(Closed));
    }
    assert_eq!((held.count(), held.closed(&segment())), (0, 3));
    assert!(!held.adopt(arrival(1, 3).parcel, Room::new(1).take().unwrap(), now));
    held.accept(&segment(), 4, [arrival(1, 4)], now).unwrap();
    assert_eq!(held.nothing_held().get("sale:0"), Some(&3), "a later epoch is none of the question");
}

#[test]
fn what_is_held_goes_on_being_published_after_its_epoch_was_closed() {
    let (mut held, now) = three();
    held.close(&segment(), 1);
    assert_eq!(sent(&mut held, now).len(), 3);
}

/// The older message may meet the fence, so its confirm is no confirm of the newer acceptance.
#[test]
fn an_order_accepted_again_under_a_newer_epoch_is_held_anew() {
    let (mut held, now) = three();
    let old = sent(&mut held, now);
    held.accept(&segment(), 2, [arrival(1, 2)], now).unwrap();
    held.close(&segment(), 1);
    held.confirmed(&[old[0].0, old[1].0, old[2].0]);
    assert!(held.holds(&order(1)));
    assert_eq!(held.nothing_held().get("sale:0"), Some(&1));
    let again = held.take(9, now);
    assert_eq!((again.len(), again[0].2.body.as_slice()), (1, [1, 2].as_slice()));
}

#[test]
fn an_order_accepted_twice_is_held_once_and_both_are_told() {
    let (mut held, now) = (Held::new(4), Instant::now());
    for waiter in ["first", "second"] {
        let Arrival { parcel, place, .. } = arrival(2, 1);
        held.accept(&segment(), 1, [Arrival { parcel, place, waiter: Some(waiter) }], now).unwrap();
    }
    let jobs = held.take(9, now);
    assert_eq!(jobs.len(), 1);
    let (parcels, waiters) = held.confirmed(&[jobs[0].0]);
    assert_eq!((parcels.len(), waiters), (1, vec!["first", "second"]));
}

#[test]
fn an_entry_that_is_held_already_is_not_adopted() {
    let (mut held, now) = three();
    let place = || Room::new(1).take().unwrap();
    assert!(!held.adopt(arrival(2, 1).parcel, place(), now));
    assert!(held.adopt(arrival(7, 1).parcel, place(), now));
    assert_eq!(held.count(), 4);
}

#[test]
fn a_place_is_given_back_with_the_confirm() {
    let (room, mut held, now) = (Room::new(1), Held::new(1), Instant::now());
    held.accept(&segment(), 1, [Arrival { place: room.take().unwrap(), ..arrival(1, 1) }], now).unwrap();
    let job = sent(&mut held, now);
    assert!(room.take().is_none());
    held.confirmed(&[job[0].0]);
    assert_eq!(room.taken(), 0);
}

#[test]
fn closed_epochs_are_forgotten_only_with_their_sale() {
    let (mut held, now) = three();
    held.close(&segment(), 1);
    held.prune(|_| true);
    assert_eq!(held.closed(&segment()), 1, "something is held");
    let jobs: Vec<Ticket> = sent(&mut held, now).into_iter().map(|job| job.0).collect();
    held.confirmed(&jobs);
    held.prune(|_| false);
    assert_eq!(held.closed(&segment()), 1, "the sale lives");
    held.prune(|sale| sale.as_str() == "sale");
    assert_eq!(held.closed(&segment()), 0);
}

/// What may happen to held orders.
#[derive(Debug, Clone, Copy)]
enum Event {
    Accept(u8, u64),
    Sweep(u8, u64),
    Take(usize),
    Confirm(usize),
    Fail(usize),
    Break,
    Close(u64),
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6_u8, 1..4_u64).prop_map(|(n, epoch)| Event::Accept(n, epoch)),
        1 => (0..6_u8, 1..4_u64).prop_map(|(n, epoch)| Event::Sweep(n, epoch)),
        4 => (0..4_usize).prop_map(Event::Take),
        3 => any::<usize>().prop_map(Event::Confirm),
        1 => any::<usize>().prop_map(Event::Fail),
        1 => Just(Event::Break),
        1 => (1..4_u64).prop_map(Event::Close),
        1 => Just(Event::Wait),
    ]
}

proptest! {
    /// Against a model that knows nothing of lanes: an order is held from its acceptance to the confirm
    /// of a message that carries its newest epoch; "nothing held" is said exactly when it is so; and
    /// whatever happens, everything held can still go out.
    #[test]
    fn whatever_happens_nothing_is_lost_and_nothing_is_claimed(
        events in proptest::collection::vec(event(), 1..80),
    ) {
        let (mut held, mut now, room) = (Held::new(2), Instant::now(), Room::new(100));
        // Order → its newest epoch, and which of its stays this is.
        let (mut model, mut stays, mut closed) = (HashMap::<u8, (u64, u64)>::new(), 0..u64::MAX, 0);
        let mut out: Vec<(Ticket, u8, u64)> = Vec::new();
        for event in events {
            match event {
                Event::Accept(n, epoch) => {
                    let arrival = Arrival { place: room.take().unwrap(), ..arrival(n, epoch) };
                    let taken = held.accept(&segment(), epoch, [arrival], now);
                    prop_assert_eq!(taken.is_ok(), epoch > closed);
                    if epoch > closed {
                        let before = model.get(&n).copied();
                        if before.is_none_or(|(stamp, _)| epoch > stamp) {
                            model.insert(n, (epoch, stays.next().unwrap()));
                        }
                    }
                }
                Event::Sweep(n, epoch) => {
                    let taken = held.adopt(arrival(n, epoch).parcel, room.take().unwrap(), now);
                    prop_assert_eq!(taken, epoch > closed && !model.contains_key(&n));
                    if taken {
                        model.insert(n, (epoch, stays.next().unwrap()));
                    }
                }
                Event::Take(most) => {
                    let taken = held.take(most, now).into_iter();
                    out.extend(taken.map(|(ticket, _, p)| (ticket, p.order.uuid[0], model[&p.order.uuid[0]].1)));
                }
                Event::Confirm(at) if !out.is_empty() => {
                    let (ticket, n, stay) = out.remove(at % out.len());
                    held.confirmed(&[ticket]);
                    if model.get(&n).is_some_and(|newest| newest.1 == stay) {
                        model.remove(&n);
                    }
                }
                Event::Fail(at) if !out.is_empty() => {
                    held.failed(out.remove(at % out.len()).0, now);
                }
                Event::Break => {
                    held.broken();
                    out.clear();
                }
                Event::Close(epoch) => {
                    held.close(&segment(), epoch);
                    closed = closed.max(epoch);
                }
                Event::Confirm(_) | Event::Fail(_) | Event::Wait => now += REST,
            }
            prop_assert_eq!((held.count(), room.taken()), (model.len(), model.len()));
            for (n, (stamp, _)) in &model {
                prop_assert!(held.holds(&order(*n)), "{} of epoch {}", n, stamp);
            }
            let empty = model.values().all(|(stamp, _)| *stamp > closed);
            prop_assert_eq!(held.nothing_held().contains_key("sale:0"), closed > 0 && empty);
        }
        held.broken();
        let rest: Vec<Ticket> = held.take(usize::MAX, now).into_iter().map(|job| job.0).collect();
        prop_assert!(rest.is_sorted());
        prop_assert_eq!(held.confirmed(&rest).0.len(), model.len());
        prop_assert_eq!((held.count(), room.taken()), (0, 0));
    }
}
