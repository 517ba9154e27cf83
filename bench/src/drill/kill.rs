//! Edge, worker, wardens, Redis, RabbitMQ and PostgreSQL are killed in mid-sale, again and again, at
//! random moments; how soon orders are written again is read from their rows.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use sluice_shared::clock::Millis;
use sluice_shared::ids::SaleId;

use super::{Scene, Setting, sells_again, wait_for};
use crate::admin::{Admin, Offer, Row};
use crate::client::call::call;
use crate::client::outcome::OK;
use crate::crowd::{Crowd, Plan};
use crate::environment::Environment;
use crate::oracle::{Rules, accepted};
use crate::schedule::Profile;
use crate::servers::Servers;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Kill {
    /// How often each of edge, worker and warden is killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub kills: u32,
    /// How often each of Redis, RabbitMQ and PostgreSQL is killed
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub servers: u32,
    /// Orders a second meanwhile
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=5_000))]
    pub rate: u32,
}

/// The longest that one kill with its recovery may take on average.
const SECONDS_EACH: u32 = 12;
const VICTIMS: [&str; 3] = ["edge", "worker", "warden"];
const SERVERS: [&str; 3] = ["redis", "rabbitmq", "postgres"];
/// What an edge had accepted has rows so long after its kill.
const ORPHANED: Duration = Duration::from_secs(3);
/// The first row is written so long after a server is up again.
const WRITING: Duration = Duration::from_secs(2);

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &Kill) -> Result<bool> {
    let buyers = ask.rate * (ask.kills + ask.servers) * SECONDS_EACH;
    let offer = Offer { stock: buyers, per_user: 1, price: 19_900, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    scene.faults = true;
    let plan = Plan { mint: true, faults: true, paid: 0.1, ..scene.plan(Profile::Rate(f64::from(ask.rate))) };
    let stop = plan.stop.clone();
    let mut crowd = Crowd::new(&scene.buyers, (0..buyers).collect(), plan);
    let mut tally = scene.tally("kill", u64::from(buyers))?;
    let (environment, sale) = (setting.environment.clone(), scene.sale.clone());
    let random = StdRng::seed_from_u64(setting.seed);
    let killed = std::thread::scope(|scope| {
        let killer = scope.spawn(move || {
            let killed = Killer::new(&environment, sale, random).rage(ask.kills, ask.servers);
            stop.store(true, Ordering::Relaxed);
            killed
        });
        let limit = Duration::from_secs(u64::from((ask.kills + ask.servers) * SECONDS_EACH * 3) + 180);
        let ran = scene.run(&mut crowd, &mut tally, limit);
        let killed = killer.join().map_err(|_| anyhow::anyhow!("the killer's thread panicked"))?;
        ran.and(killed)
    })?;
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    killed.iter().for_each(|death| *counts.entry(&death.name).or_default() += 1);
    for (name, count) in counts {
        scene.verdicts.say(true, format!("{name} was killed {count} times and came back"));
    }
    scene.resolve(&mut tally)?;
    let taken = accepted(&tally.entries()?);
    scene.audit("after it all", u64::from(taken))?;
    let rows = scene.admin.orders(&scene.sale)?;
    for (victim, what, limit) in [
        ("edge", "orders that it had accepted were written after its kill", ORPHANED),
        ("rabbitmq", "orders were written again after it was up", WRITING),
        ("postgres", "orders were written again after it was up", WRITING),
    ] {
        let took = killed.iter().filter(|death| death.name == victim).filter_map(|death| death.over(&rows));
        if let Some(slowest) = took.max() {
            let (seconds, most) = (slowest.as_secs_f64(), limit.as_secs());
            let words = format!("{victim}: {what} within {seconds:.1} s, at most {most}");
            scene.verdicts.say(slowest <= limit, words);
        }
    }
    let lost = tally.counted().unresolved();
    scene.verdicts.say(true, format!("{lost} attempts met a dead or recovering server and were made again"));
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: None })
}

/// One kill.
#[derive(Debug)]
struct Death {
    name: String,
    at: Millis,
    /// When it was ready again; of a server: when it listened.
    up: Millis,
}

impl Death {
    /// How long it took until its orders were written, or any; none where no row tells.
    fn over(&self, rows: &[Row]) -> Option<Duration> {
        let since =
            |began: Millis, end: Millis| u64::try_from(end.0 - began.0).ok().map(Duration::from_millis);
        if self.name == "edge" {
            let orphans = rows.iter().filter(|row| row.accepted <= self.at);
            return orphans.filter_map(|row| since(self.at, row.written?)).max();
        }
        rows.iter().filter_map(|row| since(self.up, row.written?)).min()
    }
}

struct Killer<'a> {
    environment: &'a Environment,
    sale: SaleId,
    servers: Servers,
    admin: Admin,
    random: StdRng,
}

impl<'a> Killer<'a> {
    fn new(environment: &'a Environment, sale: SaleId, random: StdRng) -> Self {
        let servers = Servers::new(environment.directory.clone());
        Self { environment, sale, servers, admin: Admin::new(environment), random }
    }

    /// Kills each so often, in a random order, at random moments.
    fn rage(mut self, kills: u32, servers: u32) -> Result<Vec<Death>> {
        let ours = VICTIMS.iter().flat_map(|name| (0..kills).map(|_| *name));
        let theirs = SERVERS.iter().flat_map(|name| (0..servers).map(|_| *name));
        let mut victims: Vec<&str> = ours.chain(theirs).collect();
        victims.shuffle(&mut self.random);
        let mut killed = Vec::new();
        for victim in victims {
            let name = match victim {
                "warden" => format!("warden-{}", self.random.random_range(1..=2)),
                other => other.to_owned(),
            };
            self.pause(300..2_000);
            let at = Millis::now();
            self.servers.kill(&name)?;
            self.pause(0..500);
            self.servers.start(&name)?;
            let up = self.recover(&name).with_context(|| format!("after a kill of {name}"))?;
            killed.push(Death { name, at, up });
        }
        Ok(killed)
    }

    fn pause(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(millis)));
    }

    /// Waits until what was killed does its work again; when it was up.
    fn recover(&self, name: &str) -> Result<Millis> {
        let ready = b"GET /-/ready HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
        wait_for(&format!("{name} to be ready"), Duration::from_secs(60), || match name {
            "edge" if call(self.environment.edge_admin, ready).outcome() == OK => Ok(()),
            "worker" if self.admin.answers() => Ok(()),
            "redis" => sells_again(self.environment),
            "rabbitmq" => Ok(TcpStream::connect(self.environment.amqp).map(drop)?),
            "edge" | "worker" => bail!("{name} does not answer"),
            _ => self.servers.pid(name).map(drop),
        })?;
        let up = Millis::now();
        if SERVERS.contains(&name) {
            wait_for("orders to be written", Duration::from_secs(60), || {
                if self.admin.has_since(&self.sale, up)? { Ok(()) } else { bail!("no order is written") }
            })?;
        }
        Ok(up)
    }
}
