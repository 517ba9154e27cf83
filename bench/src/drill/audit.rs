//! The audit of a large sale while it goes on selling: it balances, is quick, and takes little of the
//! primary's time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{Scene, Setting, wait_for};
use crate::admin::{Offer, audit};
use crate::crowd::{Crowd, Plan};
use crate::environment::Environment;
use crate::fleet::redis::Node;
use crate::oracle::Rules;
use crate::redis_time;
use crate::schedule::Profile;
use sluice_shared::ids::SaleId;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Audit {
    /// Orders that there are when the first audit begins
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=900_000))]
    pub orders: u32,
    /// Orders a second meanwhile; on two busy cores 500 leave too little for the audit
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=5_000))]
    pub rate: u32,
    /// Audits of Redis, one after the other, and as many of a replica
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub audits: u32,
}

/// How long an audit of so many orders may take; a larger one in proportion.
const LONGEST: Duration = Duration::from_secs(5);
const FULL: f64 = 100_000.0;
/// The share of Redis' time that one audit a minute may take.
const SHARE: f64 = 0.01;
const MINUTE: Duration = Duration::from_secs(60);
/// How long an audit may take before the buyers run out.
const SECONDS_EACH: u32 = 20;
/// So long it is watched beforehand what wardens and edges read: two rounds of the reconciler.
const WATCHED: Duration = Duration::from_secs(20);

/// One audit.
#[derive(Debug)]
struct Look {
    /// Whether it read a replica.
    replica: bool,
    balanced: bool,
    took: Duration,
    /// The primary's time on it: what was read meanwhile, less what others would have read.
    primary: Duration,
    /// The replica's time on it; exactly, for nobody else reads that one.
    copy: Duration,
    /// Orders there were when it began.
    orders: u64,
    /// Orders accepted meanwhile.
    sold: u64,
    text: String,
}

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &Audit) -> Result<bool> {
    let buyers = ask.orders + ask.rate * (ask.audits * 2 + 1) * SECONDS_EACH;
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    let mut tally = scene.tally("audit", u64::from(buyers))?;
    scene.sell_before(ask.orders, &mut tally)?;
    scene.audit("before it goes on", u64::from(ask.orders))?;

    let plan = Plan { mint: true, paid: 0.3, ..scene.plan(Profile::Rate(f64::from(ask.rate))) };
    let (stop, accepted) = (plan.stop.clone(), plan.accepted.clone());
    let mut crowd = Crowd::new(&scene.buyers, (ask.orders..buyers).collect(), plan);
    let replica = Replica::start(&setting.environment)?;
    let before = u64::from(ask.orders);
    let mut auditor = Auditor::new(&setting.environment, &replica.node, &scene.sale, before, accepted)?;
    let audits = ask.audits;
    let looks: Vec<Look> = std::thread::scope(|scope| {
        let auditor = scope.spawn(move || {
            let looks =
                auditor.watch().and_then(|()| (0..audits * 2).map(|at| auditor.look(at >= audits)).collect());
            stop.store(true, Ordering::Relaxed);
            looks
        });
        let ran = scene.run(&mut crowd, &mut tally, Duration::from_secs(600));
        let looks = auditor.join().map_err(|_| anyhow::anyhow!("the auditor's thread panicked"))?;
        ran.and(looks)
    })?;
    drop(replica);
    looks.iter().for_each(|look| judge(&mut scene, look));
    judge_share(&mut scene, &looks);
    scene.audit("at rest", u64::from(buyers))?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: None })
}

fn judge(scene: &mut Scene, look: &Look) {
    let longest = LONGEST.mul_f64((look.orders as f64 / FULL).max(1.0));
    let words = format!(
        "an audit of {} took {:.1} s, at most {:.1} for {} orders; {} were accepted meanwhile",
        look.read(),
        look.took.as_secs_f64(),
        longest.as_secs_f64(),
        look.orders,
        look.sold,
    );
    scene.verdicts.say(look.balanced && look.sold > 0 && look.took <= longest, words);
    if !look.balanced {
        println!("{}", look.text);
    }
}

