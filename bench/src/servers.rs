//! The servers of `./dev up`: killed, stopped, and started again as they were.
//!
//! A restart runs the same command line in the same environment, read from `/proc` beforehand, and
//! notes the new pid where `./dev` looks for it: seconds faster than `./dev up`, which is the way out
//! when this fails.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::drill::wait_for;

/// Everything needed to start a server as it was started.
#[derive(Debug, Clone)]
struct Recipe {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
}

/// The servers beside an environment file.
#[derive(Debug)]
pub struct Servers {
    directory: PathBuf,
    recipes: HashMap<String, Recipe>,
    /// Settings that a server was started with for a while.
    lent: HashMap<String, String>,
    children: HashMap<String, Child>,
}

impl Servers {
    /// Those under this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, recipes: HashMap::new(), lent: HashMap::new(), children: HashMap::new() }
    }

    /// The pid of a server that runs.
    pub fn pid(&self, name: &str) -> Result<i32> {
        let file = self.directory.join("pids").join(format!("{name}.pid"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let pid = text.trim().parse().with_context(|| format!("{} holds no pid", file.display()))?;
        if !runs(pid) {
            bail!("{name} (pid {pid}) does not run: ./dev up");
        }
        Ok(pid)
    }

    /// Kills a server: its crash.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.end(name, Signal::SIGKILL)
    }

    /// Stops a server politely.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        self.end(name, Signal::SIGTERM)
    }

    /// Freezes a server, or lets it go on.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid(name)?), signal).with_context(|| format!("{signal} to {name}"))
    }

    /// Tells RabbitMQ's node something, as its operator would.
    pub fn rabbitmqctl(&self, words: &[&str]) -> Result<()> {
        let recipe = Recipe::of(self.pid("rabbitmq")?).context("how rabbitmq was started")?;
        let done = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .args(words)
            .env_clear()
            .envs(recipe.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .context("rabbitmqctl")?;
        if !done.status.success() {
            bail!("rabbitmqctl {}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }

    /// Kills several at once: a power cut.
    pub fn kill_all(&mut self, names: &[&str]) -> Result<()> {
        let pids: Vec<i32> = names.iter().map(|name| self.note(name)).collect::<Result<_>>()?;
        for (name, pid) in names.iter().zip(&pids) {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).with_context(|| format!("SIGKILL to {name}"))?;
        }
        names.iter().zip(pids).try_for_each(|(name, pid)| self.wait_end(name, pid))
    }

    fn end(&mut self, name: &str, signal: Signal) -> Result<()> {
        let pid = self.note(name)?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {name}"))?;
        self.wait_end(name, pid)
    }

    /// Notes how a server was started; its pid.
    fn note(&mut self, name: &str) -> Result<i32> {
        let pid = self.pid(name)?;
        let mut recipe = Recipe::of(pid).with_context(|| format!("how {name} was started"))?;
        if name == "redis" {
            recipe.untitle(&std::path::absolute(&self.directory)?);
        }
        if let Some(variable) = self.lent.remove(name) {
            recipe.environment.retain(|(other, _)| *other != *variable);
        }
        self.recipes.insert(name.to_owned(), recipe);
        Ok(pid)
    }

    fn wait_end(&mut self, name: &str, pid: i32) -> Result<()> {
        let mut child = self.children.remove(name);
        wait_for(&format!("the end of {name}"), Duration::from_secs(60), || {
            if let Some(child) = &mut child {
                child.try_wait()?;
            }
            if runs(pid) { bail!("{name} (pid {pid}) still runs") } else { Ok(()) }
        })
    }

    /// Starts a server that was ended, as it was but for one setting, which it has until it is ended again.
    pub fn start_with(&mut self, name: &str, variable: &str, value: &str) -> Result<()> {
        let recipe = self.recipes.get_mut(name).with_context(|| format!("{name} was not stopped here"))?;
        recipe.environment.push((variable.into(), value.into()));
        self.lent.insert(name.to_owned(), variable.to_owned());
        self.start(name)
    }

    /// Starts a server that was ended, as it was.
    pub fn start(&mut self, name: &str) -> Result<()> {
        if name != "postgres" {
            return self.spawn(name);
        }
        // What a killed server's children still hold, they let go within seconds; until then it ends.
        let file = self.directory.join("postgres/data/postmaster.pid");
        wait_for("PostgreSQL", Duration::from_secs(60), || {
            if self.pid(name).is_err() {
                forget_zombie(&file)?;
                self.spawn(name)?;
            }
            let child = self.children.get_mut(name);
            if let Some(status) = child.map(Child::try_wait).transpose()?.flatten() {
                bail!("it has ended: {status}");
            }
            let (pid, text) = (self.pid(name)?, std::fs::read_to_string(&file)?);
            let mut lines = text.lines();
            let own = lines.next().is_some_and(|line| line.trim() == pid.to_string());
            let ready = lines.nth(6).is_some_and(|line| line.starts_with("ready"));
            if own && ready { Ok(()) } else { bail!("it is starting") }
        })
    }

    fn spawn(&mut self, name: &str) -> Result<()> {
        let recipe = self.recipes.get(name).with_context(|| format!("{name} was not stopped here"))?;
        let log = self.directory.join("logs").join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&log).context("opening its log")?;
        let child = Command::new(&recipe.program)
            .args(&recipe.arguments)
            .env_clear()
            .envs(recipe.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&recipe.directory)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            // No Ctrl-C of this terminal's reaches it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        self.record(name, i32::try_from(child.id())?)?;
        self.children.insert(name.to_owned(), child);
        Ok(())
    }

    /// Notes a pid as `./dev` does: the pid alone, and the pid with its start time, the boot and what
    /// it was started from, by which `./dev up` tells that it still runs what is on disk.
    fn record(&self, name: &str, pid: i32) -> Result<()> {
        std::fs::write(self.directory.join("pids").join(format!("{name}.pid")), format!("{pid}\n"))?;
        let file = self.directory.join("started").join(name);
        let Ok(old) = std::fs::read_to_string(&file) else { return Ok(()) };
        let Some(print) = old.split_ascii_whitespace().nth(3) else { return Ok(()) };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start_in(&stat).with_context(|| format!("/proc/{pid}/stat is not as expected"))?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        std::fs::write(file, format!("{pid} {start} {} {print}\n", boot.trim()))?;
        Ok(())
    }
}

impl Drop for Servers {
    /// What was stopped and not started again would stay away when a drill fails half-way.
    fn drop(&mut self) {
        let lent: Vec<String> = self.lent.keys().cloned().collect();
        for name in lent {
            if let Err(error) = self.stop(&name) {
                eprintln!("sluice-bench: {name} was not stopped ({error:#}): ./dev up");
            }
        }
        let names: Vec<String> = self.recipes.keys().cloned().collect();
        for name in names {
            if self.pid(&name).is_err()
                && let Err(error) = self.start(&name)
            {
                eprintln!("sluice-bench: {name} was not started again ({error:#}): ./dev up");
            }
        }
    }
}

impl Recipe {
    /// Redis writes a title over its command line: `PROGRAM ADDRESS`.
    fn untitle(&mut self, directory: &Path) {
        let title = self.program.to_string_lossy();
        let program = title.split(' ').next().unwrap_or_default().to_owned();
        self.program = program.into();
        self.arguments = vec![directory.join("redis/redis.conf").into()];
    }

    fn of(pid: i32) -> Result<Self> {
        let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}"));
        let texts = |bytes: &[u8]| -> Vec<OsString> {
            let parts = bytes.split(|byte| *byte == 0).map(|part| OsString::from_vec(part.to_vec()));
            parts.collect()
        };
        let mut arguments = texts(read("cmdline")?.strip_suffix(b"\0").unwrap_or_default());
        if arguments.first().is_none_or(|first| first.is_empty()) {
            bail!("process {pid} has no command line");
        }
        let named = arguments.remove(0);
        // A bare name was found in some PATH; the link tells where.
        let program = if named.as_bytes().contains(&b'/') {
            named
        } else {
            std::fs::read_link(format!("/proc/{pid}/exe"))?.into_os_string()
        };
        let (program, arguments) = as_its_user(pid, program, arguments)?;
        let environment = texts(&read("environ")?).iter().filter_map(|text| pair(text)).collect();
        Ok(Self {
            program,
            arguments,
            environment,
            directory: std::fs::read_link(format!("/proc/{pid}/cwd"))?,
        })
    }
}

