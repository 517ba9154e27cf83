//! One process of a fleet.

use std::fs::OpenOptions;
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::base::{Base, Stores, redirect, set, write_private};
use super::{Kind, free_port};
use crate::client::call::call;
use crate::client::outcome::OK;
use crate::drill::wait_for;

/// How long a member may take to end.
const END: Duration = Duration::from_secs(40);
/// Connections of a worker to PostgreSQL: many processes share what a small server gives.
const POOL: i64 = 6;

/// A process, or what is needed to start it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Where an edge listens for buyers.
    pub(super) public: SocketAddrV4,
    /// `/metrics`, `/-/live`, `/-/ready`.
    pub(super) private: SocketAddrV4,
    program: PathBuf,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Member {
    /// Derives its configuration and writes it.
    pub(super) fn new(
        directory: &Path,
        name: &str,
        kind: Kind,
        base: &Base,
        stores: Stores,
        api: SocketAddrV4,
    ) -> Result<Self> {
        let (public, private) = (free_port()?, free_port()?);
        let mut table = match kind {
            Kind::Edge => base.edge.clone(),
            Kind::Worker(_) => base.worker.clone(),
        };
        table.insert("name".to_owned(), name.into());
        redirect(&mut table, "redis", stores.redis)?;
        redirect(&mut table, "amqp", stores.broker)?;
        redirect(&mut table, "database", stores.database)?;
        let (program, roles) = match kind {
            Kind::Edge => {
                table.insert("state_dir".to_owned(), directory.join("state").display().to_string().into());
                set(&mut table, "listen", "public", vec![public.to_string()]);
                set(&mut table, "listen", "admin", private.to_string());
                set(&mut table, "api", "address", api.to_string());
                (base.edge_program.clone(), &[][..])
            }
            Kind::Worker(roles) => {
                set(&mut table, "api", "listen", api.to_string());
                set(&mut table, "status", "listen", private.to_string());
                set(&mut table, "database", "max_connections", POOL);
                set(&mut table, "database", "min_connections", 1);
                (base.worker_program.clone(), roles)
            }
        };
        let file = directory.join(format!("{name}.toml"));
        write_private(&file, &table)?;
        let mut arguments: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
        arguments.extend(["--config".to_owned(), file.display().to_string()]);
        Ok(Self { name: name.to_owned(), kind, public, private, program, arguments, child: Mutex::new(None) })
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        // A panic of another thread left the child as it is.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pid(&self) -> Result<i32> {
        match &mut *self.child() {
            Some(child) => match child.try_wait()? {
                None => Ok(i32::try_from(child.id())?),
                Some(status) => bail!("{} has ended: {status}", self.name),
            },
            None => bail!("{} was not started", self.name),
        }
    }

    pub(super) fn start(&self, log: &Path, failpoints: &str) -> Result<()> {
        if let Ok(pid) = self.pid() {
            bail!("{} runs already (pid {pid})", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(log).context("opening its log")?;
        let mut command = Command::new(&self.program);
        if !failpoints.is_empty() {
            command.env(sluice_shared::failpoint::VARIABLE, failpoints);
        }
        let started = command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            // No Ctrl-C of this terminal's reaches it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        *self.child() = Some(started);
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Signals it and waits for its end.
    pub(super) fn end(&self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        wait_for(&format!("the end of {}", self.name), END, || match self.pid() {
            Ok(pid) => bail!("{} (pid {pid}) still runs", self.name),
            Err(_) => Ok(()),
        })
    }

    pub(super) fn is_ready(&self) -> Result<()> {
        self.pid()?;
        let request = b"GET /-/ready HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n";
        let reply = call(self.private, request);
        let answer = reply.answer();
        if answer.outcome != OK {
            bail!("{} says {}: {:.300}", self.name, answer.outcome, String::from_utf8_lossy(answer.body));
        }
        Ok(())
    }
}

/// The value of a metric on a private listener, added up over its labels.
pub fn metric(private: SocketAddrV4, metric: &str) -> Result<f64> {
    let request = b"GET /metrics HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n";
    let reply = call(private, request);
    let answer = reply.answer();
    if answer.outcome != OK {
        bail!("{private} does not tell its metrics: {}", answer.outcome);
    }
    let text = String::from_utf8_lossy(answer.body);
    sum_of(&text, metric).with_context(|| format!("{private} has no metric {metric}"))
}

/// The values of a metric in an exposition, added up.
fn sum_of(text: &str, metric: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(metric)?;
        let rest = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
    };
    let values: Vec<f64> = text.lines().filter_map(value).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_added_up_over_its_labels() {
        let text = "# TYPE a gauge\na{x=\"1 2\"} 3\na{x=\"}\"} 0.5 1700000000\na_total 9\nb 7\n";
        assert_eq!(sum_of(text, "a"), Some(3.5));
        assert_eq!(sum_of(text, "b"), Some(7.0));
        assert_eq!(sum_of(text, "c"), None);
    }
}