/// What audits take of the time of the Redis that they read, on average: of the primary's roughly, because
/// wardens read there too, in bursts.
fn judge_share(scene: &mut Scene, looks: &[Look]) {
    let (primary, replica) = looks.split_at(looks.len() / 2);
    let primary = ("redis", primary.iter().map(|look| look.primary).collect::<Vec<_>>());
    let replica = ("a replica", replica.iter().map(|look| look.copy).collect::<Vec<_>>());
    for (read, spent) in [primary, replica] {
        let mean = spent.iter().sum::<Duration>() / u32::try_from(spent.len()).unwrap_or(1).max(1);
        let share = mean.as_secs_f64() / MINUTE.as_secs_f64();
        let words = format!(
            "an audit of {read} takes {} ms of its time: {:.2} % once a minute, at most {:.0}",
            mean.as_millis(),
            share * 100.0,
            SHARE * 100.0,
        );
        scene.verdicts.say(share <= SHARE, words);
    }
}

impl Look {
    fn read(&self) -> &'static str {
        if self.replica { "a replica" } else { "redis" }
    }
}

/// A replica of Redis while the drill runs.
struct Replica {
    node: Node,
    folder: PathBuf,
}

impl Replica {
    fn start(environment: &Environment) -> Result<Self> {
        let folder = environment.directory.join("audit");
        let node = Node::replica_of(environment, &folder).context("a replica for the audits")?;
        Ok(Self { node, folder })
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Err(error) = self.node.end(Signal::SIGKILL) {
            eprintln!("sluice-bench: the replica of redis: {error:#}");
        }
        // What is left over is deleted with the directory of `./dev up`.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Auditor {
    environment: Environment,
    /// The same with the replica's address.
    replica: Environment,
    sale: SaleId,
    /// Orders there were before it goes on.
    before: u64,
    /// Orders accepted since.
    accepted: Arc<AtomicU64>,
    /// The share of Redis' time that reading takes without an audit.
    others: f64,
}

impl Auditor {
    fn new(
        environment: &Environment,
        replica: &Node,
        sale: &SaleId,
        before: u64,
        accepted: Arc<AtomicU64>,
    ) -> Result<Self> {
        let url = environment.value("SLUICE_REDIS_URL")?;
        let url = url.replace(&environment.redis.to_string(), &replica.address.to_string());
        let mut other = environment.clone();
        other.set("SLUICE_REDIS_URL", url);
        other.redis = replica.address;
        Ok(Self {
            environment: environment.clone(),
            replica: other,
            sale: sale.clone(),
            before,
            accepted,
            others: 0.0,
        })
    }

    /// Measures what is read without an audit.
    fn watch(&mut self) -> Result<()> {
        let (before, began) = (redis_time::reading(&self.environment)?, Instant::now());
        std::thread::sleep(WATCHED);
        let spent = redis_time::reading(&self.environment)?.saturating_sub(before);
        self.others = spent.as_secs_f64() / began.elapsed().as_secs_f64();
        println!("without an audit, wardens and edges read for {:.1} % of redis' time", self.others * 100.0);
        Ok(())
    }

    /// Audits once the sale is selling.
    fn look(&self, replica: bool) -> Result<Look> {
        let before = self.accepted.load(Ordering::Relaxed);
        wait_for("an order", Duration::from_secs(30), || {
            if self.accepted.load(Ordering::Relaxed) > before { Ok(()) } else { bail!("nothing is sold") }
        })?;
        let sold = self.accepted.load(Ordering::Relaxed);
        let spent = || -> Result<[Duration; 2]> {
            Ok([redis_time::reading(&self.environment)?, redis_time::reading(&self.replica)?])
        };
        let (spent_before, began) = (spent()?, Instant::now());
        let environment = if replica { &self.replica } else { &self.environment };
        let audit = audit(environment, &self.sale, Duration::ZERO).context("auditing")?;
        let took = began.elapsed();
        let [primary, copy] = spent()?;
        let primary = primary.saturating_sub(spent_before[0]).saturating_sub(took.mul_f64(self.others));
        let copy = copy.saturating_sub(spent_before[1]);
        Ok(Look {
            replica,
            balanced: audit.code == 0,
            took,
            primary,
            copy,
            orders: self.before + sold,
            sold: self.accepted.load(Ordering::Relaxed) - sold,
            text: audit.text,
        })
    }
}