/// PostgreSQL does not run as root: `./dev` starts it in a user namespace that shows it another user, or
/// as that user. A process's command line does not tell.
fn as_its_user(pid: i32, program: OsString, arguments: Vec<OsString>) -> Result<(OsString, Vec<OsString>)> {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user"));
    let shown = |map: &str| -> Result<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{map}"))?;
        text.split_ascii_whitespace().next().map(str::to_owned).with_context(|| format!("{map} is empty"))
    };
    let owner = std::fs::metadata(format!("/proc/{pid}"))?;
    let prefix = if namespace(&pid.to_string())? != namespace("self")? {
        let (user, group) = (shown("uid_map")?, shown("gid_map")?);
        vec![
            "unshare".to_owned(),
            "-U".to_owned(),
            format!("--map-user={user}"),
            format!("--map-group={group}"),
        ]
    } else if owner.uid() != std::fs::metadata("/proc/self")?.uid() {
        let (user, group) = (owner.uid(), owner.gid());
        let user = [format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()];
        std::iter::once("setpriv".to_owned()).chain(user).collect()
    } else {
        return Ok((program, arguments));
    };
    let mut words = prefix.into_iter().map(OsString::from).chain(std::iter::once(program)).chain(arguments);
    let first = words.next().unwrap_or_default();
    Ok((first, words.collect()))
}

