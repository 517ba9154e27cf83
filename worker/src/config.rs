//! What `worker.default.toml` says, checked and typed.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use sluice_shared::config::{Problems, Secret, Settings};
use sluice_shared::redis::Redis;

use crate::store::DatabaseConfig;

/// The commented reference; also the defaults.
pub const DEFAULTS: &str = include_str!("../worker.default.toml");

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

/// One process' settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// What this process is called.
    pub name: String,
    /// Redis.
    pub redis: RedisConfig,
    /// RabbitMQ.
    pub amqp: AmqpConfig,
    /// PostgreSQL.
    pub database: DatabaseConfig,
    /// The `orders` role.
    pub orders: OrdersConfig,
    /// The `outbox` role.
    pub outbox: OutboxConfig,
    /// Messages under way in a queue of the `saga` role.
    pub saga_prefetch: u16,
    /// The `timeout` role.
    pub timeout: TimeoutConfig,
    /// The `api` role.
    pub api: ApiConfig,
    /// The `reconcile` role.
    pub reconcile: ReconcileConfig,
    /// Where `/metrics` and health are served, if anywhere.
    pub status: Option<SocketAddr>,
    /// How long a shutdown may take.
    pub grace: Duration,
}

/// `[redis]`
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// Where.
    pub url: Secret,
    /// How long an answer may take.
    pub deadline: Duration,
}

/// `[amqp]`
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// Where.
    pub url: Secret,
    /// The management plugin.
    pub management_url: Secret,
}

/// `[orders]`
#[derive(Debug, Clone)]
pub struct OrdersConfig {
    /// Orders in one transaction, at the most.
    pub batch_max: usize,
    /// Write queues.
    pub shards: u16,
    /// Messages under way in one queue.
    pub prefetch: u16,
    /// Transactions at once.
    pub writers: usize,
    /// How long a batch waits for more.
    pub linger: Duration,
}

/// `[outbox]`
#[derive(Debug, Clone)]
pub struct OutboxConfig {
    /// How often is looked without a bell.
    pub poll: Duration,
    /// Rows in one transaction.
    pub batch_max: u32,
    /// How long published rows are kept.
    pub keep: Duration,
}

/// `[timeout]`
#[derive(Debug, Clone)]
pub struct TimeoutConfig {
    /// Deadlines taken at once.
    pub claim_max: u32,
    /// For how long they are taken.
    pub lease: Duration,
    /// How often the books are searched.
    pub sweep: Duration,
}

/// `[api]`
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Address of the back office.
    pub listen: SocketAddr,
    /// Bearer token of an administrator.
    pub admin_token: Secret,
    /// Signs the JWTs of the back office's users.
    pub admin_jwt_secret: Secret,
    /// Signs payment notices.
    pub payment_secret: Secret,
    /// What edges prove themselves with.
    pub edge_secret: Secret,
    /// How long a step of a sale waits for the edges.
    pub edge_wait: Duration,
    /// The program that makes audits; empty: this one.
    pub audit_program: String,
}

/// `[reconcile]`
#[derive(Debug, Clone)]
pub struct ReconcileConfig {
    /// The right to sell that the warden renews.
    pub lease: Duration,
    /// The leading warden's own lease.
    pub leader: Duration,
    /// How often it looks.
    pub tick: Duration,
    /// After what silence an edge is struck off, if ever.
    pub strike_after: Option<Duration>,
    /// How long after its end a sale closes by itself, if ever.
    pub close_after: Option<Duration>,
    /// How often it compares Redis with the books.
    pub reconcile: Duration,
}

impl Config {
    /// Reads the defaults, a file and the environment for these roles.
    pub fn load(file: Option<&Path>, roles: &[Role]) -> Result<Self, Problems> {
        Self::read(Settings::load(DEFAULTS, file), roles)
    }

