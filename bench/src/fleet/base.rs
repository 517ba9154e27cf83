//! What members' configurations are derived from.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rand::RngExt;
use toml::{Table, Value};

use super::Store;
use crate::environment::Environment;

/// Below the range from which the kernel takes ports for outgoing connections: one of those could take
/// the port of a member while it is down.
const PORTS: std::ops::Range<u16> = 11_000..32_000;

/// Where the stores are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stores {
    /// Redis.
    pub redis: SocketAddrV4,
    /// RabbitMQ's AMQP listener.
    pub broker: SocketAddrV4,
    /// PostgreSQL.
    pub database: SocketAddrV4,
}

impl Stores {
    /// Where one is.
    pub fn of(&self, store: Store) -> SocketAddrV4 {
        match store {
            Store::Redis => self.redis,
            Store::Broker => self.broker,
            Store::Database => self.database,
        }
    }

    pub(super) fn put(&mut self, store: Store, address: SocketAddrV4) {
        match store {
            Store::Redis => self.redis = address,
            Store::Broker => self.broker = address,
            Store::Database => self.database = address,
        }
    }
}

/// What members' configurations are derived from: files that work without proxies, and the programs.
#[derive(Debug, Clone)]
pub struct Base {
    /// The configuration of an edge.
    pub edge: Table,
    /// The configuration of a worker.
    pub worker: Table,
    /// `sluice-edge`.
    pub edge_program: PathBuf,
    /// `sluice-worker`.
    pub worker_program: PathBuf,
    /// Where the stores in both are.
    pub stores: Stores,
}

impl Base {
    /// The files that `./dev up` wrote.
    pub fn of(environment: &Environment) -> Result<Self> {
        let read = |name: &str| -> Result<Table> {
            let file = environment.directory.join(name);
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            text.parse().with_context(|| format!("in {}", file.display()))
        };
        let programs = (environment.program("sluice-edge")?, environment.program("sluice-worker")?);
        Self::new(read("edge.toml")?, read("worker.toml")?, programs)
    }

    /// These configurations of an edge and of a worker, and their programs.
    pub fn new(edge: Table, worker: Table, programs: (PathBuf, PathBuf)) -> Result<Self> {
        let find = |section: &str| address_in(url_in(&worker, section)?);
        let stores = Stores { redis: find("redis")?, broker: find("amqp")?, database: find("database")? };
        let (edge_program, worker_program) = programs;
        Ok(Self { edge, worker, edge_program, worker_program, stores })
    }

    /// Starts a one-shot command of a worker without any proxy; its words, when it succeeds.
    pub fn command(&self, directory: &Path, words: &[&str]) -> Result<String> {
        let file = directory.join("worker.toml");
        write_private(&file, &self.worker)?;
        let done = std::process::Command::new(&self.worker_program)
            .args(words)
            .arg("--config")
            .arg(&file)
            .output()
            .with_context(|| format!("starting {}", self.worker_program.display()))?;
        let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        if !done.status.success() {
            bail!("sluice-worker {}: {text}", words.join(" "));
        }
        Ok(text)
    }
}

fn url_in<'a>(table: &'a Table, section: &str) -> Result<&'a str> {
    let url = table.get(section).and_then(|section| section.get("url")).and_then(Value::as_str);
    url.with_context(|| format!("the configuration has no {section}.url"))
}

/// Sets `section.key`.
pub(super) fn set(table: &mut Table, section: &str, key: &str, value: impl Into<Value>) {
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(key.to_owned(), value.into());
    }
}

/// Points `section.url` elsewhere, where there is one.
pub(super) fn redirect(table: &mut Table, section: &str, to: SocketAddrV4) -> Result<()> {
    if let Ok(url) = url_in(table, section) {
        let url = redirected(url, to)?;
        set(table, section, "url", url);
    }
    Ok(())
}

/// Writes a configuration, which holds secrets.
pub(super) fn write_private(file: &Path, table: &Table) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut opened = options.open(file).with_context(|| format!("writing {}", file.display()))?;
    Ok(opened.write_all(table.to_string().as_bytes())?)
}

/// Scheme with login, address, path.
fn parts(url: &str) -> Result<(&str, &str, &str)> {
    let from = url.find("://").with_context(|| "a store's address is not a URL".to_owned())? + 3;
    let to = url[from..].find('/').map_or(url.len(), |at| from + at);
    let host = url[from..to].rfind('@').map_or(from, |at| from + at + 1);
    Ok((&url[..host], &url[host..to], &url[to..]))
}

/// The address in the URL of a store on this machine.
pub fn address_in(url: &str) -> Result<SocketAddrV4> {
    let (_, host, _) = parts(url)?;
    let host = host.replace("localhost", "127.0.0.1");
    host.parse().with_context(|| format!("not an IPv4 address with a port: {host}"))
}

/// The same URL with another address.
pub fn redirected(url: &str, to: SocketAddrV4) -> Result<String> {
    let (before, _, after) = parts(url)?;
    Ok(format!("{before}{to}{after}"))
}

/// An address of this machine that nobody listens on.
pub fn free_port() -> Result<SocketAddrV4> {
    let mut random = rand::rng();
    let drawn = std::iter::repeat_with(|| SocketAddrV4::new(Ipv4Addr::LOCALHOST, random.random_range(PORTS)));
    let mut free = drawn.take(1_000).filter(|address| TcpListener::bind(address).is_ok());
    free.next().context("no port is free")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_everything_but_its_address() {
        let to = "127.0.0.1:9".parse().unwrap();
        for (url, moved) in [
            ("redis://edge:p@127.0.0.1:6480", "redis://edge:p@127.0.0.1:9"),
            ("amqp://s:p@127.0.0.1:5680/sluice", "amqp://s:p@127.0.0.1:9/sluice"),
            ("postgres://127.0.0.1:5480/a?b=c", "postgres://127.0.0.1:9/a?b=c"),
        ] {
            assert_eq!(redirected(url, to).unwrap(), moved);
        }
        assert_eq!(address_in("amqp://s:p@localhost:5680/%2f").unwrap().port(), 5680);
        for bad in ["127.0.0.1:80", "redis://host", "redis://example.org:6379"] {
            assert!(address_in(bad).is_err(), "{bad}");
        }
    }
}
