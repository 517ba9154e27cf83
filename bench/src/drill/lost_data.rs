//! Redis or RabbitMQ dies in mid-sale and comes back without the end of what it had written, without any of
//! it, or with all of it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Scene, Setting, wait_for};
use crate::admin::{Offer, Row};
use crate::crowd::{Crowd, Plan};
use crate::environment::Environment;
use crate::fleet::metric;
use crate::oracle::{Rules, accepted};
use crate::resp::Session;
use crate::schedule::Profile;
use crate::servers::Servers;
use sluice_shared::clock::Millis;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct LostData {
    /// What is lost; several are lost in turn
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Loss::Tail, Loss::Redis])]
    pub what: Vec<Loss>,
    /// How often each is lost
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub times: u32,
    /// Orders a second meanwhile
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=5_000))]
    pub rate: u32,
    /// Orders that are sold before anything is lost
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub orders: u32,
}

/// The longest that one loss with its recovery may take on average.
const SECONDS_EACH: u32 = 40;
/// Bytes at the end of the file that may be lost, at the most.
const TAIL: u64 = 64 * 1024;
/// Between the loss of Redis' data and of RabbitMQ's.
const APART: Duration = Duration::from_secs(15);

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Loss {
    /// Nothing: Redis is killed and comes back with its data
    Nothing,
    /// The end of Redis' file
    Tail,
    /// All of Redis' data
    Redis,
    /// All of RabbitMQ's data
    Broker,
    /// Redis' data, and RabbitMQ's 15 seconds later
    Both,
}

impl Loss {
    /// How soon the sale must go on after the server is up. Where Redis keeps its data, the writers first
    /// write what they were behind with when it died.
    fn limit(self, behind: Duration) -> Duration {
        match self {
            Self::Nothing => Duration::from_secs(3) + behind,
            Self::Tail => Duration::from_secs(10) + behind,
            Self::Redis | Self::Broker | Self::Both => Duration::from_secs(15),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Nothing => "redis lost nothing",
            Self::Tail => "redis lost the end of its data",
            Self::Redis => "redis lost all of its data",
            Self::Broker => "rabbitmq lost all of its data",
            Self::Both => "redis and then rabbitmq lost all of their data",
        }
    }
}

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &LostData) -> Result<bool> {
    let losses: Vec<Loss> = (0..ask.times).flat_map(|_| ask.what.iter().copied()).collect();
    let count = u32::try_from(losses.len()).unwrap_or(u32::MAX);
    let buyers = ask.orders + ask.rate * count * SECONDS_EACH;
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    scene.faults = true;
    let mut tally = scene.tally("lost-data", u64::from(buyers))?;
    scene.sell_before(ask.orders, &mut tally)?;
    let plan = Plan { mint: true, faults: true, paid: 0.1, ..scene.plan(Profile::Rate(f64::from(ask.rate))) };
    let (stop, sold) = (plan.stop.clone(), plan.accepted.clone());
    let mut crowd = Crowd::new(&scene.buyers, (ask.orders..buyers).collect(), plan);
    let thief = Thief {
        environment: setting.environment.clone(),
        servers: Servers::new(setting.environment.directory.clone()),
        random: StdRng::seed_from_u64(setting.seed),
        accepted: sold,
    };
    let took = std::thread::scope(|scope| {
        let thief = scope.spawn(move || {
            let took = thief.steal(&losses);
            stop.store(true, Ordering::Relaxed);
            took
        });
        let limit = Duration::from_secs(u64::from(count * SECONDS_EACH * 3) + 180);
        let ran = scene.run(&mut crowd, &mut tally, limit);
        let took = thief.join().map_err(|_| anyhow::anyhow!("the thief's thread panicked"))?;
        ran.and(took)
    })?;
    scene.resolve(&mut tally)?;
    let rows = scene.admin.orders(&scene.sale)?;
    for Mended { loss, died, took } in took {
        let limit = loss.limit(behind(&rows, died));
        let text = format!(
            "{}: the sale went on {:.1} s after it was up, at most {:.1}",
            loss.word(),
            took.as_secs_f64(),
            limit.as_secs_f64(),
        );
        scene.verdicts.say(took <= limit, text);
    }
    let taken = accepted(&tally.entries()?);
    scene.audit("after it all", u64::from(taken))?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: None })
}

