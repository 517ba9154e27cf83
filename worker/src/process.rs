//! What every part of a worker process works with, and how it is kept alive. Imports no role.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::redis::Redis;
use tokio::sync::watch;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::Store;

/// Turns true once, when the process is to end.
pub type Stop = watch::Receiver<bool>;

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

impl Context {
    /// What these settings describe. Nothing is connected yet: a process starts, and waits, while
    /// the servers are away.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        Ok(Self {
            store: Store::lazy(&config.database)?,
            redis: Redis::lazy(config.redis.url.reveal(), config.redis.deadline)?,
            metrics: Metrics::new(),
            who: format!("sluice-worker@{}", place()).into(),
            config: Arc::new(config),
        })
    }

    /// `host#pid`.
    pub fn place(&self) -> &str {
        self.who.split_once('@').map_or("", |(_, place)| place)
    }
}

fn place() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    format!("{host}#{}", std::process::id())
}

/// The shortest and the longest wait before something that failed is tried again.
const WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Whatever ran this long before it failed is tried again at once.
const STEADY: Duration = Duration::from_secs(60);

/// Runs something again and again until told to stop; an error of it touches nothing else. Each kind
/// of error is logged when it begins, not each time.
pub async fn keep<F, Fut>(what: &'static str, metrics: Arc<Metrics>, mut stop: Stop, mut make: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (mut wait, mut last) = (WAITS[0], String::new());
    while !*stop.borrow() {
        let began = Instant::now();
        let why = match tokio::spawn(make()).await {
            Ok(Ok(())) => "it ended by itself".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(error) => error.to_string(),
        };
        if *stop.borrow() {
            break;
        }
        if began.elapsed() > STEADY {
            (wait, last) = (WAITS[0], String::new());
        }
        metrics.restart(what);
        if why != last {
            tracing::warn!(what, why, "starting again");
            last = why;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(WAITS[1]),
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}
