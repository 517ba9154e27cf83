//! Two edges behind a balancer are restarted one behind the other in mid-sale, and replaced on their
//! own address: no request is cut, refused or answered by a failure because of it.

mod balancer;
mod pair;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use sluice_shared::clock::Millis;

use super::{Ask, Scene, Setting};
use crate::admin::Offer;
use crate::client::Kind;
use crate::client::outcome::{ACCEPTED, Outcome, REPLAYED, UNAVAILABLE};
use crate::oracle::{Rules, accepted};
use crate::report::Tally;
use balancer::{Balancer, Targets};
use pair::Pair;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Rolling {
    /// How often each of the two edges is restarted
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub restarts: u32,
    /// How often one is replaced by a successor on the same address
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub successors: u32,
    /// Orders a second meanwhile
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=2_000))]
    pub rate: u32,
}

/// The longest that one restart may take on average.
const SECONDS_EACH: u32 = 12;
/// How often a token is sent whose outcome Redis told too late.
const ATTEMPTS: u32 = 100;
/// Threads that buy, each over its own connections.
const THREADS: u32 = 8;

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &Rolling) -> Result<bool> {
    let buyers = ask.rate * (ask.restarts * 2 + ask.successors) * SECONDS_EACH;
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    let mut pair = Pair::start(&setting.environment)?;
    let tally = Mutex::new(scene.tally("rolling", u64::from(buyers))?);
    let (targets, stop) = (Targets::new(pair.addresses()), AtomicBool::new(false));
    let (next, stale) = (AtomicU32::new(0), AtomicU64::new(0));
    let crowd =
        Crowd { scene: &scene, tally: &tally, targets: &targets, stop: &stop, next: &next, stale: &stale };
    let pause = Duration::from_secs(1) * THREADS / ask.rate;
    let rolled = std::thread::scope(|scope| {
        scope.spawn(|| targets.watch(&stop));
        let buying: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| crowd.buy(pause))).collect();
        let rolled = pair.roll(&targets, ask.restarts, ask.successors);
        stop.store(true, Ordering::Relaxed);
        for thread in buying {
            thread.join().map_err(|_| anyhow!("a buyers' thread panicked"))??;
        }
        rolled
    });
    rolled?;
    pair.end()?;
    let mut tally = tally.into_inner().map_err(|_| anyhow!("a buyers' thread panicked"))?;
    let (restarts, successors) = (ask.restarts, ask.successors);
    let words = format!("two edges were restarted {restarts} times each, one replaced {successors} times");
    scene.verdicts.say(true, words);
    let (taken, asked) = (accepted(&tally.entries()?), next.load(Ordering::Relaxed).min(buyers));
    scene.verdicts.say(taken == asked && taken > 0, format!("{taken} of {asked} orders were accepted"));
    let stale = stale.load(Ordering::Relaxed);
    scene
        .verdicts
        .say(true, format!("{stale} kept connections had been closed, before they were used again"));
    scene.audit("after it all", u64::from(taken))?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: Some(asked) })
}

/// What the buyers' threads share.
struct Crowd<'a> {
    scene: &'a Scene,
    tally: &'a Mutex<Tally>,
    targets: &'a Targets,
    stop: &'a AtomicBool,
    next: &'a AtomicU32,
    /// Kept connections that were closed when a request came for them.
    stale: &'a AtomicU64,
}

impl Crowd<'_> {
    /// One buyer after the other, each with one order, until told to stop. A replay at the first time
    /// is a failure: an answer was lost.
    fn buy(&self, pause: Duration) -> Result<()> {
        let mut balancer = Balancer::new(self.targets);
        while !self.stop.load(Ordering::Relaxed) {
            let buyer = self.next.fetch_add(1, Ordering::Relaxed);
            if buyer >= self.scene.buyers.count() {
                break;
            }
            let (token, order) = self
                .scene
                .buyers
                .mint(buyer, Millis(Millis::now().0 + 600_000))
                .context("minting a token")?;
            let request = self.scene.buyers.order_request(buyer, &token, 1);
            let ask = Ask { buyer, order: &order, units: 1, request };
            let mut kind = Kind::Buy;
            let mut allowed: &[Outcome] = &[ACCEPTED, UNAVAILABLE];
            for _ in 0..ATTEMPTS {
                let sent = self.scene.now();
                let answer = balancer.call(&ask.request);
                let (entry, outcome) = (self.scene.entry(kind, &ask, sent, &answer), answer.outcome);
                let mut tally = self.tally.lock().map_err(|_| anyhow!("another thread panicked"))?;
                tally.count(allowed, &entry, &answer);
                drop(tally);
                std::thread::sleep(pause);
                if outcome != UNAVAILABLE {
                    break;
                }
                // Redis was late, which is no edge's doing: how often is judged, and the token tells.
                kind = Kind::Again;
                allowed = &[ACCEPTED, REPLAYED, UNAVAILABLE];
            }
        }
        self.stale.fetch_add(balancer.stale(), Ordering::Relaxed);
        Ok(())
    }
}
