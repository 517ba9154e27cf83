//! The system that chaos is let loose on: a fleet, two Redis servers, RabbitMQ and PostgreSQL.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sluice_shared::ids::SaleId;

use super::plan::MEMBERS;
use crate::admin::Admin;
use crate::client::call::call;
use crate::drill::wait_for;
use crate::environment::Environment;
use crate::fleet::redis::RedisPair;
use crate::fleet::{Base, Fleet, Store, address_in, free_port, redirected};
use crate::servers::Servers;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;

/// The processes of `./dev up` that make room once the edge has.
const FORMER: [&str; 4] = ["worker", "warden-1", "warden-2", "redis"];
/// How long nothing may be unconfirmed before a store may lose what it has.
const CALM: Duration = Duration::from_secs(2);
/// How long that is waited for.
const PATIENCE: Duration = Duration::from_secs(90);

/// Everything that can be broken. Fields end in this order: the former processes come back last.
#[derive(Debug)]
pub(super) struct Ground {
    /// The members.
    pub(super) fleet: Fleet,
    /// The way of the drill itself to the present primary.
    way: Proxy,
    /// Redis and its replica; held by who breaks Redis.
    pub(super) segments: Mutex<()>,
    /// Their handle.
    pub(super) redis: RedisPair,
    /// RabbitMQ.
    pub(super) broker: Mutex<Servers>,
    /// PostgreSQL.
    pub(super) database: Mutex<Servers>,
    /// Held for reading by who breaks an edge or its ways, for writing by who makes a store lose data:
    /// an order of a dead edge is in no other place than the store until it is published.
    pub(super) confirmed: RwLock<()>,
    /// How the fleet is reached.
    pub(super) environment: Environment,
    /// The directory of `./dev up`.
    pub(super) home: PathBuf,
    former: Servers,
}

