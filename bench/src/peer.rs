//! The peer that the gate is measured against: nginx + Lua + Redis, started for one run.
//!
//! What it does and why is in `bench/peer/README.md`.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::drill::wait_for;

const CONSTANT: &str = include_str!("../peer/constant.conf");
const GATE: &str = include_str!("../peer/gate.conf");
const SCRIPT: &str = include_str!("../peer/deduct.lua");
const MODULES: [&str; 2] = ["/usr/lib/nginx/modules", "/usr/share/nginx/modules"];

/// A server of the peer's, stopped when dropped.
#[derive(Debug)]
struct Server {
    child: Child,
    address: SocketAddrV4,
}

/// The peer, running.
#[derive(Debug)]
pub struct Peer {
    home: PathBuf,
    redis: Server,
    constant: Server,
    gate: Server,
}

impl Peer {
    /// Starts its servers on free ports, with their files in a directory of their own.
    pub fn start() -> Result<Self> {
        let home = std::env::temp_dir().join(format!("sluice-peer-{}", std::process::id()));
        std::fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
        std::fs::write(home.join("deduct.lua"), SCRIPT)?;
        let redis = Server::start(Command::new("redis-server").args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            &home.to_string_lossy(),
            "--logfile",
            "redis.log",
            "--port",
        ]))?;
        let constant = nginx(&home, "constant", CONSTANT, redis.address.port())?;
        let gate = nginx(&home, "gate", GATE, redis.address.port())?;
        Ok(Self { home, redis, constant, gate })
    }

    /// Where the constant is answered.
    pub fn constant(&self) -> SocketAddrV4 {
        self.constant.address
    }

    /// Where the Lua gate is.
    pub fn gate(&self) -> SocketAddrV4 {
        self.gate.address
    }

    /// The processes behind the constant.
    pub fn constant_pids(&self) -> Result<Vec<i32>> {
        Ok(vec![worker_of(&self.constant.child)?])
    }

    /// The processes behind a refusal: nginx alone.
    pub fn gate_pids(&self) -> Result<Vec<i32>> {
        Ok(vec![worker_of(&self.gate.child)?])
    }

    /// The processes behind a unit taken: nginx and Redis.
    pub fn taking_pids(&self) -> Result<Vec<i32>> {
        Ok(vec![worker_of(&self.gate.child)?, i32::try_from(self.redis.child.id())?])
    }

    /// Nothing is left: the gate raises its flag at the next request.
    pub fn sell_out(&mut self) -> Result<()> {
        self.redis_command(&["FLUSHALL"])?;
        self.restart_gate()
    }

    /// So many units are left, and nobody has bought.
    pub fn stock(&mut self, units: u32) -> Result<()> {
        self.redis_command(&["FLUSHALL"])?;
        self.redis_command(&["SET", "{1}:stock", &units.to_string()])?;
        self.restart_gate()
    }

    /// A new nginx has no flags and no buckets.
    fn restart_gate(&mut self) -> Result<()> {
        self.gate = nginx(&self.home, "gate", GATE, self.redis.address.port())?;
        Ok(())
    }

    fn redis_command(&self, words: &[&str]) -> Result<()> {
        let port = self.redis.address.port().to_string();
        let done = Command::new("redis-cli").args(["-p", &port]).args(words).output().context("redis-cli")?;
        if done.stdout.trim_ascii() != b"OK" {
            bail!("the peer's Redis: {}", String::from_utf8_lossy(&done.stdout));
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Only files of this run; what cannot be deleted does no harm.
        std::fs::remove_dir_all(&self.home).ok();
    }
}

impl Server {
    /// Starts a program whose last argument is still missing: the port.
    fn start(command: &mut Command) -> Result<Self> {
        let port = free_port()?;
        Self::start_on(command.arg(port.to_string()), port)
    }

    fn start_on(command: &mut Command, port: u16) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {program}; is it installed?"))?;
        let server = Self { child, address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port) };
        wait_for(&program, Duration::from_secs(10), || Ok(TcpStream::connect(server.address).map(drop)?))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // A refusal means that it has ended.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        self.child.wait().ok();
    }
}

fn nginx(home: &Path, name: &str, text: &str, redis: u16) -> Result<Server> {
    let modules = MODULES.iter().find(|path| Path::new(path).join("ngx_http_lua_module.so").exists());
    let modules = modules.context("nginx's Lua module is not installed: libnginx-mod-http-lua")?;
    let port = free_port()?;
    let text = text
        .replace("@HOME@", &home.to_string_lossy())
        .replace("@MODULES@", modules)
        .replace("@PORT@", &port.to_string())
        .replace("@REDIS@", &redis.to_string());
    let file = home.join(format!("{name}.conf"));
    std::fs::write(&file, text)?;
    let program =
        ["/usr/sbin/nginx", "/usr/local/sbin/nginx"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(program.unwrap_or("nginx"));
    Server::start_on(command.args(["-e", "stderr", "-c"]).arg(&file), port)
}

/// The worker process of an nginx.
fn worker_of(master: &Child) -> Result<i32> {
    let pid = master.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let first = children.split_ascii_whitespace().next().context("nginx has no worker process")?;
    Ok(first.parse()?)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
