//! What a worker process can be, and how roles live and die in it.

pub mod api;
pub mod orders;
pub mod outbox;
pub mod reconcile;
pub mod saga;
pub mod timeout;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::redis::Redis;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::status;
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

impl Role {
    /// Runs until told to stop, or until something is wrong.
    async fn run(self, context: Context, stop: Stop) -> anyhow::Result<()> {
        match self {
            Self::Orders => orders::run(context, stop).await,
            Self::Outbox => outbox::run(context, stop).await,
            Self::Saga => saga::run(context, stop).await,
            Self::Timeout => timeout::run(context, stop).await,
            Self::Api => api::run(context, stop).await,
            Self::Reconcile => reconcile::run(context, stop).await,
        }
    }
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

/// Runs roles until SIGTERM or SIGINT, then lets them finish what they have begun; a second signal
/// ends the process at once. Answers the exit code.
pub async fn serve(roles: &[Role], config: Config) -> u8 {
    let grace = config.grace;
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tracing::error!("signals cannot be handled here");
        return 1;
    };
    let context = match Context::new(config) {
        Ok(context) => context,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the process cannot be prepared");
            return 1;
        }
    };
    let (tell, stop) = watch::channel(false);
    let mut running = JoinSet::new();
    for role in roles {
        let (role, context, stop) = (*role, context.clone(), stop.clone());
        let (metrics, stopped) = (context.metrics.clone(), stop.clone());
        let make = move || role.run(context.clone(), stop.clone());
        running.spawn(keep(role.as_str(), metrics, stopped, make));
    }
    if let Some(listen) = context.config.status {
        let (metrics, stopped, context) = (context.metrics.clone(), stop.clone(), context.clone());
        let make = move || status::serve(listen, context.clone(), stop.clone());
        running.spawn(keep("status", metrics, stopped, make));
    }
    let names: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
    tracing::info!(who = &*context.who, name = context.config.name, roles = names.join(" "), "started");
    let signalled = async |terminate: &mut Signal, interrupt: &mut Signal| {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    signalled(&mut terminate, &mut interrupt).await;
    tracing::info!("stopping");
    tell.send_replace(true);
    let finished = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = finished => {
            context.store.close().await;
            tracing::info!("stopped");
            0
        }
        () = tokio::time::sleep(grace) => {
            tracing::warn!("not everything was finished in time");
            1
        }
        () = signalled(&mut terminate, &mut interrupt) => 1,
    }
}
