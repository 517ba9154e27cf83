//! The command line: `sluice-worker ROLE…` and the one-shot commands.

pub mod edges;
pub mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_shared::config::{EXIT_USAGE, Problems};

use crate::config::{Config, Role};
use crate::role;
use crate::sources::Sources;
use crate::store::Store;
use crate::{audit, explain};

const ROLES: &str = "\
Roles:
  orders     accepted orders from RabbitMQ into the books, in batches
  outbox     what the books tell, to RabbitMQ
  saga       the purchase step by step: Redis follows the books, units go back
  timeout    orders that are not paid in time expire
  api        the back office and payment notices (HTTP)
  reconcile  the warden: lease, register of edges, re-opening, reconciling
  all        every role in this process

Each role may run in any number of processes. Settings: --config F, then SLUICE__SECTION__KEY.
Without --config, one-shot commands go by SLUICE_REDIS_URL, SLUICE_DATABASE_URL, SLUICE_AMQP_URL and
SLUICE_AMQP_MANAGEMENT_URL too, where those are set and not empty.
Logs: JSON on standard error, level by SLUICE_LOG.

Examples:
  sluice-worker orders outbox saga timeout api --config worker.toml
  sluice-worker reconcile --name warden-1 --config worker.toml
  sluice-worker audit --sale demo --wait 30s";

/// The workers of Sluice: they write accepted orders, run the purchase and keep the books.
#[derive(Debug, Parser)]
#[command(name = "sluice-worker", version, after_help = ROLES, arg_required_else_help = true)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What this process is: one role, several, or `all`
    #[arg(value_name = "ROLE", required = true)]
    roles: Vec<String>,
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    once: Option<Once>,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Configuration file (TOML)
    #[arg(long, value_name = "F", global = true)]
    config: Option<PathBuf>,
    /// What this process is called, instead of `name` in the configuration
    #[arg(long, value_name = "N", global = true)]
    name: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Once {
    /// Bring the database to this version's schema
    Migrate,
    /// Prove from the books that nothing was lost, oversold or leaked
    Audit(audit::Args),
    /// Tell one order's time-line through every stage
    Explain(explain::Args),
    /// List the edges that may hold accepted orders, or say that one is dead
    Edges(edges::Args),
    /// Compare RabbitMQ with the topology, or bring it there
    Topology(topology::Args),
    /// Check a configuration file; every problem at once
    CheckConfig,
}

/// Reads the command line; a wrong one is told, and help is given.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        // Help goes to standard output, a mistake to standard error; a closed one is nobody's loss.
        let _ = error.print();
        if error.use_stderr() { usage() } else { ExitCode::SUCCESS }
    })
}

fn usage() -> ExitCode {
    ExitCode::from(u8::try_from(EXIT_USAGE).unwrap_or(64))
}

/// Does what the command line says.
pub async fn run(cli: Cli) -> ExitCode {
    let code = match cli.once {
        None => roles(&cli.roles, &cli.common).await,
        Some(Once::CheckConfig) => Config::load(cli.common.config.as_deref(), &Role::ALL).map(|_| {
            println!("the configuration can be used");
            0
        }),
        Some(once) => match Sources::read(cli.common.config.as_deref()) {
            Ok(sources) => Ok(one_shot(once, &sources).await),
            Err(problems) => Err(problems),
        },
    };
    match code {
        Ok(code) => ExitCode::from(code),
        Err(problems) => {
            eprintln!("{problems}");
            usage()
        }
    }
}

async fn one_shot(once: Once, sources: &Sources) -> u8 {
    match once {
        Once::Migrate => migrate(sources).await,
        Once::Audit(args) => audit::run(sources, &args).await,
        Once::Explain(args) => explain::run(sources, &args).await,
        Once::Edges(args) => edges::run(sources, &args).await,
        Once::Topology(args) => topology::run(sources, &args).await,
        Once::CheckConfig => 0,
    }
}

async fn migrate(sources: &Sources) -> u8 {
    let migrated = async { Store::connect(&sources.database).await?.migrate().await };
    match migrated.await {
        Ok(()) => {
            println!("the database has this version's schema");
            0
        }
        Err(error) => {
            eprintln!("sluice-worker migrate: {error}");
            1
        }
    }
}

async fn roles(words: &[String], common: &Common) -> Result<u8, Problems> {
    let (roles, mut problems) = Role::read(words);
    let config = Config::load(common.config.as_deref(), &roles);
    let config = config.map_err(|Problems(more)| problems.extend(more)).ok();
    match config {
        Some(mut config) if problems.is_empty() => {
            if let Some(name) = &common.name {
                config.name.clone_from(name);
            }
            Ok(role::serve(&roles, config).await)
        }
        _ => Err(Problems(problems)),
    }
}
