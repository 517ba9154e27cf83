//! The edge of `./dev up` and a second one beside it, restarted and replaced.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::balancer::{Address, Targets};
use crate::drill::wait_for;
use crate::environment::Environment;
use crate::servers::Servers;

/// The names that the second edge and its successors take in turn.
const NAMES: [&str; 2] = ["rolling-a", "rolling-b"];
/// How long a stop or a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both edges.
pub(super) struct Pair {
    servers: Servers,
    first: Address,
    second: Address,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Child,
    /// Which of [`NAMES`] runs.
    name: usize,
}

impl Pair {
    /// Starts the second one, with a copy of the first one's file.
    pub(super) fn start(environment: &Environment) -> Result<Self> {
        let directory = std::path::absolute(&environment.directory)?;
        let first = Address { public: environment.edge, admin: environment.edge_admin };
        let second = Address { public: free()?, admin: free()? };
        let file = directory.join("edge.toml");
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let moved = text
            .replace(&first.public.to_string(), &second.public.to_string())
            .replace(&first.admin.to_string(), &second.admin.to_string());
        ensure!(moved != text, "{} does not name {}", file.display(), first.public);
        let config = directory.join("drills/rolling.toml");
        std::fs::create_dir_all(directory.join("drills"))?;
        std::fs::write(&config, moved).with_context(|| format!("writing {}", config.display()))?;
        let (program, log) = (environment.program("sluice-edge")?, directory.join("logs/rolling.log"));
        let child = spawn(&program, &config, &log, &["--name", NAMES[0]])?;
        let servers = Servers::new(environment.directory.clone());
        let pair = Self { servers, first, second, program, config, log, child, name: 0 };
        pair.ready(&second)?;
        Ok(pair)
    }

    pub(super) fn addresses(&self) -> [Address; 2] {
        [self.first, self.second]
    }

    /// Restarts each so often, one behind the other; then replaces the second one so often.
    pub(super) fn roll(&mut self, targets: &Targets, restarts: u32, successors: u32) -> Result<()> {
        for _ in 0..restarts {
            used(targets)?;
            self.servers.stop("edge")?;
            self.servers.start("edge")?;
            self.ready(&self.first)?;
            used(targets)?;
            self.stop_second()?;
            self.child = spawn(&self.program, &self.config, &self.log, &["--name", NAMES[self.name]])?;
            self.ready(&self.second)?;
        }
        for _ in 0..successors {
            used(targets)?;
            let (former, next) = (NAMES[self.name], NAMES[1 - self.name]);
            let words = ["--name", next, "--take-over", former];
            let successor = spawn(&self.program, &self.config, &self.log, &words)?;
            let mut former = std::mem::replace(&mut self.child, successor);
            self.name = 1 - self.name;
            ended(&mut former)?;
            self.ready(&self.second)?;
        }
        Ok(())
    }

    /// Ends the second one; the sale goes on with the first.
    pub(super) fn end(&mut self) -> Result<()> {
        self.stop_second()?;
        std::fs::remove_file(&self.config).with_context(|| format!("deleting {}", self.config.display()))
    }

    fn stop_second(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        ended(&mut self.child)
    }

    fn ready(&self, edge: &Address) -> Result<()> {
        wait_for(&format!("the edge on {}", edge.public), PATIENCE, || {
            if edge.is_ready() { Ok(()) } else { bail!("it is not ready; see {}", self.log.display()) }
        })
    }
}

impl Drop for Pair {
    /// A drill that fails half-way leaves nothing running.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end by itself this instant.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn spawn(program: &Path, config: &Path, log: &Path, words: &[&str]) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log).context("opening its log")?;
    let mut command = Command::new(program);
    command.arg("--config").arg(config).args(words);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().context("starting an edge")
}

fn ended(child: &mut Child) -> Result<()> {
    let status = wait_for("the end of an edge", PATIENCE, || child.try_wait()?.context("it still runs"))?;
    ensure!(status.success(), "an edge ended with {status}");
    Ok(())
}

/// Waits until the balancer sends traffic to both again: only then may one go.
fn used(targets: &Targets) -> Result<()> {
    wait_for("both edges to be used", PATIENCE, || {
        if targets.is_used(0) && targets.is_used(1) { Ok(()) } else { bail!("one is passed over") }
    })
}

/// An address that nobody has.
fn free() -> Result<SocketAddrV4> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}
