//! Two Redis servers, one of which is the other's replica; they change places.

use std::fs::OpenOptions;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use super::free_port;
use crate::drill::wait_for;
use crate::environment::Environment;
use crate::resp::Session;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::Flow;

/// The user that may do everything, of these servers only.
const USER: &str = "drill";
/// How long a server may take to read its data.
const START: Duration = Duration::from_secs(30);

/// A server that is started over a directory of data.
#[derive(Debug)]
pub struct Node {
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Its data.
    pub data: PathBuf,
    file: PathBuf,
    log: PathBuf,
    password: String,
    /// The other one's way to this one, when that is the replica.
    way: Proxy,
    child: Mutex<Option<Child>>,
}

impl Node {
    /// A server with this configuration, over data of its own and with a user of the drill's besides.
    fn new(folder: &Path, name: &str, conf: &str, data: PathBuf, address: SocketAddrV4) -> Result<Self> {
        let password = format!("{:032x}", rand::random::<u128>());
        let hash = hex::encode(Sha256::digest(password.as_bytes()));
        let others =
            conf.lines().filter(|line| !["port ", "dir ", "bind "].iter().any(|word| line.starts_with(word)));
        let mut text: String = others.flat_map(|line| [line, "\n"]).collect();
        text.push_str(&format!(
            "bind 127.0.0.1\nport {}\ndir {}\nuser {USER} on #{hash} ~* &* +@all\n",
            address.port(),
            data.display()
        ));
        std::fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
        let file = folder.join(format!("{name}.conf"));
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        let way = Proxy::start(free_port()?, address, Protocol::Plain, 0)?;
        let log = folder.join("logs").join(format!("{name}.log"));
        Ok(Self { address, data, file, log, password, way, child: Mutex::new(None) })
    }

    /// A replica of a running server, started and complete; its data stays in memory.
    pub fn replica_of(environment: &Environment, folder: &Path) -> Result<Self> {
        let file = environment.directory.join("redis/redis.conf");
        let conf = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let (primary, password) = (environment.redis, environment.value("SLUICE_REDIS_REPLICA_PASSWORD")?);
        let follow = format!(
            "\nappendonly no\nreplicaof {} {}\nmasteruser replica\nmasterauth {password}\n",
            primary.ip(),
            primary.port()
        );
        std::fs::create_dir_all(folder.join("logs"))
            .with_context(|| format!("making {}", folder.display()))?;
        let node = Self::new(folder, "redis-replica", &(conf + &follow), folder.join("data"), free_port()?)?;
        node.start()?;
        node.wait()?;
        wait_for("the replica of redis", START, || match node.replication("master_link_status")? {
            up if up == "up" => Ok(()),
            other => bail!("its link is {other}"),
        })?;
        Ok(node)
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process id.
    pub fn pid(&self) -> Result<i32> {
        if let Some(child) = &mut *self.child()
            && child.try_wait()?.is_none()
        {
            return Ok(i32::try_from(child.id())?);
        }
        bail!("redis at {} does not run", self.address)
    }

    /// Starts it; [`Self::wait`] tells when it answers.
    pub fn start(&self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).context("opening its log")?;
        // A full disk is played by a limit on file sizes: writing fails instead of killing.
        let started = Command::new("env")
            .args(["--ignore-signal=XFSZ", "redis-server"])
            .arg(&self.file)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .context("starting redis-server")?;
        *self.child() = Some(started);
        Ok(())
    }

    /// Waits until it has read its data.
    pub fn wait(&self) -> Result<()> {
        let answers = || match self.say(&["PING"])?.as_str() {
            "PONG" => Ok(()),
            other => bail!("it answers {other}"),
        };
        wait_for("redis", START, answers).with_context(|| format!("its log is {}", self.log.display()))
    }