    /// The same from settings that are merged already.
    pub fn read(mut s: Settings, roles: &[Role]) -> Result<Self, Problems> {
        let config = Self {
            name: name(&mut s),
            redis: redis(&mut s),
            amqp: AmqpConfig {
                url: url(&mut s, "amqp.url", &["amqp://", "amqps://"]),
                management_url: url(&mut s, "amqp.management_url", &["http://", "https://"]),
            },
            database: database(&mut s),
            orders: OrdersConfig {
                batch_max: usize::try_from(s.integer("orders.batch_max", 1..=1024)).unwrap_or(1),
                shards: small(s.integer("orders.shards", 1..=64)),
                prefetch: small(s.integer("orders.prefetch", 1..=10_000)),
                writers: usize::from(small(s.integer("orders.writers", 1..=64))),
                linger: s.millis("orders.linger_ms", 0..=500),
            },
            outbox: OutboxConfig {
                poll: s.millis("outbox.poll_ms", 50..=60_000),
                batch_max: u32::from(small(s.integer("outbox.batch_max", 1..=1000))),
                keep: s.seconds("outbox.keep_seconds", 60..=31_536_000),
            },
            saga_prefetch: small(s.integer("saga.prefetch", 2..=10_000)),
            timeout: TimeoutConfig {
                claim_max: u32::from(small(s.integer("timeout.claim_max", 1..=5000))),
                lease: s.millis("timeout.lease_ms", 1000..=600_000),
                sweep: s.millis("timeout.sweep_ms", 50..=60_000),
            },
            api: api(&mut s, roles.contains(&Role::Api)),
            reconcile: ReconcileConfig {
                lease: s.millis("reconcile.lease_ms", 500..=60_000),
                leader: s.millis("reconcile.leader_ms", 200..=60_000),
                tick: s.millis("reconcile.tick_ms", 10..=10_000),
                strike_after: Some(s.seconds("reconcile.strike_after_seconds", 0..=86_400))
                    .filter(|after| !after.is_zero()),
                close_after: Some(s.seconds("reconcile.close_after_seconds", 0..=31_536_000))
                    .filter(|after| !after.is_zero()),
                reconcile: s.millis("reconcile.reconcile_ms", 100..=600_000),
            },
            status: status(&mut s),
            grace: s.seconds("shutdown.grace_seconds", 1..=600),
        };
        s.finish()?;
        Ok(config)
    }
}

/// All settings of this kind have an upper bound that fits.
fn small(n: u64) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn name(s: &mut Settings) -> String {
    let name = s.text("name");
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(word) {
        s.problem("name", "must match ^[A-Za-z0-9_.-]{1,64}$");
    }
    name
}

fn url(s: &mut Settings, key: &str, schemes: &[&str]) -> Secret {
    let url = s.text(key);
    if !schemes.iter().any(|scheme| url.starts_with(scheme) && url.len() > scheme.len()) {
        s.problem(key, &format!("must be a URL that begins with {}", schemes.join(" or ")));
    }
    Secret::new(url)
}

fn redis(s: &mut Settings) -> RedisConfig {
    let url = s.text("redis.url");
    if let Err(fault) = Redis::check_url(&url) {
        s.problem("redis.url", &fault.to_string());
    }
    RedisConfig { url: Secret::new(url), deadline: s.millis("redis.deadline_ms", 10..=60_000) }
}

fn database(s: &mut Settings) -> DatabaseConfig {
    let config = DatabaseConfig {
        url: url(s, "database.url", &["postgres://", "postgresql://"]),
        max_connections: u32::from(small(s.integer("database.max_connections", 4..=1000))),
        min_connections: u32::from(small(s.integer("database.min_connections", 0..=1000))),
        connect_timeout: s.millis("database.connect_timeout_ms", 100..=60_000),
        statement_timeout: s.millis("database.statement_timeout_ms", 100..=600_000),
        lock_timeout: s.millis("database.lock_timeout_ms", 100..=600_000),
        idle_in_transaction: s.millis("database.idle_in_transaction_ms", 1000..=600_000),
    };
    if config.min_connections > config.max_connections {
        s.problem("database.min_connections", "must not be more than max_connections");
    }
    config
}

fn api(s: &mut Settings, used: bool) -> ApiConfig {
    // A process that does not serve the back office need not know its secrets.
    let secret = |s: &mut Settings, key: &str| if used { s.secret(key) } else { Secret::new(s.text(key)) };
    let listen = s.parsed("api.listen", "must be an address such as 127.0.0.1:8091");
    ApiConfig {
        listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
        admin_token: secret(s, "api.admin_token"),
        admin_jwt_secret: secret(s, "api.admin_jwt_secret"),
        payment_secret: secret(s, "api.payment_secret"),
        edge_secret: secret(s, "api.edge_secret"),
        edge_wait: s.millis("api.edge_wait_ms", 0..=60_000),
        audit_program: s.text("api.audit_program").to_owned(),
    }
}

fn status(s: &mut Settings) -> Option<SocketAddr> {
    if s.text("status.listen").is_empty() {
        return None;
    }
    s.parsed("status.listen", "must be empty or an address such as 127.0.0.1:8092")
}
