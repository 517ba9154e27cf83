//! Token buckets in fixed memory: the arithmetic is governor's (GCRA), the table is ours.
//!
//! A map that grows with its keys can be filled by whoever rotates addresses. Here each key has
//! eight slots that it may use; when all are taken the stalest goes, which is the bucket that is
//! closest to full. An attack with many keys therefore costs accuracy for the attackers' own keys
//! first, and never memory.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::RandomState;
use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use crate::config::Rate;

const WAYS: usize = 8;
/// A slot that is changing hands. No bucket is ever full that far away.
const BUSY: u64 = u64::MAX;

/// One key's theoretical arrival time. A reader loads the time before the tag, a new owner marks the
/// time as busy before it changes the tag: a swap of a time that was read under another tag fails.
#[derive(Debug, Default)]
struct Slot {
    tag: AtomicU64,
    time: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Set([Slot; WAYS]);

/// A set-associative table of arrival times.
#[derive(Debug)]
struct Table {
    sets: Box<[Set]>,
    evicted: Arc<AtomicU64>,
}

impl Table {
    fn new(slots: usize, evicted: Arc<AtomicU64>) -> Self {
        let sets = slots.div_ceil(WAYS).max(1).next_power_of_two();
        Self { sets: (0..sets).map(|_| Set::default()).collect(), evicted }
    }

    fn set(&self, key: u64) -> &Set {
        // The sets are a power of two; the tag is the whole key, so the bits used here cost nothing.
        let index = usize::try_from(key >> 32).unwrap_or(0) & (self.sets.len() - 1);
        &self.sets[index]
    }
}

impl StateStore for Table {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (tag, set) = ((*key).max(1), self.set(*key));
        loop {
            if let Some(slot) = set.0.iter().find(|slot| slot.tag.load(Ordering::Acquire) == tag) {
                let time = slot.time.load(Ordering::Acquire);
                if time == BUSY || slot.tag.load(Ordering::Acquire) != tag {
                    std::hint::spin_loop();
                    continue;
                }
                let (value, next) = judge(Some(Nanos::new(time)))?;
                if swap(slot, time, next.as_u64()) {
                    return Ok(value);
                }
                continue;
            }
            let stalest = set.0.iter().map(|slot| (slot.time.load(Ordering::Acquire), slot));
            let Some((time, slot)) = stalest.min_by_key(|(time, _)| *time) else { continue };
            let (value, next) = judge(None)?;
            if time != BUSY && swap(slot, time, BUSY) {
                slot.tag.store(tag, Ordering::Release);
                slot.time.store(next.as_u64(), Ordering::Release);
                // A bucket as empty as the new one, or emptier, was still limiting somebody.
                if time >= next.as_u64() {
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(value);
            }
        }
    }
}

fn swap(slot: &Slot, from: u64, to: u64) -> bool {
    slot.time.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// What a bucket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// There is no limit.
    Unlimited,
    /// Taken; so many are left.
    Left(u32),
    /// Nothing was taken; it is worth trying again after this.
    Wait(Duration),
}

type Limiter<C> = RateLimiter<u64, Table, C, StateInformationMiddleware>;

/// The buckets of one kind of key.
pub struct Buckets<C: Clock = MonotonicClock> {
    limiter: Option<Limiter<C>>,
    clock: C,
    seed: RandomState,
    evicted: Arc<AtomicU64>,
}

impl<C: Clock> std::fmt::Debug for Buckets<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buckets").field("limited", &self.limiter.is_some()).finish_non_exhaustive()
    }
}

impl<C: Clock + Clone> Buckets<C> {
    /// Buckets for about `slots` keys; without any when the rate is off.
    pub fn new(rate: Rate, slots: usize, clock: C) -> Self {
        let evicted = Arc::new(AtomicU64::new(0));
        let quota = NonZeroU32::new(rate.per_second).zip(NonZeroU32::new(rate.burst));
        let limiter = quota.map(|(per_second, burst)| {
            let quota = Quota::per_second(per_second).allow_burst(burst);
            RateLimiter::new(quota, Table::new(slots, evicted.clone()), clock.clone())
        });
        // A seed of this process' own: nobody can choose keys that share a set.
        Self { limiter, clock, seed: RandomState::new(), evicted }
    }

