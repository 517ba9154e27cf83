//! Everything is broken, again and again, several things at a time, under load; at each quiet moment the
//! books must balance, and nobody may have been told what is not so.
//!
//! Rounds of about 40 seconds. In a round a crowd buys over two edges while [`plan`]'s lanes break
//! things beside each other ([`deeds`], [`network`]); every fault is undone. Then the crowd ends, the
//! audit waits for rest, and the oracle compares answers and books. The system is a fleet of its own
//! ([`ground`]) in the place of the processes of `./dev up`, which come back at the end.

mod deeds;
mod doer;
mod ground;
mod interrupt;
mod journal;
mod network;
mod plan;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::SeedableRng;
use rand::rngs::StdRng;
use sluice_shared::ids::SaleId;

use super::{Scene, Setting, sells_again, wait_for};
use crate::admin::{Offer, audit};
use crate::client::engine::run as run_load;
use crate::crowd::{self, Crowd};
use crate::oracle::{Rules, accepted};
use crate::report::Verdicts;
use crate::schedule::Profile;
use doer::Doer;
use ground::Ground;
use interrupt::Interrupt;
use journal::Journal;
use plan::{Deed, Fault, Lane, Plan};

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Chaos {
    /// About how long; so many rounds, and faults in proportion
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1_440))]
    pub minutes: u32,
    /// About how many faults, instead of those that belong to the minutes
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub faults: Option<u32>,
    /// Faults of these kinds only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Deed>,
    /// Orders that each round's sale has before anything breaks
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub orders: u32,
    /// Orders a second meanwhile
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(10..=2_000))]
    pub rate: u32,
}

/// A round may take so long; with more, its crowd runs out of buyers.
const ROUND: u32 = 240;
/// The system has to be quiet so long after the last fault was undone.
const QUIET: Duration = Duration::from_secs(30);
/// How long it is waited for all the same, to tell late from never.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections of the crowd.
const CONNECTIONS: usize = 128;

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &Chaos) -> Result<bool> {
    let plan = Plan::new(setting.seed, ask.minutes, ask.faults, &ask.only);
    let folder = setting.environment.directory.join("chaos");
    println!("seed {}: {} faults in {} rounds", setting.seed, plan.count(), plan.rounds.len());
    let interrupt = Interrupt::listen()?;
    let ground = Ground::prepare(&setting.environment, &folder, setting.seed)?;
    let journal = Journal::create(&folder.join("faults.log"))?;
    write_schedule(&journal, &plan);
    let mut chaos = Run {
        setting,
        ask,
        ground: &ground,
        journal: &journal,
        interrupt: &interrupt,
        told: Verdicts::default(),
        quiet: Vec::new(),
    };
    let done = chaos.rounds(&plan);
    let Run { mut told, quiet, .. } = chaos;
    drop(ground);
    let back =
        wait_for("the system of `./dev up` to sell again", PATIENCE, || sells_again(&setting.environment));
    let slowest = quiet.iter().max().copied().unwrap_or_default();
    told.say(
        slowest <= QUIET && !quiet.is_empty(),
        format!(
            "{} times quiet and judged, the slowest {:.1} s after the last fault, at most {}",
            quiet.len(),
            slowest.as_secs_f64(),
            QUIET.as_secs()
        ),
    );
    print!("\n{}\n{told}", journal.table());
    if !told.are_good() {
        println!("\nthe last faults:\n{}", journal.last());
        println!("once more: {}", again(setting, ask));
        println!("logs: {}", folder.display());
    }
    done.and(back)?;
    Ok(told.are_good())
}

/// The command that does the same again.
fn again(setting: &Setting, ask: &Chaos) -> String {
    let env = setting.environment.directory.join("env");
    let faults = ask.faults.map(|faults| format!(" --faults {faults}")).unwrap_or_default();
    let only: Vec<String> = ask.only.iter().map(|kind| kind.name()).collect();
    let only = if only.is_empty() { String::new() } else { format!(" --only {}", only.join(",")) };
    let (seed, minutes, orders, rate) = (setting.seed, ask.minutes, ask.orders, ask.rate);
    let env = env.display();
    format!(
        "sluice-bench --env {env} --seed {seed} drill chaos --minutes {minutes}{faults}{only} --orders {orders} \
         --rate {rate}"
    )
}

fn write_schedule(journal: &Journal, plan: &Plan) {
    for (number, lanes) in plan.rounds.iter().enumerate() {
        for (lane, faults) in lanes {
            let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
            journal.note(&format!("plan: round {}, {lane:?}: {}", number + 1, words.join(", ")));
        }
    }
}

struct Run<'a> {
    setting: &'a Setting,
    ask: &'a Chaos,
    ground: &'a Ground,
    journal: &'a Journal,
    interrupt: &'a Interrupt,
    told: Verdicts,
    quiet: Vec<Duration>,
}

