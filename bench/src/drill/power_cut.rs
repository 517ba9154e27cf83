//! Everything dies at the same moment, as when the power goes, and is started again.

use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
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
    /// How often everything dies
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub times: u32,
    /// Orders a second meanwhile
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=5_000))]
    pub rate: u32,
}

/// The longest that one cut with its recovery may take on average.
const SECONDS_EACH: u32 = 45;
/// How soon the sale must go on after the stores listen.
const LIMIT: Duration = Duration::from_secs(30);
const ALL: [&str; 7] = ["redis", "rabbitmq", "postgres", "edge", "worker", "warden-1", "warden-2"];

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &PowerCut) -> Result<bool> {
    let buyers = ask.rate * ask.times * SECONDS_EACH;
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    scene.faults = true;
    let plan = Plan { mint: true, faults: true, paid: 0.1, ..scene.plan(Profile::Rate(f64::from(ask.rate))) };
    let (stop, sold) = (plan.stop.clone(), plan.accepted.clone());
    let mut crowd = Crowd::new(&scene.buyers, (0..buyers).collect(), plan);
    let mut tally = scene.tally("power-cut", u64::from(buyers))?;
    let environment = &setting.environment;
    let mains = Mains {
        servers: Servers::new(environment.directory.clone()),
        stores: vec![environment.redis, environment.amqp, environment.database()?],
        random: StdRng::seed_from_u64(setting.seed),
        accepted: sold,
    };
    let times = ask.times;
    let cuts = std::thread::scope(|scope| {
        let mains = scope.spawn(move || {
            let cuts = mains.cut(times);
            stop.store(true, Ordering::Relaxed);
            cuts
        });
        let limit = Duration::from_secs(u64::from(times * SECONDS_EACH * 3) + 180);
        let ran = scene.run(&mut crowd, &mut tally, limit);
        let cuts = mains.join().map_err(|_| anyhow::anyhow!("the thread that cuts the power panicked"))?;
        ran.and(cuts)
    })?;
    for took in cuts {
        let (took_s, limit) = (took.as_secs_f64(), LIMIT.as_secs());
        let text = format!(
            "everything died: the sale went on {took_s:.1} s after the stores were up, at most {limit}"
        );
        scene.verdicts.say(took <= LIMIT, text);
    }
    scene.resolve(&mut tally)?;
    let taken = accepted(&tally.entries()?);
    scene.audit("after it all", u64::from(taken))?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: None })
}

struct Mains {
    servers: Servers,
    /// Where the stores listen.
    stores: Vec<SocketAddrV4>,
    random: StdRng,
    /// Orders accepted so far.
    accepted: Arc<AtomicU64>,
}

impl Mains {
    /// Cuts the power so often; how long the sale stood still after the stores were up again.
    fn cut(mut self, times: u32) -> Result<Vec<Duration>> {
        let mut cuts = Vec::new();
        for _ in 0..times {
            std::thread::sleep(Duration::from_millis(self.random.random_range(1_000..4_000)));
            let mut names = ALL;
            names.shuffle(&mut self.random);
            for name in names {
                self.servers.kill(name)?;
            }
            for name in ALL {
                self.servers.start(name)?;
            }
            for store in self.stores.clone() {
                wait_for("the stores", Duration::from_secs(60), || {
                    // PostgreSQL does not start while a process of its predecessor lives.
                    if self.servers.pid("postgres").is_err() {
                        self.servers.start("postgres")?;
                    }
                    Ok(TcpStream::connect(store).map(drop)?)
                })?;
            }
            let (up, before) = (Instant::now(), self.accepted.load(Ordering::Relaxed));
            wait_for("the sale to go on", Duration::from_secs(90), || {
                let more = self.accepted.load(Ordering::Relaxed) > before;
                if more { Ok(()) } else { bail!("no order is accepted") }
            })?;
            cuts.push(up.elapsed());
        }
        Ok(cuts)
    }
}
