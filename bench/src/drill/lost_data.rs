//! Redis dies in mid-sale and comes back without the end of what it had written, or without any of it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Scene, Setting, wait_for};
use crate::admin::Offer;
use crate::crowd::{Crowd, Plan};
use crate::environment::Environment;
use crate::oracle::{Rules, accepted};
use crate::schedule::Profile;
use crate::servers::Servers;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct LostData {
    /// How often Redis loses the end of its file, and how often everything
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub times: u32,
    /// Orders a second meanwhile
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=5_000))]
    pub rate: u32,
}

/// The longest that one loss with its recovery may take on average.
const SECONDS_EACH: u32 = 20;
/// Bytes at the end of the file that may be lost, at the most.
const TAIL: u64 = 64 * 1024;

/// What is lost, and how soon the sale must go on after Redis is up.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Tail,
    Everything,
}

impl Loss {
    fn limit(self) -> Duration {
        match self {
            Self::Tail => Duration::from_secs(10),
            Self::Everything => Duration::from_secs(15),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Tail => "the end of its data",
            Self::Everything => "all of its data",
        }
    }
}

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &LostData) -> Result<bool> {
    let buyers = ask.rate * ask.times * 2 * SECONDS_EACH;
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    scene.faults = true;
    let plan = Plan { mint: true, faults: true, paid: 0.1, ..scene.plan(Profile::Rate(f64::from(ask.rate))) };
    let (stop, sold) = (plan.stop.clone(), plan.accepted.clone());
    let mut crowd = Crowd::new(&scene.buyers, (0..buyers).collect(), plan);
    let mut tally = scene.tally("lost-data", u64::from(buyers))?;
    let thief = Thief {
        environment: setting.environment.clone(),
        servers: Servers::new(setting.environment.directory.clone()),
        random: StdRng::seed_from_u64(setting.seed),
        accepted: sold,
    };
    let times = ask.times;
    let losses = std::thread::scope(|scope| {
        let thief = scope.spawn(move || {
            let losses = thief.steal(times);
            stop.store(true, Ordering::Relaxed);
            losses
        });
        let limit = Duration::from_secs(u64::from(times * 2 * SECONDS_EACH * 3) + 180);
        let ran = scene.run(&mut crowd, &mut tally, limit);
        let losses = thief.join().map_err(|_| anyhow::anyhow!("the thief's thread panicked"))?;
        ran.and(losses)
    })?;
    for (loss, took) in losses {
        let good = took <= loss.limit();
        let text = format!(
            "redis lost {}: the sale went on {:.1} s after it was up, at most {}",
            loss.word(),
            took.as_secs_f64(),
            loss.limit().as_secs()
        );
        scene.verdicts.say(good, text);
    }
    scene.resolve(&mut tally)?;
    let taken = accepted(&tally.entries()?);
    scene.audit("after it all", u64::from(taken))?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: None })
}

struct Thief {
    environment: Environment,
    servers: Servers,
    random: StdRng,
    /// Orders accepted so far.
    accepted: Arc<AtomicU64>,
}

impl Thief {
    /// Both kinds of losses in turn; how long each took to be mended.
    fn steal(mut self, times: u32) -> Result<Vec<(Loss, Duration)>> {
        let mut losses = Vec::new();
        for loss in (0..times).flat_map(|_| [Loss::Tail, Loss::Everything]) {
            self.pause(1_000..4_000);
            self.servers.kill("redis")?;
            self.lose(loss)?;
            self.servers.start("redis")?;
            let address = self.environment.redis;
            wait_for("redis to listen", Duration::from_secs(30), || {
                Ok(std::net::TcpStream::connect(address).map(drop)?)
            })?;
            let (up, before) = (Instant::now(), self.accepted.load(Ordering::Relaxed));
            wait_for("the sale to go on", Duration::from_secs(60), || {
                let more = self.accepted.load(Ordering::Relaxed) > before;
                if more { Ok(()) } else { bail!("no order is accepted") }
            })
            .with_context(|| format!("after redis lost {}", loss.word()))?;
            losses.push((loss, up.elapsed()));
        }
        Ok(losses)
    }

    fn pause(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(millis)));
    }

    fn lose(&mut self, loss: Loss) -> Result<()> {
        let folder = self.environment.directory.join("redis/appendonlydir");
        match loss {
            Loss::Everything => {
                std::fs::remove_dir_all(&folder).with_context(|| format!("deleting {}", folder.display()))
            }
            Loss::Tail => {
                let file = newest(&folder)?;
                let file = OpenOptions::new().write(true).open(file)?;
                let length = file.metadata()?.len();
                Ok(file.set_len(length - self.random.random_range(1..=TAIL).min(length))?)
            }
        }
    }
}

/// The file that Redis wrote to last.
pub fn newest(folder: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".incr.aof") {
            files.push((path.metadata()?.modified()?, path));
        }
    }
    let Some((_, path)) = files.into_iter().max() else { bail!("no AOF in {}", folder.display()) };
    Ok(path)
}