/// A server that died but was not reaped still counts as alive to PostgreSQL, and where nobody reaps it
/// would for ever. Its pid is replaced by one that cannot exist; the rest of the file, which guards the
/// shared memory, stays.
fn forget_zombie(file: &Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(()) };
    let Some((pid, rest)) = text.split_once('\n') else { return Ok(()) };
    let gone = pid.trim().parse().is_ok_and(|pid| !runs(pid));
    if gone && Path::new(&format!("/proc/{}", pid.trim())).exists() {
        let none = std::fs::read_to_string("/proc/sys/kernel/pid_max")?;
        // In place: the file stays its owner's.
        std::fs::write(file, format!("{}\n{rest}", none.trim())).context("forgetting a dead PostgreSQL")?;
    }
    Ok(())
}

/// `NAME=value`.
fn pair(text: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = text.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    Some((part(&bytes[..equals]), part(&bytes[equals + 1..])))
}

/// Whether a process runs; one that has ended and was not waited for does not, once its last thread has
/// let go of its ports.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let ended = |stat: String| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.is_ok_and(|stat| !ended(stat) || threads() > 1)
}

/// When a process was started, in ticks since the boot.
fn start_in(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_server_is_started_as_it_was() {
        let directory = std::env::temp_dir().join(format!("sluice-bench-servers-{}", std::process::id()));
        for part in ["pids", "started", "logs"] {
            std::fs::create_dir_all(directory.join(part)).unwrap();
        }
        let mut first = Command::new("sleep").arg("1000").env("MARK", "a=b").spawn().unwrap();
        std::fs::write(directory.join("pids/s.pid"), format!("{}\n", first.id())).unwrap();
        std::fs::write(directory.join("started/s"), format!("{} 1 boot print-1\n", first.id())).unwrap();
        let mut servers = Servers::new(directory.clone());
        let killed = servers.pid("s").unwrap();
        // A process that is just beginning has no command line yet.
        let recipe = |pid| wait_for("its command line", Duration::from_secs(10), || Recipe::of(pid)).unwrap();
        recipe(killed);
        let reaper = std::thread::spawn(move || first.wait());
        servers.kill("s").unwrap();
        reaper.join().unwrap().unwrap();
        assert!(servers.pid("s").is_err());
        servers.start("s").unwrap();
        let pid = servers.pid("s").unwrap();
        assert_ne!(pid, killed);
        let recipe = recipe(pid);
        assert_eq!(recipe.arguments, ["1000"]);
        assert!(recipe.environment.contains(&("MARK".into(), "a=b".into())));
        let started = std::fs::read_to_string(directory.join("started/s")).unwrap();
        assert!(started.starts_with(&format!("{pid} ")) && started.ends_with(" print-1\n"), "{started}");
        servers.stop("s").unwrap();
        servers.start_with("s", "LENT", "x").unwrap();
        let lent = || Recipe::of(servers.pid("s")?);
        let with = wait_for("its command line", Duration::from_secs(10), lent).unwrap();
        assert!(with.environment.contains(&("LENT".into(), "x".into())));
        servers.stop("s").unwrap();
        assert!(servers.recipes["s"].environment.iter().all(|(name, _)| *name != *"LENT"));
        servers.recipes.clear();
        std::fs::remove_dir_all(directory).unwrap();
    }
}
