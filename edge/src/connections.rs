//! The open connections of one listener. When there is no room for another one, the one that has been
//! idle for longest makes room; and one address may have only so many.
//!
//! A request touches nothing but its own connection's [`Place`], where one number tells since when it is
//! idle. The table is locked when a connection comes and when it goes. Who has been idle for longest is
//! looked up only where there is no room, once for many newcomers: whoever is idle since then comes later
//! in that order anyway.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use tokio::sync::Notify;

use crate::filter::address::{Networks, bucket_key};

/// A request of it is being served.
const BUSY: u64 = 0;
/// It has to go, or has gone.
const GONE: u64 = u64::MAX;
/// How long nobody is looked for again where almost all were busy: to look costs a glance at each.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Connections that were told to go and may still be there, at least.
const LEAVING: usize = 128;

/// How many connections that were told to go may still be there: newcomers come in bursts.
pub fn leaving(most: usize) -> usize {
    (most / 16).max(LEAVING)
}

/// What operators see of the connections.
#[derive(Debug, Default)]
pub struct Tally {
    /// Open now.
    pub open: AtomicUsize,
    /// How many may be.
    pub most: AtomicUsize,
    /// Closed although they might have stayed, to make room.
    pub made_room: AtomicU64,
    /// Turned away: there was no room, and nobody was idle.
    pub full: AtomicU64,
    /// Turned away: their address had as many as an address may.
    pub capped: AtomicU64,
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// At a time.
    pub most: usize,
    /// Of one address; 0 for any number.
    pub each: usize,
}

/// All connections of one listener.
#[derive(Debug)]
pub struct Connections {
    bounds: Bounds,
    /// Who may have any number.
    exempt: Networks,
    born: Instant,
    tally: Arc<Tally>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    slots: AHashMap<u64, Arc<Slot>>,
    /// How many of them were told to go.
    leaving: usize,
    addresses: AHashMap<IpAddr, usize>,
    /// Those that were idle when last looked at, the longest at the end.
    idle: Vec<(u64, Arc<Slot>)>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    /// [`BUSY`], [`GONE`], or since when it is idle.
    since: AtomicU64,
    go: Notify,
}

impl Slot {
    /// Tells it to go, if it has been idle since then.
    fn expel(&self, since: u64) -> bool {
        let idle = self.since.compare_exchange(since, GONE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if idle {
            self.go.notify_one();
        }
        idle
    }
}

/// One connection's place; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    address: Option<IpAddr>,
    slot: Arc<Slot>,
    all: Arc<Connections>,
}

impl Connections {
    /// None yet.
    pub fn new(bounds: Bounds, exempt: Networks, tally: Arc<Tally>) -> Arc<Self> {
        tally.most.store(bounds.most, Ordering::Relaxed);
        Arc::new(Self { bounds, exempt, born: Instant::now(), tally, table: Mutex::default() })
    }

