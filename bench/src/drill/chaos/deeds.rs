//! How each fault is done, undone, and recovered from.

use std::fs::OpenOptions;
use std::net::TcpStream;
use std::process::Command;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::doer::{Doer, millis};
use super::ground::hold;
use super::network;
use super::plan::{Deed, Fault};
use crate::admin::Admin;
use crate::drill::lost_data::newest;
use crate::drill::wait_for;
use crate::fleet::Store;
use sluice_testkit::proxy::rules::Flow;

/// How long something may take to work again before it counts as gone.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long it has to go on until it counts.
const SURE: Duration = Duration::from_secs(2);
/// Bytes that the end of a file may lose, at the most.
const TAIL: u64 = 64 * 1024;

impl Doer<'_> {
    /// One fault from its beginning until what it hit works again.
    pub(super) fn carry_out(&self, fault: Fault) -> Result<()> {
        let mut random = StdRng::seed_from_u64(fault.seed);
        let lock = &self.ground.confirmed;
        let _shared =
            fault.victim.starts_with("edge").then(|| lock.read().unwrap_or_else(PoisonError::into_inner));
        let random = &mut random;
        match fault.deed {
            Deed::Kill => self.kill(fault, random),
            Deed::Pause => self.pause(fault, random),
            Deed::Partition => self.partition(fault, random),
            Deed::MemoryAlarm => {
                self.alarm(fault, random, ["set_vm_memory_high_watermark", "0.000001", "0.4"])
            }
            Deed::DiskAlarm => self.alarm(fault, random, ["set_disk_free_limit", "1000000GB", "50MB"]),
            Deed::FullDisk => self.full_disk(fault),
            Deed::Network => network::disturb(self, fault, random),
            Deed::LostTail | Deed::WipedRedis | Deed::StalePromotion | Deed::WipedBroker => {
                let _alone = lock.write().unwrap_or_else(PoisonError::into_inner);
                self.ground.wait_for_calm().with_context(|| format!("before {fault}"))?;
                // Until the edges sell again and have nothing unconfirmed, none of them is broken.
                self.lose(fault, random)
            }
        }
    }

    /// Waits until it works again; the time counts from now.
    pub(super) fn recovered(
        &self,
        number: usize,
        fault: Fault,
        works: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let undone = Instant::now();
        wait_for("recovery", RECOVERY, works).with_context(|| format!("after {fault}"))?;
        self.journal.recover(number, undone.elapsed());
        Ok(())
    }

    /// Waits until the edges sell the round's sale, and go on doing so: what they tell at first may be from
    /// before they noticed anything. Closed sales of former rounds come back after it; then it is over.
    fn sells_again(&self, number: usize, fault: Fault) -> Result<()> {
        let (undone, mut since) = (Instant::now(), None);
        let sells = || {
            if let Err(error) = self.ground.sells(self.sale) {
                since = None;
                return Err(error);
            }
            let sure = since.get_or_insert_with(Instant::now).elapsed() >= SURE;
            if sure { Ok(()) } else { bail!("they sell since a moment") }
        };
        wait_for("the edges to sell", RECOVERY, sells).with_context(|| format!("after {fault}"))?;
        self.journal.recover(number, since.unwrap_or(undone) - undone);
        wait_for("the edges to be calm", RECOVERY, || self.ground.is_calm())
            .with_context(|| format!("after {fault}"))
    }

    /// Whether what was hit does its work.
    fn works(&self, victim: &str) -> Result<()> {
        let ground = self.ground;
        match victim {
            "redis" => ground.fleet.edges().try_for_each(|edge| ground.fleet.is_ready(edge)),
            "rabbitmq" => ground.fleet.edges().try_for_each(|edge| {
                let connected = ground.fleet.metric(edge, "sluice_amqp_connected")?;
                if connected > 0.5 { Ok(()) } else { bail!("{edge} has no broker") }
            }),
            "postgres" if Admin::new(&ground.environment).answers() => Ok(()),
            "postgres" => bail!("the back office does not answer"),
            member => ground.fleet.is_ready(member),
        }
    }

    fn kill(&self, fault: Fault, random: &mut StdRng) -> Result<()> {
        let away = millis(random, 0..1_500);
        let details = format!("SIGKILL, started again after {} ms", away.as_millis());
        let ground = self.ground;
        let held = match fault.victim {
            "redis" => return self.kill_redis(fault, away, &details),
            "rabbitmq" => &ground.broker,
            "postgres" => &ground.database,
            member => {
                let number = self.journal.begin(fault, &details);
                ground.fleet.kill(member)?;
                std::thread::sleep(away);
                ground.fleet.start(member)?;
                return self.recovered(number, fault, || self.works(member));
            }
        };
        let mut servers = hold(held);
        let number = self.journal.begin(fault, &details);
        servers.kill(fault.victim)?;
        std::thread::sleep(away);
        servers.start(fault.victim)?;
        self.wait_for_broker(fault.victim)?;
        self.recovered(number, fault, || self.works(fault.victim))
    }

    fn kill_redis(&self, fault: Fault, away: Duration, details: &str) -> Result<()> {
        let redis = &self.ground.redis;
        let _held = hold(&self.ground.segments);
        let number = self.journal.begin(fault, details);
        redis.primary().end(Signal::SIGKILL)?;
        std::thread::sleep(away);
        redis.primary().start()?;
        redis.primary().wait()?;
        self.sells_again(number, fault)?;
        redis.wait_for_replica()
    }

    /// RabbitMQ takes seconds to start: the fault ends when it listens.
    fn wait_for_broker(&self, victim: &str) -> Result<()> {
        let amqp = self.ground.environment.amqp;
        let listens = || Ok(TcpStream::connect(amqp).map(drop)?);
        if victim == "rabbitmq" { wait_for("RabbitMQ to listen", RECOVERY, listens) } else { Ok(()) }
    }

    fn pause(&self, fault: Fault, random: &mut StdRng) -> Result<()> {
        // Every third longer than a lease.
        let long = random.random_range(0..3) == 0;
        let time = if long { millis(random, 6_500..8_000) } else { millis(random, 1_000..5_000) };
        let details = format!("SIGSTOP for {} ms", time.as_millis());
        let ground = self.ground;
        let _redis = (fault.victim == "redis").then(|| hold(&ground.segments));
        let servers = match fault.victim {
            "rabbitmq" => Some(hold(&ground.broker)),
            "postgres" => Some(hold(&ground.database)),
            _ => None,
        };
        let signal = |signal: Signal| match (fault.victim, &servers) {
            ("redis", _) => ground.redis.primary().signal(signal),
            (store, Some(servers)) => servers.signal(store, signal),
            (member, None) => ground.fleet.signal(member, signal),
        };
        let number = self.journal.begin(fault, &details);
        signal(Signal::SIGSTOP)?;
        std::thread::sleep(time);
        signal(Signal::SIGCONT)?;
        self.recovered(number, fault, || self.works(fault.victim))
    }

    fn partition(&self, fault: Fault, random: &mut StdRng) -> Result<()> {
        let time = millis(random, 2_000..10_000);
        let ways: Vec<_> =
            self.ground.fleet.links().iter().filter(|link| link.member == fault.victim).collect();
        let details = format!("from every store for {} ms", time.as_millis());
        let number = self.journal.begin(fault, &details);
        ways.iter().for_each(|way| way.proxy.flow_both(Flow::Drop));
        std::thread::sleep(time);
        ways.iter().for_each(|way| way.proxy.heal());
        self.recovered(number, fault, || self.works(fault.victim))
    }

    fn alarm(&self, fault: Fault, random: &mut StdRng, [word, on, off]: [&str; 3]) -> Result<()> {
        let time = millis(random, 1_000..5_000);
        let servers = hold(&self.ground.broker);
        let number = self.journal.begin(fault, &format!("{word} {on} for {} ms", time.as_millis()));
        let rung = servers.rabbitmqctl(&[word, on]);
        std::thread::sleep(time);
        servers.rabbitmqctl(&[word, off])?;
        rung?;
        self.recovered(number, fault, || {
            self.ground.fleet.edges().try_for_each(|edge| {
                let blocked = self.ground.fleet.metric(edge, "sluice_amqp_blocked")?;
                if blocked < 0.5 { Ok(()) } else { bail!("{edge} is still blocked") }
            })
        })
    }

    /// Redis may not let any file grow: it cannot write, and with `always` it ends.
    fn full_disk(&self, fault: Fault) -> Result<()> {
        let ground = self.ground;
        let _held = hold(&ground.segments);
        let node = ground.redis.primary();
        let size = newest(&node.data.join("appendonlydir"))?.metadata()?.len() + 777;
        let number = self.journal.begin(fault, "no file may grow by more than 777 bytes");
        let (pid, limit) = (format!("--pid={}", node.pid()?), format!("--fsize={size}"));
        let done = Command::new("prlimit").args([&pid, &limit]).output().context("prlimit")?;
        if !done.status.success() {
            bail!("prlimit: {}", String::from_utf8_lossy(&done.stderr));
        }
        // Without orders nothing is written but leases, which come each second.
        if node.wait_end().is_err() {
            // Whatever keeps it, the fault is undone.
            node.end(Signal::SIGKILL)?;
        }
        node.start()?;
        node.wait()?;
        self.sells_again(number, fault)?;
        ground.redis.wait_for_replica()
    }

    /// A store loses what it had confirmed.
    fn lose(&self, fault: Fault, random: &mut StdRng) -> Result<()> {
        if fault.deed == Deed::WipedBroker {
            return self.wipe_broker(fault);
        }
        let ground = self.ground;
        let _held = hold(&ground.segments);
        ground.redis.wait_for_replica()?;
        if fault.deed == Deed::StalePromotion {
            return self.promote_stale(fault, random);
        }
        let node = ground.redis.primary();
        let folder = node.data.join("appendonlydir");
        let tail = random.random_range(1..=TAIL);
        let details = match fault.deed {
            Deed::LostTail => format!("the last {tail} bytes of its file"),
            _ => "its data directory".to_owned(),
        };
        let number = self.journal.begin(fault, &details);
        node.end(Signal::SIGKILL)?;
        if fault.deed == Deed::LostTail {
            let file = OpenOptions::new().write(true).open(newest(&folder)?)?;
            let length = file.metadata()?.len();
            file.set_len(length - tail.min(length))?;
        } else {
            std::fs::remove_dir_all(&folder).with_context(|| format!("deleting {}", folder.display()))?;
        }
        node.start()?;
        node.wait()?;
        self.sells_again(number, fault)?;
        ground.redis.wait_for_replica()
    }

    /// The replica misses some writes, is promoted, and one edge goes on with the old primary for a
    /// while.
    fn promote_stale(&self, fault: Fault, random: &mut StdRng) -> Result<()> {
        let ground = self.ground;
        let (missed, beside) = (millis(random, 300..1_500), millis(random, 0..3_000));
        let details = format!(
            "the last {} ms missing, edge-1 with the old primary for {} ms more",
            missed.as_millis(),
            beside.as_millis()
        );
        let number = self.journal.begin(fault, &details);
        ground.redis.cut_replica_off();
        std::thread::sleep(missed);
        ground.redis.promote()?;
        ground.aim_at_primary();
        let ways = || ground.fleet.links().iter().filter(|link| link.store == Store::Redis);
        ways().filter(|link| link.member != "edge-1").for_each(|link| link.proxy.reset());
        std::thread::sleep(beside);
        ways().for_each(|link| link.proxy.reset());
        self.sells_again(number, fault)?;
        ground.redis.join()
    }

    fn wipe_broker(&self, fault: Fault) -> Result<()> {
        let ground = self.ground;
        let mut servers = hold(&ground.broker);
        let folder = ground.home.join("rabbitmq/mnesia");
        let number = self.journal.begin(fault, "its data directory");
        servers.kill("rabbitmq")?;
        std::fs::remove_dir_all(&folder).with_context(|| format!("deleting {}", folder.display()))?;
        std::fs::create_dir_all(&folder)?;
        servers.start("rabbitmq")?;
        self.wait_for_broker("rabbitmq")?;
        self.sells_again(number, fault)
    }
}