    /// Takes one from the bucket of a key.
    pub fn take(&self, key: impl Hash) -> Taken {
        let Some(limiter) = &self.limiter else { return Taken::Unlimited };
        match limiter.check_key(&self.seed.hash_one(key)) {
            Ok(state) => Taken::Left(state.remaining_burst_capacity()),
            Err(not) => Taken::Wait(not.wait_time_from(self.clock.now())),
        }
    }

    /// Buckets that were given up while they still limited somebody.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    fn buckets(per_second: u32, burst: u32, slots: usize) -> (Buckets<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        // A clock at zero has no past for a full bucket to lie in.
        clock.advance(Duration::from_secs(3600));
        (Buckets::new(Rate { per_second, burst }, slots, clock.clone()), clock)
    }

    fn takes<C: Clock + Clone>(buckets: &Buckets<C>, key: u64, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(matches!(buckets.take(key), Taken::Left(_)))).sum()
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        let (buckets, _) = buckets(0, 1, 64);
        assert_eq!(buckets.take(1), Taken::Unlimited);
    }

    #[test]
    fn a_refusal_says_when_to_come_back_and_coming_back_then_helps() {
        let (buckets, clock) = buckets(10, 3, 64);
        assert_eq!([(); 3].map(|()| buckets.take(1))[2], Taken::Left(0));
        let Taken::Wait(wait) = buckets.take(1) else { unreachable!("the burst is used up") };
        assert_eq!(wait, Duration::from_millis(100));
        clock.advance(wait);
        assert_eq!(buckets.take(1), Taken::Left(0));
    }

    #[test]
    fn t4_a_bucket_under_overload_passes_its_rate_and_no_more() {
        let (buckets, clock) = buckets(1000, 50, 1024);
        let mut passed = takes(&buckets, 7, 1000);
        assert_eq!(passed, 50);
        for _ in 0..10_000 {
            clock.advance(Duration::from_micros(997));
            passed += takes(&buckets, 7, 3);
        }
        let allowed = 50 + 9970;
        assert!((allowed - 1..=allowed).contains(&passed), "{passed} of {allowed}");
    }

    #[test]
    fn a_million_random_keys_do_not_limit_a_steady_user_nor_grow_the_table() {
        let (buckets, clock) = buckets(100, 10, 4096);
        for n in 0_u64..1_000_000 {
            buckets.take(("noise", n));
            if n % 1000 == 0 {
                clock.advance(Duration::from_millis(10));
                assert!(!matches!(buckets.take("steady"), Taken::Wait(_)));
            }
        }
        let sets = buckets.limiter.map(|limiter| limiter.into_state_store().sets.len());
        assert_eq!(sets, Some(4096 / WAYS));
    }

    #[test]
    fn a_flood_of_other_keys_does_not_free_a_limited_one() {
        let (buckets, _) = buckets(1, 100, 64);
        assert_eq!(takes(&buckets, 1, 200), 100);
        for n in 1000_u64..1_010_000 {
            buckets.take(n);
        }
        assert_eq!(takes(&buckets, 1, 10), 0);
    }

    #[test]
    fn threads_together_never_pass_more_than_the_burst() {
        let (buckets, _) = buckets(1, 1000, 64);
        let passed: u32 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| takes(&buckets, 5, 10_000))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(u32::MAX / 8)).sum()
        });
        assert_eq!(passed, 1000);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(
            per_second in 1_u32..5_000, burst in 1_u32..500,
            pauses in proptest::collection::vec(0_u64..20_000, 1..400),
        ) {
            let (buckets, clock) = buckets(per_second, burst, 8);
            let (mut elapsed, mut passed) = (0_u64, 0_u64);
            for pause in pauses {
                clock.advance(Duration::from_micros(pause));
                elapsed += pause;
                passed += u64::from(takes(&buckets, 3, 4));
                let refill = elapsed * u64::from(per_second) / 1_000_000;
                // A period in whole nanoseconds is up to one short.
                prop_assert!(passed <= u64::from(burst) + refill + 1 + refill / 100_000);
            }
        }
    }
}
