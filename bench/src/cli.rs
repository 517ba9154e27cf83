//! The command line.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use sluice_shared::clock::Millis;
use sluice_shared::ids::UserId;
use sluice_shared::jwt::sign_hs256;

use crate::compare::{self, Compare};
use crate::drill::{
    Setting, all, audit, broker_outage, burst, chaos, expiry, kill, lost_data, lost_reply, payments,
    power_cut, rolling, sell_out,
};
use crate::environment::Environment;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::{self, Proxy};

/// Load and drills for a running Sluice: what it promises is shown, what it costs is counted.
///
/// Everything is aimed at the system of `./dev up` (its file .run/env) and at loopback only.
/// Exit 0: all is good. 1: a promise does not hold. 2: the drill could not be carried out.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench", version)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// The running system: lines NAME='value', as `./dev up` writes them
    #[arg(long, global = true, default_value = ".run/env")]
    env: PathBuf,
    /// Where the log of every request goes; if not given, it is kept only when something is wrong
    #[arg(long, global = true)]
    log: Option<PathBuf>,
    /// Connections of the crowd, each from a loopback address of its own
    #[arg(long, global = true, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// Chooses whatever is left to chance; the same seed, the same crowd
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A scene on the running system, judged by the books
    #[command(subcommand)]
    Drill(Drill),
    /// What a request costs, as a ratio to nginx + Lua + Redis measured in the same run
    Compare(Compare),
    /// A TCP proxy that breaks connections as it is told: `echo help | nc CONTROL`
    Proxy(Relay),
    /// A demo buyer's JWT, for curl
    Token {
        /// The user: 1 to 128 printable ASCII characters without spaces
        user: String,
    },
}

#[derive(Debug, Args)]
struct Relay {
    /// Where it listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddrV4,
    /// Where its connections go
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddrV4,
    /// Where it is told what to do, a line at a time; without it, it only passes on
    #[arg(long, value_name = "ADDRESS:PORT")]
    control: Option<SocketAddrV4>,
    /// What is spoken there, for faults that are aimed at frames
    #[arg(long, value_enum, default_value_t)]
    speaks: Protocol,
}

impl Relay {
    /// Runs until the process is ended.
    fn run(&self, seed: u64) -> Result<bool> {
        let proxy = Proxy::start(self.listen, self.to, self.speaks, seed)?;
        eprintln!("{} goes to {}", proxy.address(), self.to);
        if let Some(control) = self.control {
            proxy::serve(&proxy, control)?;
        }
        loop {
            std::thread::park();
        }
    }
}

#[derive(Debug, Subcommand)]
enum Drill {
    /// More buyers than units, some of them misbehaving
    SellOut(sell_out::SellOut),
    /// Half is paid, the rest expires and is sold again
    Expiry(expiry::Expiry),
    /// RabbitMQ is away in the middle of a sale
    BrokerOutage(broker_outage::BrokerOutage),
    /// Edge, worker and wardens are killed in mid-sale
    Kill(kill::Kill),
    /// Redis dies in mid-sale and comes back without its data
    LostData(lost_data::LostData),
    /// Edges are restarted one behind the other, and replaced on their own address
    Rolling(rolling::Rolling),
    /// Everything dies at the same moment
    PowerCut(power_cut::PowerCut),
    /// Answers are lost, and the same tokens sent again
    LostReply(lost_reply::LostReply),
    /// As many orders as gate and Redis can take
    Burst(burst::Burst),
    /// Payment notices of every kind
    Payments(payments::Payments),
    /// A large sale is audited while it sells
    Audit(audit::Audit),
    /// Everything is broken again and again, several things at a time
    Chaos(chaos::Chaos),
    /// All but chaos, one after the other
    All(all::All),
}

impl Drill {
    fn run(&self, setting: &Setting) -> Result<bool> {
        match self {
            Self::SellOut(ask) => sell_out::run(setting, ask),
            Self::Expiry(ask) => expiry::run(setting, ask),
            Self::BrokerOutage(ask) => broker_outage::run(setting, ask),
            Self::Kill(ask) => kill::run(setting, ask),
            Self::LostData(ask) => lost_data::run(setting, ask),
            Self::Rolling(ask) => rolling::run(setting, ask),
            Self::PowerCut(ask) => power_cut::run(setting, ask),
            Self::LostReply(ask) => lost_reply::run(setting, ask),
            Self::Burst(ask) => burst::run(setting, ask),
            Self::Payments(ask) => payments::run(setting, ask),
            Self::Audit(ask) => audit::run(setting, ask),
            Self::Chaos(ask) => chaos::run(setting, ask),
            Self::All(ask) => all::run(setting, ask),
        }
    }
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        match self.carry_out() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => {
                eprintln!("sluice-bench: {error:#}");
                ExitCode::from(2)
            }
        }
    }

    fn carry_out(self) -> Result<bool> {
        let Common { env, log, connections, seed } = self.common;
        let setting = || {
            let environment = Environment::load(&env)?;
            anyhow::Ok(Setting { environment, connections: usize::from(connections), log, seed })
        };
        match self.command {
            Command::Drill(drill) => drill.run(&setting()?),
            Command::Compare(ask) => compare::run(&setting()?, &ask),
            Command::Proxy(relay) => relay.run(seed),
            Command::Token { user } => token(&setting()?.environment, &user),
        }
    }
}

fn token(environment: &Environment, user: &str) -> Result<bool> {
    let user = UserId::parse(user).context("USER")?;
    let claims = json!({"sub": user, "exp": Millis::now().seconds() + 24 * 3600});
    println!("{}", sign_hs256(&environment.jwt_secret, &claims));
    Ok(true)
}