/// A lock whose holder panicked is as good as any: what it guards are processes.
pub(super) fn hold<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ground {
    /// Stops the former processes and starts the fleet in their place.
    pub(super) fn prepare(environment: &Environment, folder: &Path, seed: u64) -> Result<Self> {
        let home = environment.directory.clone();
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| format!("deleting {}", folder.display()))?;
        }
        let base = Base::of(environment)?;
        let mut former = Servers::new(home.clone());
        former.stop("edge").context("stopping edge to make room")?;
        wait_until_gone(environment, &["edge"])?;
        for name in FORMER {
            former.stop(name).with_context(|| format!("stopping {name} to make room"))?;
        }
        let mut fleet = Fleet::new(folder.to_owned(), base, seed)?;
        let first = address_in(environment.value("SLUICE_REDIS_URL")?)?;
        let redis = RedisPair::new(&folder.canonicalize()?, &home.join("redis"), first)?;
        for (name, kind) in MEMBERS {
            fleet.add(name, kind)?;
        }
        for (name, _) in MEMBERS {
            fleet.wait(name)?;
        }
        let way = Proxy::start(free_port()?, first, Protocol::Plain, 0)?;
        let mut reached = environment.clone();
        let url = redirected(environment.value("SLUICE_REDIS_URL")?, way.address())?;
        reached.set("SLUICE_REDIS_URL", url);
        reached.edges = fleet.edges().map(|name| fleet.public(name)).collect::<Result<_>>()?;
        reached.edge = *reached.edges.first().context("a fleet without edges")?;
        reached.edge_admin = fleet.private("edge-1")?;
        reached.api = fleet.api();
        Ok(Self {
            fleet,
            way,
            segments: Mutex::new(()),
            redis,
            broker: Mutex::new(Servers::new(home.clone())),
            database: Mutex::new(Servers::new(home.clone())),
            confirmed: RwLock::new(()),
            environment: reached,
            home,
            former,
        })
    }

    /// Points every way at the present primary. Those that are open stay where they are.
    pub(super) fn aim_at_primary(&self) {
        let address = self.redis.primary().address;
        self.fleet.aim(Store::Redis, address);
        self.way.aim(address);
        self.way.reset();
    }

    /// Whether each edge is ready, has the broker and holds nothing for long, and sells this sale.
    pub(super) fn sells(&self, sale: &SaleId) -> Result<()> {
        self.fleet.edges().try_for_each(|edge| {
            self.hands_over(edge)?;
            let request = format!("GET /v1/sales/{sale} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n");
            let state = call(self.fleet.public(edge)?, request.as_bytes()).member("state");
            match state.as_str() {
                Some("open" | "sold_out") => Ok(()),
                _ => bail!("{edge}: {sale} is {state}"),
            }
        })
    }

    /// Whether each edge is ready, has the broker and holds nothing for long, and nothing is frozen there, closed
    /// sales included.
    pub(super) fn is_calm(&self) -> Result<()> {
        self.fleet.edges().try_for_each(|edge| {
            self.hands_over(edge)?;
            self.has(edge, "sluice_sales_frozen_segments", 0.0..0.5)
        })
    }

    fn hands_over(&self, edge: &str) -> Result<()> {
        self.fleet.is_ready(edge)?;
        self.has(edge, "sluice_amqp_connected", 1.0..2.0)?;
        self.has(edge, "sluice_amqp_blocked", 0.0..0.5)?;
        self.has(edge, "sluice_relay_lag_seconds", 0.0..1.0)
    }

    fn has(&self, edge: &str, metric: &str, good: Range<f64>) -> Result<()> {
        let value = self.fleet.metric(edge, metric)?;
        if good.contains(&value) { Ok(()) } else { bail!("{edge}: {metric} is {value}") }
    }

    /// Waits until every edge has been calm for a while: what was accepted is confirmed, and what dead
    /// edges had left was swept.
    pub(super) fn wait_for_calm(&self) -> Result<()> {
        let mut since = None;
        wait_for("the edges to be calm", PATIENCE, || {
            if let Err(error) = self.is_calm() {
                since = None;
                return Err(error);
            }
            let calm = since.get_or_insert_with(Instant::now).elapsed();
            if calm >= CALM { Ok(()) } else { bail!("calm for {:.1} s", calm.as_secs_f64()) }
        })
    }

    /// Waits until everything works: each member, each store, the back office.
    pub(super) fn wait_for_all(&self) -> Result<()> {
        for (name, _) in MEMBERS {
            self.fleet.wait(name)?;
        }
        let admin = Admin::new(&self.environment);
        wait_for("the back office", PATIENCE, || if admin.answers() { Ok(()) } else { bail!("no answer") })?;
        wait_for("the edges to be calm", PATIENCE, || self.is_calm())
    }
}

impl Drop for Ground {
    /// The former processes come back once the fleet has made room: Redis first, for all need it.
    fn drop(&mut self) {
        for ended in [self.stop_edges(), self.fleet.stop_all(), self.redis.stop(), self.bring_back()] {
            if let Err(error) = ended {
                eprintln!("sluice-bench: {error:#}: ./dev up");
            }
        }
    }
}

/// Waits until the wardens have taken these edges out of the register: whoever comes after would wait for
/// an edge that it never heard.
fn wait_until_gone(environment: &Environment, names: &[&str]) -> Result<()> {
    let program = environment.program("sluice-worker")?;
    wait_for("the edges to leave the register", PATIENCE, || {
        let listed = Command::new(&program).arg("edges").envs(environment.values()).output()?;
        if !listed.status.success() {
            bail!("sluice-worker edges: {}", String::from_utf8_lossy(&listed.stderr));
        }
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let left = text.lines().find(|line| names.iter().any(|name| line.starts_with(&format!("{name}."))));
        left.map_or(Ok(()), |line| bail!("{line}"))
    })
}

impl Ground {
    fn stop_edges(&self) -> Result<()> {
        self.fleet.heal();
        let names: Vec<&str> = self.fleet.edges().collect();
        names.iter().try_for_each(|name| self.fleet.stop(name))?;
        wait_until_gone(&self.environment, &names)
    }

    fn bring_back(&mut self) -> Result<()> {
        for name in FORMER.iter().rev().chain(["edge"].iter()) {
            self.former.start(name).with_context(|| format!("starting {name} again"))?;
            if *name == "redis" {
                let address = self.redis.first().address;
                wait_for("redis", PATIENCE, || Ok(std::net::TcpStream::connect(address).map(drop)?))?;
            }
        }
        Ok(())
    }
}