    /// Signals it.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), signal).with_context(|| format!("{signal} to redis"))
    }

    /// Ends it by a signal; one that has ended by itself is fine.
    pub fn end(&self, signal: Signal) -> Result<()> {
        if self.pid().is_ok() {
            self.signal(signal)?;
        }
        self.wait_end()
    }

    /// Waits for its end.
    pub fn wait_end(&self) -> Result<()> {
        wait_for("the end of redis", START, || if self.pid().is_ok() { bail!("it runs") } else { Ok(()) })
    }

    /// One command as the drill's user; its answer in one text.
    pub fn say(&self, words: &[&str]) -> Result<String> {
        Session::login(self.address, USER, &self.password)?.ask(words)
    }

    /// A field of `INFO replication`.
    fn replication(&self, field: &str) -> Result<String> {
        let info = self.say(&["INFO", "replication"])?;
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned()).with_context(|| format!("no {field} in INFO replication"))
    }

    /// Follows another server from now on.
    fn follow(&self, other: &Self) -> Result<()> {
        self.say(&["CONFIG", "SET", "masteruser", USER])?;
        self.say(&["CONFIG", "SET", "masterauth", &other.password])?;
        let way = other.way.address();
        self.say(&["REPLICAOF", &way.ip().to_string(), &way.port().to_string()]).map(drop)
    }
}

/// A primary and its replica.
#[derive(Debug)]
pub struct RedisPair {
    nodes: [Node; 2],
    primary: AtomicUsize,
}

impl RedisPair {
    /// Over the data of a server that was stopped, which stays the first one's, at its address; the
    /// replica's is made anew.
    pub fn new(folder: &Path, data: &Path, address: SocketAddrV4) -> Result<Self> {
        let file = data.join("redis.conf");
        let conf = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let second = folder.join("redis-b");
        if second.exists() {
            std::fs::remove_dir_all(&second).with_context(|| format!("deleting {}", second.display()))?;
        }
        let nodes = [
            Node::new(folder, "redis-a", &conf, data.canonicalize()?, address)?,
            Node::new(folder, "redis-b", &conf, second, free_port()?)?,
        ];
        let segments = Self { nodes, primary: AtomicUsize::new(0) };
        for node in &segments.nodes {
            node.start()?;
        }
        for node in &segments.nodes {
            node.wait()?;
        }
        segments.replica().follow(segments.primary())?;
        segments.wait_for_replica()?;
        Ok(segments)
    }

    /// The server over the data that was there before.
    pub fn first(&self) -> &Node {
        &self.nodes[0]
    }

    /// The server that members speak to.
    pub fn primary(&self) -> &Node {
        &self.nodes[self.primary.load(Ordering::Acquire)]
    }

    /// The other one.
    pub fn replica(&self) -> &Node {
        &self.nodes[1 - self.primary.load(Ordering::Acquire)]
    }

    /// Waits until the replica has everything.
    pub fn wait_for_replica(&self) -> Result<()> {
        wait_for("the replica of redis", START, || {
            match self.replica().replication("master_link_status")? {
                up if up == "up" => Ok(()),
                other => bail!("its link is {other}"),
            }
        })
    }

    /// Cuts the replica off: it misses what is written from now on.
    pub fn cut_replica_off(&self) {
        self.primary().way.flow_both(Flow::Drop);
    }

    /// Makes the replica the primary, as it is; the old primary goes on and does not know.
    pub fn promote(&self) -> Result<()> {
        self.replica().say(&["REPLICAOF", "NO", "ONE"])?;
        self.primary().way.heal();
        let before = self.primary.load(Ordering::Acquire);
        self.primary.store(1 - before, Ordering::Release);
        Ok(())
    }

    /// The old primary follows the new one, and loses what only it had.
    pub fn join(&self) -> Result<()> {
        self.replica().follow(self.primary())?;
        self.wait_for_replica()
    }

    /// The first server is the primary again, with everything.
    fn go_home(&self) -> Result<()> {
        if self.primary.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        self.wait_for_replica()?;
        let caught_up = || {
            let (there, here) = (
                self.primary().replication("master_repl_offset")?,
                self.replica().replication("slave_repl_offset")?,
            );
            if there == here { Ok(()) } else { bail!("{here} of {there} bytes") }
        };
        wait_for("the first redis to have everything", START, caught_up)?;
        self.promote()
    }

    /// Stops both; the first one's directory has the data.
    pub fn stop(&self) -> Result<()> {
        let home = self.go_home();
        for node in &self.nodes {
            // One that is paused could not hear.
            if node.pid().is_ok() {
                node.signal(Signal::SIGCONT)?;
            }
            node.end(Signal::SIGTERM)?;
        }
        home.context("the first redis lacks what the second has")
    }
}

impl Drop for RedisPair {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("sluice-bench: {error:#}");
        }
    }
}
