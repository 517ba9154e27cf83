//! PostgreSQL: the truth. Nothing outside this folder names sqlx.

pub mod audit_log;
pub mod barriers;
pub mod books;
pub mod claims;
pub mod ledger;
pub mod look_up;
mod migrate;
pub mod orders;
pub mod outbox;
pub mod parked;
pub mod payments;
pub mod register;
pub mod saga;
pub mod sales;
pub mod search;
pub mod segments;
mod stamp;
pub mod stock_changes;

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;

use sluice_shared::clock::Millis;

use sluice_shared::config::Secret;

/// `[database]`: where PostgreSQL is, and how long anything there may take.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Where.
    pub url: Secret,
    /// Connections at the most.
    pub max_connections: u32,
    /// Connections kept open.
    pub min_connections: u32,
    /// How long waiting for a connection may take.
    pub connect_timeout: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
    /// How long waiting for a lock may take.
    pub lock_timeout: Duration,
    /// How long a transaction may do nothing.
    pub idle_in_transaction: Duration,
}

/// Why the books could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL is away, or was in the way of others (timeout, serialisation, deadlock): nothing is
    /// wrong with what was asked, and asking again may succeed. Whether it was done is unknown.
    #[error("postgresql is away: {0}")]
    Away(String),
    /// What was asked cannot be done: the data does not fit, or there is a bug.
    #[error("postgresql: {0}")]
    Broken(String),
}

/// Classes of SQLSTATE that blame the data: data exception, integrity constraint, raised by a trigger.
/// All others (resources, operator, missing table before a migration, …) may pass.
const DATA_CLASSES: [&str; 3] = ["22", "23", "P0"];

/// Waiting for a lock took longer than its time-out.
const LOCK_NOT_AVAILABLE: &str = "(55P03)";
/// Begins a transaction that does something for many: they do not wait long for a lock that one of them needs.
/// Whoever waits for it does so alone afterwards, within the session's own time-out.
const GROUP: &str = "BEGIN; SET LOCAL lock_timeout = '2s'";

/// What is done about rows that somebody else has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locked {
    /// They are waited for.
    Await,
    /// They are left out.
    Skip,
}

impl StoreError {
    /// Whether what was asked is to blame, so that others may succeed.
    pub fn is_of_data(&self) -> bool {
        matches!(self, Self::Broken(_))
    }

    /// Whether somebody else held a lock for too long.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Away(why) if why.ends_with(LOCK_NOT_AVAILABLE))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match error {
            sqlx::Error::Database(inner) => {
                let code = inner.code().unwrap_or_default();
                if DATA_CLASSES.iter().any(|class| code.starts_with(class)) {
                    Self::Broken(format!("{text} ({code})"))
                } else {
                    Self::Away(format!("{text} ({code})"))
                }
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Away(text),
            _ => Self::Broken(text),
        }
    }
}

/// A pool of connections to the books.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) pool: PgPool,
    /// How long one piece of work may take, see [`Self::bounded`].
    patience: Duration,
    ringer: outbox::Ringer,
}

/// Statements that a piece of work waits for, one after another, at the most as long as each may take.
const STATEMENTS: u32 = 3;

impl Store {
    /// A pool that connects when it is used: a process starts, and waits, without PostgreSQL.
    pub fn lazy(config: &DatabaseConfig) -> Result<Self, StoreError> {
        Ok(Self::over(pool(config).connect_lazy_with(options(config)?), config))
    }

    /// A pool that is connected.
    pub async fn connect(config: &DatabaseConfig) -> Result<Self, StoreError> {
        Ok(Self::over(pool(config).connect_with(options(config)?).await?, config))
    }

    fn over(pool: PgPool, config: &DatabaseConfig) -> Self {
        let patience = config.connect_timeout + config.statement_timeout * STATEMENTS;
        Self { ringer: outbox::Ringer::start(pool.clone()), pool, patience }
    }

    /// Waits for a piece of work, and no longer than its statements may take. The server ends a statement
    /// that takes too long; a server whose machine is gone without a word ends nothing, and the client
    /// library would wait for it for ever.
    ///
    /// # Errors
    /// [`StoreError::Away`] when it takes longer: whether it was done is unknown.
    pub async fn bounded<T, E: From<StoreError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let late = || StoreError::Away(format!("no answer within {} s", self.patience.as_secs()));
        tokio::time::timeout(self.patience, work).await.unwrap_or_else(|_| Err(late().into()))
    }

    async fn begin(&self, locked: Locked) -> Result<Transaction<'static, Postgres>, StoreError> {
        Ok(match locked {
            Locked::Await => self.pool.begin().await?,
            Locked::Skip => self.pool.begin_with(GROUP).await?,
        })
    }

    /// PostgreSQL's clock.
    pub async fn now(&self) -> Result<Millis, StoreError> {
        let now: OffsetDateTime = sqlx::query_scalar("SELECT now()").fetch_one(&self.pool).await?;
        Ok(millis(now))
    }

    /// Connections in use and open, for the pool's metric.
    pub fn connections(&self) -> (u32, u32) {
        let open = self.pool.size();
        (open.saturating_sub(u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX)), open)
    }

    /// Closes every connection, after what is under way.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn pool(config: &DatabaseConfig) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(config.max_connections)
        .min_connections(config.min_connections)
        .acquire_timeout(config.connect_timeout)
        .max_lifetime(Duration::from_secs(1800))
}

fn options(config: &DatabaseConfig) -> Result<PgConnectOptions, StoreError> {
    let ms = |span: Duration| span.as_millis().to_string();
    let options = PgConnectOptions::from_str(config.url.reveal())?;
    Ok(options.application_name("sluice-worker").options([
        ("statement_timeout", ms(config.statement_timeout)),
        ("lock_timeout", ms(config.lock_timeout)),
        ("idle_in_transaction_session_timeout", ms(config.idle_in_transaction)),
        // An order is acknowledged to the broker by the commit: the commit must be durable.
        ("synchronous_commit", "on".to_owned()),
        // Statements of milliseconds are not worth compiling, whatever stale statistics promise.
        ("jit", "off".to_owned()),
        // Tables grow from nothing to a sale within a minute: a plan that is kept from its beginning
        // reads all of them until they are next analysed.
        ("plan_cache_mode", "force_custom_plan".to_owned()),
        ("timezone", "UTC".to_owned()),
    ]))
}

/// A row's time, for the outside.
pub(crate) fn millis(at: OffsetDateTime) -> Millis {
    Millis(i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(i64::MAX))
}

/// A time for a row; `None` when no calendar has it.
pub(crate) fn moment(at: Millis) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000).ok()
}

fn id<T, E: std::fmt::Display>(parsed: Result<T, E>) -> Result<T, StoreError> {
    parsed.map_err(|error| StoreError::Broken(error.to_string()))
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
