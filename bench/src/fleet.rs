//! Processes of the built programs, each with its own way to the stores.
//!
//! A [`Fleet`] is made over stores that run: every member gets a configuration derived from a
//! [`Base`], a directory, a log, and a proxy for each store that it speaks to, so that one member can
//! be cut off and the others not. Members are killed, paused and started again one by one, from any
//! thread. What a fleet started ends with it.

mod base;
mod member;
pub mod redis;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

pub use base::{Base, Stores, address_in, free_port, redirected};
use member::Member;
pub use member::metric;

use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;

/// How long a member may take to do its work after it was started.
const READY: Duration = Duration::from_secs(60);

/// What a member speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// Redis.
    Redis,
    /// RabbitMQ.
    Broker,
    /// PostgreSQL.
    Database,
}

impl Store {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Redis, Self::Broker, Self::Database];

    /// The word in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Broker => "broker",
            Self::Database => "database",
        }
    }

    fn protocol(self) -> Protocol {
        match self {
            Self::Redis => Protocol::Redis,
            Self::Broker => Protocol::Amqp,
            Self::Database => Protocol::Plain,
        }
    }
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `sluice-edge`.
    Edge,
    /// `sluice-worker` with these roles.
    Worker(&'static [&'static str]),
}

impl Kind {
    /// What it speaks to.
    fn stores(self) -> &'static [Store] {
        match self {
            Self::Edge => &[Store::Redis, Store::Broker],
            Self::Worker(_) => &Store::ALL,
        }
    }
}

/// One member's way to one store.
#[derive(Debug)]
pub struct Link {
    /// Whose it is.
    pub member: String,
    /// Where it leads.
    pub store: Store,
    /// What it goes through.
    pub proxy: Proxy,
}

/// Processes over stores that run.
#[derive(Debug)]
pub struct Fleet {
    directory: PathBuf,
    base: Base,
    seed: u64,
    members: Vec<Member>,
    links: Vec<Link>,
    /// Where the back office of the member with the role `api` listens.
    api: SocketAddrV4,
}

impl Fleet {
    /// A fleet without members. Configurations, logs and locks go to the directory, which is made.
    pub fn new(directory: PathBuf, base: Base, seed: u64) -> Result<Self> {
        for part in ["logs", "state"] {
            let folder = directory.join(part);
            std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let directory = directory.canonicalize().context("the fleet's directory")?;
        Ok(Self { directory, base, seed, members: Vec::new(), links: Vec::new(), api: free_port()? })
    }

    /// Adds a member and starts it; [`Self::wait`] tells when it works.
    pub fn add(&mut self, name: &str, kind: Kind) -> Result<()> {
        let mut stores = self.base.stores;
        for store in kind.stores() {
            let number = self.links.len() as u64;
            let proxy = Proxy::start(
                free_port()?,
                self.base.stores.of(*store),
                store.protocol(),
                self.seed.wrapping_add(number),
            )?;
            stores.put(*store, proxy.address());
            self.links.push(Link { member: name.to_owned(), store: *store, proxy });
        }
        let member = Member::new(&self.directory, name, kind, &self.base, stores, self.api)?;
        self.members.push(member);
        self.start(name)
    }

    /// Names of the members, in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    fn member(&self, name: &str) -> Result<&Member> {
        self.members
            .iter()
            .find(|member| member.name == name)
            .with_context(|| format!("no member is called {name}"))
    }

    /// The way of a member to a store.
    pub fn link(&self, name: &str, store: Store) -> Result<&Proxy> {
        let link = self.links.iter().find(|link| link.member == name && link.store == store);
        link.map(|link| &link.proxy).with_context(|| format!("{name} has no way to the {}", store.as_str()))
    }

    /// Every way.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Where new connections to a store go from now on, of every member.
    pub fn aim(&self, store: Store, target: SocketAddrV4) {
        for link in self.links.iter().filter(|link| link.store == store) {
            link.proxy.aim(target);
        }
    }

    /// The listener for buyers of an edge.
    pub fn public(&self, name: &str) -> Result<SocketAddrV4> {
        Ok(self.member(name)?.public)
    }

    /// The private listener of a member: `/metrics`, `/-/live`, `/-/ready`.
    pub fn private(&self, name: &str) -> Result<SocketAddrV4> {
        Ok(self.member(name)?.private)
    }

    /// The back office.
    pub fn api(&self) -> SocketAddrV4 {
        self.api
    }

    /// Where a member writes its log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{name}.log"))
    }

    /// The process id of a member that runs.
    pub fn pid(&self, name: &str) -> Result<i32> {
        self.member(name)?.pid()
    }

    /// Starts a member that does not run.
    pub fn start(&self, name: &str) -> Result<()> {
        self.start_armed(name, "")
    }

    /// Starts a member with failpoints (`SLUICE_FAILPOINTS`).
    pub fn start_armed(&self, name: &str, failpoints: &str) -> Result<()> {
        self.member(name)?.start(&self.log(name), failpoints)
    }

    /// Kills a member: its crash.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.member(name)?.end(Signal::SIGKILL)
    }

    /// Stops a member politely and waits for its end.
    pub fn stop(&self, name: &str) -> Result<()> {
        self.member(name)?.end(Signal::SIGTERM)
    }

    /// Signals a member, which goes on running.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.member(name)?.signal(signal)
    }

    /// Whether a member does its work: an edge is ready, a worker's stores answer.
    pub fn is_ready(&self, name: &str) -> Result<()> {
        self.member(name)?.is_ready()
    }

    /// Waits until a member works.
    pub fn wait(&self, name: &str) -> Result<()> {
        let ready = crate::drill::wait_for(&format!("{name} to be ready"), READY, || self.is_ready(name));
        ready.with_context(|| format!("its log is {}", self.log(name).display()))
    }

    /// The value of a metric of a member, added up over its labels.
    pub fn metric(&self, name: &str, metric: &str) -> Result<f64> {
        member::metric(self.member(name)?.private, metric)
    }

    /// Names of the edges.
    pub fn edges(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter(|member| member.kind == Kind::Edge).map(|member| member.name.as_str())
    }

    /// Ends every fault of every way.
    pub fn heal(&self) {
        for link in &self.links {
            link.proxy.heal();
        }
    }

    /// Stops every member, the last that was added first. A member that does not stop is killed.
    pub fn stop_all(&self) -> Result<()> {
        self.heal();
        let mut stuck = Vec::new();
        for member in self.members.iter().rev().filter(|member| member.pid().is_ok()) {
            // One that is paused could not hear.
            let stopped = member.signal(Signal::SIGCONT).and_then(|()| member.end(Signal::SIGTERM));
            if stopped.is_err() {
                member.end(Signal::SIGKILL)?;
                stuck.push(member.name.as_str());
            }
        }
        if stuck.is_empty() { Ok(()) } else { bail!("killed, for they did not stop: {}", stuck.join(", ")) }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Err(error) = self.stop_all() {
            eprintln!("sluice-bench: {error:#}");
        }
    }
}