    /// A place for one more, who comes from this address.
    pub fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let capped = self.bounds.each > 0 && !self.exempt.trusts(peer);
        let address = capped.then(|| bucket_key(peer));
        let mut table = self.table();
        let there = address.and_then(|address| table.addresses.get(&address)).copied().unwrap_or(0);
        if capped && there >= self.bounds.each {
            self.tally.capped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if table.slots.len() - table.leaving >= self.bounds.most && !self.expel(&mut table) {
            self.tally.full.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let slot = Arc::new(Slot { since: AtomicU64::new(self.mark(Instant::now())), go: Notify::new() });
        let number = table.next;
        table.next += 1;
        table.slots.insert(number, Arc::clone(&slot));
        if let Some(address) = address {
            table.addresses.insert(address, there + 1);
        }
        self.tally.open.store(table.slots.len(), Ordering::Relaxed);
        Some(Place { number, address, slot, all: Arc::clone(self) })
    }

    /// Closes some that are idle: something else than places has run out. Answers whether any was.
    pub fn make_room(&self) -> bool {
        let mut table = self.table();
        let wanted = (table.slots.len() / 16).clamp(1, LEAVING);
        (0..wanted).take_while(|_| self.expel(&mut table)).count() > 0
    }

    /// Tells the one that has been idle for longest to go; `false` when none is.
    fn expel(&self, table: &mut Table) -> bool {
        if table.leaving >= leaving(self.bounds.most) {
            return false;
        }
        loop {
            while let Some((since, slot)) = table.idle.pop() {
                if slot.expel(since) {
                    table.leaving += 1;
                    self.tally.made_room.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
            }
            if table.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN) {
                return false;
            }
            table.looked = Some(Instant::now());
            let all = table.slots.values().map(|slot| (slot.since.load(Ordering::Relaxed), slot));
            let idle = all.filter(|(since, _)| !matches!(*since, BUSY | GONE));
            table.idle = idle.map(|(since, slot)| (since, Arc::clone(slot))).collect();
            table.idle.sort_unstable_by_key(|(since, _)| Reverse(*since));
        }
    }

    fn leave(&self, place: &Place) {
        let mut table = self.table();
        table.slots.remove(&place.number);
        if place.slot.since.swap(GONE, Ordering::AcqRel) == GONE {
            table.leaving -= 1;
        }
        if let Some(address) = place.address
            && let Some(count) = table.addresses.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                table.addresses.remove(&address);
            }
        }
        self.tally.open.store(table.slots.len(), Ordering::Relaxed);
    }

    fn mark(&self, since: Instant) -> u64 {
        let micros = since.saturating_duration_since(self.born).as_micros();
        u64::try_from(micros).unwrap_or(GONE - 2) + 1
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// A request has come. `false` when the connection had to go before: then nobody serves it.
    pub fn begin(&self) -> bool {
        let slot = &self.slot.since;
        let since = slot.load(Ordering::Relaxed);
        since != GONE && slot.compare_exchange(since, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The request is answered: idle since then.
    pub fn rest(&self, since: Instant) {
        let mark = self.all.mark(since);
        // Whoever was told to go meanwhile was idle all along, and still has to.
        let _ = self.slot.since.compare_exchange(BUSY, mark, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Comes back when this connection has to make room.
    pub async fn told_to_go(&self) {
        self.slot.go.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.leave(self);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use http::HeaderName;

    use crate::filter::address::Network;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn connections(most: usize, each: usize) -> (Arc<Connections>, Arc<Tally>) {
        let proxy = Network::parse("10.0.0.0/8").unwrap();
        let exempt = Networks::new(vec![proxy], HeaderName::from_static("x-forwarded-for"));
        let tally = Arc::new(Tally::default());
        (Connections::new(Bounds { most, each }, exempt, tally.clone()), tally)
    }

    fn must_go(place: &Place) -> bool {
        place.told_to_go().now_or_never().is_some()
    }

    /// As far apart as the order of two of them may be told.
    fn later() {
        std::thread::sleep(Duration::from_micros(10));
    }

    fn enter(all: &Arc<Connections>, count: usize) -> Vec<Place> {
        let next = |_| {
            later();
            all.enter(ip("192.0.2.1")).unwrap()
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn the_one_that_was_idle_for_longest_makes_room() {
        let (all, tally) = connections(3, 0);
        let old = enter(&all, 3);
        later();
        assert!(old[0].begin());
        old[0].rest(Instant::now());
        let newcomer = all.enter(ip("192.0.2.9")).unwrap();
        assert_eq!([0, 1, 2].map(|at| must_go(&old[at])), [false, true, false]);
        assert!(!old[1].begin(), "nobody serves it any more");
        assert!(old[2].begin() && newcomer.begin());
        assert_eq!(tally.made_room.load(Ordering::Relaxed), 1);
        drop(old);
        assert_eq!((tally.open.load(Ordering::Relaxed), all.table().leaving), (1, 0));
    }

    #[test]
    fn one_that_is_served_stays_and_where_all_are_the_newcomer_is_turned_away() {
        let (all, tally) = connections(2, 0);
        let old = enter(&all, 2);
        assert!(old.iter().all(Place::begin));
        assert!(all.enter(ip("192.0.2.9")).is_none());
        assert_eq!(tally.full.load(Ordering::Relaxed), 1);
        old[0].rest(Instant::now());
        std::thread::sleep(LOOK_AGAIN);
        assert!(all.enter(ip("192.0.2.9")).is_some());
        assert_eq!([0, 1].map(|at| must_go(&old[at])), [true, false]);
    }

    #[test]
    fn many_newcomers_are_let_in_by_one_look() {
        let (all, tally) = connections(100, 0);
        let (mut old, mut newcomers) = (enter(&all, 100), Vec::new());
        for gone in 0..100 {
            newcomers.push(all.enter(ip("192.0.2.9")).unwrap());
            assert!(must_go(&old[0]), "{gone}");
            old.remove(0);
        }
        assert_eq!((all.table().slots.len(), tally.made_room.load(Ordering::Relaxed)), (100, 100));
    }

    #[test]
    fn those_that_linger_are_bounded_too() {
        let (all, tally) = connections(LEAVING * 2, 0);
        let _old = enter(&all, LEAVING * 2);
        let newcomers: Vec<Place> = (0..LEAVING * 2).filter_map(|_| all.enter(ip("192.0.2.9"))).collect();
        assert_eq!((newcomers.len(), tally.full.load(Ordering::Relaxed)), (LEAVING, LEAVING as u64));
    }

    #[test]
    fn an_address_has_so_many_and_a_proxy_any_number() {
        let (all, tally) = connections(100, 2);
        let first = all.enter(ip("2001:db8::1")).unwrap();
        let _second = all.enter(ip("2001:db8::ffff:1")).unwrap();
        assert!(all.enter(ip("2001:db8::2")).is_none(), "the same network of 64 bits");
        assert_eq!(tally.capped.load(Ordering::Relaxed), 1);
        assert!(all.enter(ip("2001:db8:0:1::1")).is_some());
        let _proxied: Vec<Place> = (0..9).map(|_| all.enter(ip("10.1.1.1")).unwrap()).collect();
        drop(first);
        assert!(all.enter(ip("2001:db8::2")).is_some());
        assert_eq!(all.table().addresses.len(), 1);
    }

    #[test]
    fn what_else_runs_out_closes_some_that_are_idle() {
        let (all, tally) = connections(1000, 0);
        let old = enter(&all, 48);
        assert!(all.make_room());
        assert_eq!(tally.made_room.load(Ordering::Relaxed), 3);
        assert!(must_go(&old[0]) && must_go(&old[2]) && !must_go(&old[3]));
        assert!(old.iter().skip(3).all(Place::begin) && !all.make_room());
    }
}
