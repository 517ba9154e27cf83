//! RabbitMQ is stopped, or blocks its publishers, in the middle of a sale: buyers notice nothing, and
//! no order is lost.

use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;

use super::{Scene, Setting, wait_for};
use crate::admin::Offer;
use crate::client::call::call;
use crate::client::{Entry, Kind, Micros};
use crate::crowd::{Crowd, Plan};
use crate::oracle::{Rules, accepted};
use crate::report::quantile;
use crate::schedule::Profile;
use crate::servers::Servers;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerOutage {
    /// What happens to RabbitMQ
    #[arg(long, value_enum, default_value_t = How::Stop)]
    pub how: How,
    /// Seconds that RabbitMQ is away, and seconds before and after
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    /// Orders a second
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    pub rate: u32,
}

/// What happens to RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum How {
    /// It is stopped, and started again
    Stop,
    /// Its memory alarm goes off: it takes nothing from publishers
    Alarm,
}

impl How {
    fn begin(self, servers: &mut Servers) -> Result<()> {
        match self {
            Self::Stop => servers.stop("rabbitmq"),
            Self::Alarm => servers.rabbitmqctl(&["set_vm_memory_high_watermark", "0.000001"]),
        }
    }

    fn end(self, servers: &mut Servers, amqp: SocketAddrV4) -> Result<()> {
        match self {
            Self::Stop => servers.start("rabbitmq")?,
            Self::Alarm => servers.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"])?,
        }
        wait_for("RabbitMQ", Duration::from_secs(60), || Ok(TcpStream::connect(amqp).map(drop)?))
    }

    /// What the edge's readiness has to say of it.
    fn reason(self) -> &'static str {
        match self {
            Self::Stop => "rabbitmq is away",
            Self::Alarm => "rabbitmq blocks publishers",
        }
    }
}

/// p99 of accepts while RabbitMQ is away, against the time before.
const SLOWER: f64 = 1.5;
/// Below this many accepts a p99 is an anecdote.
const ENOUGH_TO_TELL: usize = 10_000;

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &BrokerOutage) -> Result<bool> {
    // A third more time than asked for, because stopping and starting take some.
    let buyers = ask.rate * (ask.seconds * 3 + ask.seconds / 2 + 30);
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    let mut servers = Servers::new(setting.environment.directory.clone());
    servers.pid("rabbitmq")?;
    let plan = Plan { mint: true, ..scene.plan(Profile::Rate(f64::from(ask.rate))) };
    let stop = plan.stop.clone();
    let mut crowd = Crowd::new(&scene.buyers, (0..buyers).collect(), plan);
    let mut tally = scene.tally("broker-outage", u64::from(ask.rate * ask.seconds * 3))?;
    let (base, how, seconds) = (scene.base, ask.how, Duration::from_secs(u64::from(ask.seconds)));
    let (amqp, edge_admin) = (setting.environment.amqp, setting.environment.edge_admin);
    let moments = std::thread::scope(|scope| {
        let outage = scope.spawn(move || -> Result<(Micros, Micros)> {
            let now = || Micros::try_from(base.elapsed().as_micros()).unwrap_or(Micros::MAX);
            std::thread::sleep(seconds);
            let away = now();
            let gone = how.begin(&mut servers);
            std::thread::sleep(seconds);
            let told = gone.and_then(|()| told(edge_admin, how.reason()));
            let back = now();
            let ended = how.end(&mut servers, amqp);
            std::thread::sleep(seconds);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            told.and(ended).map(|()| (away, back))
        });
        let ran = scene.run(&mut crowd, &mut tally, seconds * 4 + Duration::from_secs(120));
        let moments = outage.join().map_err(|_| anyhow::anyhow!("the outage's thread panicked"))?;
        ran.and(moments)
    })?;
    let entries = tally.entries()?;
    let taken = accepted(&entries);
    scene.audit("once RabbitMQ is back", u64::from(taken))?;
    judge_pace(&mut scene, &entries, moments);
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: Some(taken) })
}

/// Whether the edge says so, while it goes on.
fn told(edge_admin: SocketAddrV4, reason: &str) -> Result<()> {
    wait_for("the edge to tell why", Duration::from_secs(30), || {
        let request = Bytes::from_static(b"GET /-/ready HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n");
        let reply = call(edge_admin, &request);
        let answer = reply.answer();
        let body = String::from_utf8_lossy(answer.body);
        if answer.status != 200 || !body.contains(reason) {
            bail!("/-/ready says {} {body}, not {reason}", answer.status);
        }
        Ok(())
    })
}

/// Accepting went on at its pace.
fn judge_pace(scene: &mut Scene, entries: &[Entry], (away, back): (Micros, Micros)) {
    let accepts = |from: Micros, to: Micros| {
        let within = move |entry: &&Entry| entry.due >= from && entry.due < to;
        entries.iter().filter(|entry| entry.kind == Kind::Buy && entry.outcome.is_taken()).filter(within)
    };
    let (before, during) = (accepts(0, away), accepts(away, back));
    let counts = (before.clone().count(), during.clone().count());
    scene
        .verdicts
        .say(counts.1 > 0, format!("{} accepted before, {} while RabbitMQ was away", counts.0, counts.1));
    let (Some(before), Some(during)) = (quantile(before, 0.99), quantile(during, 0.99)) else { return };
    let ratio = during.as_secs_f64() / before.as_secs_f64().max(1e-6);
    let (before, during) = (before.as_secs_f64() * 1e3, during.as_secs_f64() * 1e3);
    let good = ratio <= SLOWER || counts.0 < ENOUGH_TO_TELL;
    let words = format!("p99 of accepts: {before:.2} ms before, {during:.2} ms while away: {ratio:.2} times");
    scene.verdicts.say(good, words);
}