/// A loss that is over.
struct Mended {
    loss: Loss,
    /// When the server died.
    died: Millis,
    /// How long after it was up the sale went on.
    took: Duration,
}

/// How long the orders had waited that were written in the last second before this.
fn behind(rows: &[Row], died: Millis) -> Duration {
    let waited = |row: &Row| {
        let written = row.written.filter(|at| (died.0 - 1_000..=died.0).contains(&at.0))?;
        u64::try_from(written.0 - row.accepted.0).ok()
    };
    Duration::from_millis(rows.iter().filter_map(waited).max().unwrap_or(0))
}

struct Thief {
    environment: Environment,
    servers: Servers,
    random: StdRng,
    /// Orders accepted so far.
    accepted: Arc<AtomicU64>,
}

impl Thief {
    /// One loss after the other; how long each took to be mended.
    fn steal(mut self, losses: &[Loss]) -> Result<Vec<Mended>> {
        let mut mended = Vec::new();
        for loss in losses {
            self.pause(1_000..4_000);
            self.confirmed().context("before a loss")?;
            let died = Millis::now();
            let took = match loss {
                Loss::Broker => self.lose_broker(),
                Loss::Both => self.lose_redis(Loss::Redis).and_then(|redis| {
                    std::thread::sleep(APART);
                    Ok(redis.max(self.lose_broker()?))
                }),
                redis => self.lose_redis(*redis),
            };
            mended.push(Mended { loss: *loss, died, took: took.with_context(|| loss.word())? });
        }
        Ok(mended)
    }

    /// Waits until the edge has no order any more that only it and Redis have.
    fn confirmed(&self) -> Result<()> {
        let admin = self.environment.edge_admin;
        wait_for("the edge to have everything confirmed", Duration::from_secs(60), || {
            let (connected, lag) =
                (metric(admin, "sluice_amqp_connected")?, metric(admin, "sluice_relay_lag_seconds")?);
            if connected > 0.5 && lag < 1.0 { Ok(()) } else { bail!("connected {connected}, lag {lag} s") }
        })
    }

    fn lose_redis(&mut self, loss: Loss) -> Result<Duration> {
        self.servers.kill("redis")?;
        self.lose(loss)?;
        self.servers.start("redis")?;
        // While it reads its file it listens, but answers nobody.
        wait_for("redis to answer", Duration::from_secs(30), || {
            Session::of(&self.environment)?.ask(&["PING"]).map(drop)
        })?;
        self.goes_on()
    }

    /// How long it takes from now until an order is accepted.
    fn goes_on(&self) -> Result<Duration> {
        let (up, before) = (Instant::now(), self.accepted.load(Ordering::Relaxed));
        wait_for("the sale to go on", Duration::from_secs(60), || {
            let more = self.accepted.load(Ordering::Relaxed) > before;
            if more { Ok(()) } else { bail!("no order is accepted") }
        })?;
        Ok(up.elapsed())
    }

    /// RabbitMQ comes back empty; how long it takes until orders go through it again.
    fn lose_broker(&mut self) -> Result<Duration> {
        let folder = self.environment.directory.join("rabbitmq/mnesia");
        self.servers.kill("rabbitmq")?;
        std::fs::remove_dir_all(&folder).with_context(|| format!("deleting {}", folder.display()))?;
        self.servers.start("rabbitmq")?;
        let amqp = self.environment.amqp;
        wait_for("RabbitMQ to listen", Duration::from_secs(60), || {
            Ok(std::net::TcpStream::connect(amqp).map(drop)?)
        })?;
        let up = Instant::now();
        self.confirmed()?;
        Ok(up.elapsed().max(self.goes_on()?))
    }

    fn pause(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(millis)));
    }

    fn lose(&mut self, loss: Loss) -> Result<()> {
        let folder = self.environment.directory.join("redis/appendonlydir");
        match loss {
            Loss::Tail => {
                let file = newest(&folder)?;
                let file = OpenOptions::new().write(true).open(file)?;
                let length = file.metadata()?.len();
                Ok(file.set_len(length - self.random.random_range(1..=TAIL).min(length))?)
            }
            Loss::Redis => {
                std::fs::remove_dir_all(&folder).with_context(|| format!("deleting {}", folder.display()))
            }
            Loss::Nothing | Loss::Broker | Loss::Both => Ok(()),
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
