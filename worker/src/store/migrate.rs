//! The schema, brought to this version beside workers that go on writing.
//!
//! A migration that changes a table needs it for a moment: whoever comes behind it would wait as long as it
//! waits, so it gives up soon and tries again. One that takes long, an index, is a file of its own that begins
//! with `-- no-transaction` and is built concurrently: it holds nobody up, and may take all the time it needs.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{Store, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// How long a migration waits for a lock, and how long others may go first before it tries again.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '1s'";
const PAUSE: Duration = Duration::from_millis(500);
/// How long all of it may wait for locks, and for another process that migrates.
const PATIENCE: Duration = Duration::from_secs(600);
/// Whoever migrates holds it: an ordinary number, the same in every process.
const LOCK: &str = "SELECT pg_try_advisory_lock(7269)";

impl Store {
    /// Brings the schema to this version, on a connection of its own whose statements may take their time.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        // Closed afterwards, with its settings and the lock.
        let mut connection = self.pool.acquire().await?.detach();
        let connection = &mut connection;
        run(connection, "SET statement_timeout = 0").await?;
        // Else each step is told that the table of migrations is there already.
        run(connection, "SET client_min_messages = warning").await?;
        run(connection, "SET idle_in_transaction_session_timeout = 0").await?;
        let end = Instant::now() + PATIENCE;
        // Asked again and again: whoever waited for it in the database would be waited for by a concurrent index.
        while !sqlx::query_scalar::<_, bool>(LOCK).fetch_one(&mut *connection).await? {
            pause(end, "another process migrates").await?;
        }
        let migrator = Migrator {
            migrations: Cow::Borrowed(MIGRATIONS.migrations.as_ref()),
            locking: false,
            ..Migrator::DEFAULT
        };
        for migration in migrator.iter() {
            while let Err(error) = step(connection, &migrator, migration).await {
                if !error.is_locked() {
                    return Err(error);
                }
                pause(end, "a table is locked").await?;
            }
        }
        Ok(())
    }
}

async fn pause(end: Instant, why: &str) -> Result<(), StoreError> {
    if Instant::now() >= end {
        return Err(StoreError::Away(format!("{why}, and that for {} s", PATIENCE.as_secs())));
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

async fn run(connection: &mut PgConnection, text: &'static str) -> Result<(), StoreError> {
    sqlx::query(text).execute(connection).await?;
    Ok(())
}

/// One migration, where it has not been run.
async fn step(
    connection: &mut PgConnection,
    migrator: &Migrator,
    migration: &Migration,
) -> Result<(), StoreError> {
    if migration.no_tx {
        // It waits for transactions older than itself, and nobody waits for it.
        run(connection, "SET lock_timeout = 0").await?;
        drop_half(connection, migration).await?;
    } else {
        run(connection, LOCK_TIMEOUT).await?;
    }
    // What `run_to` does, which cannot be spawned.
    migrator.run_direct(Some(migration.version), connection, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        error => StoreError::Broken(error.to_string()),
    })
}

/// What a concurrent index leaves behind when it is interrupted is no index, and has its name.
async fn drop_half(connection: &mut PgConnection, migration: &Migration) -> Result<(), StoreError> {
    let halves: Vec<String> = sqlx::query_scalar(
        "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
         WHERE NOT indisvalid AND relnamespace = current_schema()::regnamespace",
    )
    .fetch_all(&mut *connection)
    .await?;
    for half in halves.into_iter().filter(|half| migration.sql.as_str().contains(half)) {
        tracing::warn!(index = half, "an index that was left half built is dropped");
        sqlx::query(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY IF EXISTS {half}")))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
