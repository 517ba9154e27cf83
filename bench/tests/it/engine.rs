//! Every request ends in exactly one outcome, and latency counts from when it was due.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use sluice_bench::client::answer::Answer;
use sluice_bench::client::engine::{Options, Ran, Sink, run};
use sluice_bench::client::outcome::{ACCEPTED, CUT, NO_ANSWER, Outcome, REFUSED};
use sluice_bench::client::{Entry, Kind, Lane, Load, Micros, Shot};
use sluice_bench::schedule::{Profile, Schedule};

use crate::server::{Deed, Server, accepted};

/// The same request, by schedule; each answer may be followed by one more.
struct Plain {
    schedule: Schedule,
    follow_ups: u32,
}

fn shot(due: Micros, buyer: u32) -> Shot {
    Shot {
        due,
        kind: Kind::Buy,
        buyer,
        order: None,
        units: 1,
        request: Bytes::from_static(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
        allowed: &[ACCEPTED],
        lane: Lane::Crowd,
        attempt: 0,
    }
}

impl Load for Plain {
    fn peek(&self) -> Option<Micros> {
        self.schedule.peek()
    }

    fn take(&mut self) -> Option<Shot> {
        self.schedule.take().map(|(number, due)| shot(due, u32::try_from(number).unwrap()))
    }

    fn answered(&mut self, _: &Shot, _: &Answer<'_>, now: Micros, more: &mut Vec<Shot>) {
        if self.follow_ups > 0 {
            self.follow_ups -= 1;
            more.push(shot(now + 1_000, 1_000));
        }
    }
}

#[derive(Default)]
struct Kept(Vec<Entry>);

impl Kept {
    fn count(&self, outcome: Outcome) -> usize {
        self.0.iter().filter(|entry| entry.outcome == outcome).count()
    }
}

impl Sink for Kept {
    fn note(&mut self, _: &Shot, entry: &Entry, _: &Answer<'_>) {
        self.0.push(*entry);
    }

    fn tick(&mut self, _: Micros) {}
}

fn drive(
    target: SocketAddrV4,
    connections: usize,
    profile: Profile,
    count: u64,
    follow_ups: u32,
) -> (Ran, Kept) {
    let (patience, limit) = (Duration::from_millis(300), Duration::from_secs(20));
    let base = std::time::Instant::now();
    let options = Options { targets: vec![target], connections, bots: 0, patience, limit, base };
    let mut load = Plain { schedule: Schedule::new(profile, 0, count), follow_ups };
    let mut kept = Kept::default();
    let ran = run(&options, &mut load, &mut kept).unwrap();
    (ran, kept)
}

#[test]
fn every_request_and_what_follows_from_it_is_answered_once() {
    let server = Server::start(|_| accepted());
    let (ran, kept) = drive(server.address, 8, Profile::Step, 500, 70);
    assert_eq!((ran.requests, ran.unsent, kept.0.len(), kept.count(ACCEPTED)), (570, 0, 570, 570));
    let peers = server.peers.lock().unwrap();
    let addresses: std::collections::HashSet<_> = peers.iter().map(std::net::SocketAddr::ip).collect();
    assert_eq!((peers.len(), addresses.len()), (8, 8), "each connection is kept, from its own address");
}

#[test]
fn latency_counts_from_when_a_request_was_due() {
    // One connection, 20 ms an answer, a request due each 10 ms: the later, the longer it waits.
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_millis(20));
        accepted()
    });
    let (_, kept) = drive(server.address, 1, Profile::Rate(100.0), 30, 0);
    let last = kept.0.iter().max_by_key(|entry| entry.due).unwrap();
    assert_eq!(last.due, 290_000);
    assert!(last.latency() >= 300_000, "{last:?}");
    assert!(last.done - last.sent < 200_000, "{last:?}");
}

#[test]
fn a_connection_that_ends_costs_its_own_request_only() {
    let server = Server::start(|number| if number % 10 == 3 { Deed::Close } else { accepted() });
    let (ran, kept) = drive(server.address, 4, Profile::Step, 200, 0);
    assert_eq!((ran.requests, kept.count(CUT), kept.count(ACCEPTED)), (200, 20, 180));
}

#[test]
fn an_answer_that_does_not_come_is_given_up() {
    let server = Server::start(|number| if number == 5 { Deed::Silence } else { accepted() });
    let (ran, kept) = drive(server.address, 2, Profile::Step, 20, 0);
    assert_eq!((ran.requests, kept.count(NO_ANSWER), kept.count(ACCEPTED)), (20, 1, 19));
}

#[test]
fn a_connection_that_was_announced_to_close_is_not_used_again() {
    let server = Server::start(|_| match accepted() {
        Deed::Answer(text) => Deed::Answer(text.replace("Location", "Connection: close\r\nLocation")),
        other => other,
    });
    let (_, kept) = drive(server.address, 2, Profile::Step, 20, 0);
    assert_eq!(kept.count(ACCEPTED), 20);
    assert!(server.peers.lock().unwrap().len() >= 20);
}

#[test]
fn nobody_listening_is_told_and_not_waited_for() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let (ran, kept) = drive(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), 2, Profile::Rate(1_000.0), 50, 0);
    assert_eq!((ran.requests, kept.count(REFUSED)), (50, 50));
    assert!(ran.elapsed < Duration::from_secs(5));
}
