//! The whole machine goes dark under load: stores, edges, workers, all at once. Redis writes before it
//! answers, so nothing that was accepted may be missing when the power is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Scene, Setting, wait_for};
use crate::admin::Offer;
use crate::crowd::{Crowd, Plan};
use crate::oracle::{Rules, accepted};
use crate::schedule::Profile;
use crate::servers::Servers;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct PowerCut {
    /// How often the power is cut
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub times: u32,
    /// Orders a second meanwhile
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=5_000))]
    pub rate: u32,
    /// Orders that are sold before the first cut
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub orders: u32,
}

/// Everything, in the order in which it is started again.
const ALL: [&str; 7] = ["postgres", "redis", "rabbitmq", "warden-1", "warden-2", "worker", "edge"];
/// How soon it has to sell again.
const LIMIT: Duration = Duration::from_secs(30);
/// How long it is waited for all the same.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest that one cut with its recovery may take on average.
const SECONDS_EACH: u32 = 60;

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &PowerCut) -> Result<bool> {
    let buyers = ask.orders + ask.rate * ask.times * SECONDS_EACH;
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    scene.faults = true;
    let mut tally = scene.tally("power-cut", u64::from(buyers))?;
    scene.sell_before(ask.orders, &mut tally)?;
    let plan = Plan { mint: true, faults: true, paid: 0.1, ..scene.plan(Profile::Rate(f64::from(ask.rate))) };
    let (stop, sold) = (plan.stop.clone(), plan.accepted.clone());
    let mut crowd = Crowd::new(&scene.buyers, (ask.orders..buyers).collect(), plan);
    let mut random = StdRng::seed_from_u64(setting.seed);
    let directory = setting.environment.directory.clone();
    let times = ask.times;
    let cuts = std::thread::scope(|scope| {
        let cutter = scope.spawn(move || {
            let mut servers = Servers::new(directory);
            let cut = (0..times).map(|_| {
                std::thread::sleep(Duration::from_millis(random.random_range(2_000..5_000)));
                cut(&mut servers, &sold)
            });
            let cuts: Result<Vec<Duration>> = cut.collect();
            stop.store(true, Ordering::Relaxed);
            cuts
        });
        let ran = scene.run(&mut crowd, &mut tally, PATIENCE * times + Duration::from_secs(180));
        let cuts = cutter.join().map_err(|_| anyhow!("the cutter's thread panicked"))?;
        ran.and(cuts)
    })?;
    for took in cuts {
        let seconds = took.as_secs_f64();
        let words =
            format!("{seconds:.1} s after the power was back it sold again, at most {}", LIMIT.as_secs());
        scene.verdicts.say(took <= LIMIT, words);
    }
    scene.resolve(&mut tally)?;
    let taken = accepted(&tally.entries()?);
    scene.audit("after it all", u64::from(taken))?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: None })
}

/// One power cut; how long after it until an order was accepted.
fn cut(servers: &mut Servers, sold: &Arc<AtomicU64>) -> Result<Duration> {
    servers.kill_all(&ALL)?;
    let (dark, before) = (Instant::now(), sold.load(Ordering::Relaxed));
    // All at once, as at a machine's start: the one that waits for itself comes last.
    for name in ALL.iter().rev() {
        servers.start(name).with_context(|| format!("starting {name}"))?;
    }
    wait_for("an order to be accepted", PATIENCE, || {
        // What ends for want of its stores is started again, as a machine's supervisor does.
        for name in ALL {
            if servers.pid(name).is_err() {
                servers.start(name)?;
            }
        }
        if sold.load(Ordering::Relaxed) > before { Ok(()) } else { bail!("none is") }
    })?;
    Ok(dark.elapsed())
}