impl Run<'_> {
    /// All rounds, or those until a promise is broken.
    fn rounds(&mut self, plan: &Plan) -> Result<()> {
        let count = plan.rounds.len();
        for (at, lanes) in plan.rounds.iter().enumerate() {
            if self.interrupt.came() {
                bail!("interrupted in round {} of {count}", at + 1);
            }
            self.journal.note(&format!("round {} of {count}", at + 1));
            self.round(at, count, lanes).with_context(|| format!("in round {} of {count}", at + 1))?;
            if !self.told.are_good() {
                self.told.say(false, format!("given up after round {} of {count}", at + 1));
                return Ok(());
            }
        }
        Ok(())
    }

    /// A sale of this round, and what its crowd does.
    fn open(&self, at: usize) -> Result<(Scene, crowd::Plan)> {
        let seed = self.setting.seed.wrapping_add(at as u64);
        let (environment, log) = (self.ground.environment.clone(), None);
        let setting = Setting { environment, connections: CONNECTIONS, log, seed };
        let buyers = self.ask.orders + self.ask.rate * ROUND;
        // Every third sale sells out, every third expires.
        let stock = if at % 3 == 2 { self.ask.orders + self.ask.rate * 10 } else { buyers };
        let pay_within = if at % 3 == 1 { 5 } else { 3_600 };
        let mut scene =
            Scene::open(&setting, Offer { stock, per_user: 1, price: 19_900, pay_within }, buyers)?;
        scene.faults = true;
        let plan = crowd::Plan {
            mint: at.is_multiple_of(2),
            faults: true,
            paid: 0.3,
            cancelled: 0.1,
            pay_after: Duration::from_secs(3),
            ..scene.plan(Profile::Rate(f64::from(self.ask.rate)))
        };
        Ok((scene, plan))
    }

    fn round(&mut self, at: usize, count: usize, lanes: &BTreeMap<Lane, Vec<Fault>>) -> Result<()> {
        self.ground.wait_for_all()?;
        let (mut scene, plan) = self.open(at)?;
        let (stock, buyers) = (scene.offer.stock, scene.buyers.count());
        let (stop, orders) = (plan.stop.clone(), self.ask.orders);
        let due = orders + self.ask.rate * 60;
        let mut tally = scene.tally(&format!("chaos {}/{count}", at + 1), u64::from(due))?;
        scene.sell_before(orders, &mut tally)?;
        let mut crowd = Crowd::new(&scene.buyers, (orders..buyers).collect(), plan);
        let before = self.journal.count();
        let (ran, broken) = std::thread::scope(|scope| {
            let sale = &scene.sale;
            let breaker = scope.spawn(|| {
                let failed = self.break_all(lanes, at, sale);
                stop.store(true, Ordering::Relaxed);
                (failed, Instant::now())
            });
            let limit = Duration::from_secs(u64::from(ROUND) * 2);
            (run_load(&scene.options(limit), &mut crowd, &mut tally), breaker.join())
        });
        let (failed, ended) = broken.map_err(|_| anyhow::anyhow!("a lane's thread panicked"))?;
        let ran = ran?;
        let resolved = ended.elapsed();
        let audit = audit(&self.ground.environment, &scene.sale, PATIENCE)?;
        let quiet = ended.elapsed();
        self.quiet.push(quiet);
        for error in failed {
            self.told.say(false, format!("round {}: {error:#}", at + 1));
        }
        if audit.code != 0 {
            self.told.say(false, format!("round {}: the books do not balance:\n{}", at + 1, audit.text));
        }
        if ran.unsent > 0 {
            self.told
                .say(false, format!("round {}: {} requests were not sent: time was up", at + 1, ran.unsent));
        }
        scene.resolve(&mut tally)?;
        let (counted, log) = tally.finish()?;
        let rows = scene.admin.orders(&scene.sale)?;
        let rules = Rules { stock, per_user: 1, returns: true, taken: None };
        scene.judge(&counted, &log, &rows, &rules);
        println!(
            "round {} of {count}: {} faults, {} orders accepted, {} attempts made again; every outcome known \
             after {:.1} s, quiet after {:.1} s",
            at + 1,
            self.journal.count() - before,
            accepted(&log),
            counted.unresolved(),
            resolved.as_secs_f64(),
            quiet.as_secs_f64()
        );
        self.end(at, &scene, &counted.table())
    }

    /// Takes the round's verdicts over and closes its sale.
    fn end(&mut self, at: usize, scene: &Scene, table: &str) -> Result<()> {
        let path = scene.log_path()?;
        if scene.verdicts.are_good() && self.told.are_good() {
            wait_for("the sale to close", QUIET, || scene.admin.step(&scene.sale, "close"))?;
            return std::fs::remove_file(&path).with_context(|| format!("deleting {}", path.display()));
        }
        // The sale stays open, for whoever looks into it.
        print!("\n{table}\n{}", scene.verdicts);
        let words = format!("round {}: sale {}, its answers are in {}", at + 1, scene.sale, path.display());
        self.told.say(scene.verdicts.are_good(), words);
        Ok(())
    }

    /// All lanes beside each other; what could not be carried out or was not recovered from.
    fn break_all(&self, lanes: &BTreeMap<Lane, Vec<Fault>>, at: usize, sale: &SaleId) -> Vec<anyhow::Error> {
        let seed = self.setting.seed.wrapping_add(at as u64);
        std::thread::scope(|scope| {
            let lanes: Vec<_> = lanes
                .iter()
                .map(|(lane, faults)| {
                    scope.spawn(move || self.lane(faults, sale, seed ^ (*lane as u64 + 1) << 32))
                })
                .collect();
            let ended = lanes.into_iter().map(|lane| lane.join());
            ended
                .filter_map(|result| match result {
                    Ok(result) => result.err(),
                    Err(_) => Some(anyhow::anyhow!("a lane's thread panicked")),
                })
                .collect()
        })
    }

    fn lane(&self, faults: &[Fault], sale: &SaleId, seed: u64) -> Result<()> {
        let mut random = StdRng::seed_from_u64(seed);
        let doer = Doer { ground: self.ground, journal: self.journal, sale };
        for fault in faults {
            std::thread::sleep(doer::millis(&mut random, 100..1_000));
            if self.interrupt.came() {
                return Ok(());
            }
            doer.carry_out(*fault)?;
        }
        Ok(())
    }
}
