//! The schema is brought up to date beside workers that go on writing.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sluice_testkit::{eventually, required};
use sluice_worker::store::Store;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};

use crate::harness::database::config_of;

/// A database with the schema of an older version.
struct Old {
    url: String,
    pool: PgPool,
    name: String,
}

impl Old {
    async fn at(version: i64) -> Self {
        let name = format!("sluice_t_{}", uuid::Uuid::now_v7().simple());
        let server = PgConnectOptions::from_str(&required("SLUICE_TEST_DATABASE_URL")).unwrap();
        admin(format!("CREATE DATABASE {name}")).await;
        let url = server.database(&name).to_url_lossy().to_string();
        let pool = PgPoolOptions::new().max_connections(4).connect(&url).await.unwrap();
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations"));
        Migrator::new(folder).await.unwrap().run_to(version, &pool).await.unwrap();
        Self { url, pool, name }
    }

    /// Payments, so many that an index of them takes a while.
    async fn fill(&self, payments: i32) {
        sqlx::query(
            "INSERT INTO payments (payment_id, order_id, amount, currency, state)
             SELECT 'p' || n, md5(n::text) || '-1-0', 1, 'EUR', 'captured' FROM generate_series(1, $1) n",
        )
        .bind(payments)
        .execute(&self.pool)
        .await
        .unwrap();
    }

    async fn pay(&self, payment: &str) -> bool {
        let insert = sqlx::query(
            "INSERT INTO payments (payment_id, order_id, amount, currency, state)
             VALUES ($1, 'o-1-0', 1, 'EUR', 'captured')",
        );
        tokio::time::timeout(Duration::from_secs(2), insert.bind(payment).execute(&self.pool))
            .await
            .is_ok_and(|inserted| inserted.is_ok())
    }

    async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    async fn drop(self) {
        self.pool.close().await;
        admin(format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

async fn admin(text: String) {
    let server = PgConnectOptions::from_str(&required("SLUICE_TEST_DATABASE_URL")).unwrap();
    let mut admin = server.connect().await.unwrap();
    sqlx::query(AssertSqlSafe(text)).execute(&mut admin).await.unwrap();
}

const VALID: &str = "SELECT count(*) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indisvalid AND relname IN ('payments_of_a_sale', 'orders_by_state', 'outbox_by_time')";

#[tokio::test]
async fn an_index_of_a_large_table_is_built_beside_those_who_write_to_it() {
    let old = Old::at(5).await;
    old.fill(200_000).await;
    // A statement of a worker may take no longer than this; a transaction that has written is open.
    let mut config = config_of(&old.url);
    config.statement_timeout = Duration::from_millis(100);
    let mut open = old.pool.begin().await.unwrap();
    sqlx::query("UPDATE payments SET amount = 2 WHERE payment_id = 'p1'").execute(&mut *open).await.unwrap();
    let migrating = tokio::spawn(async move {
        let store = Store::connect(&config).await.unwrap();
        // Two processes may migrate at once.
        let (one, two) = tokio::join!(store.migrate(), store.migrate());
        one.and(two)
    });
    eventually("it waits for the open transaction", Duration::from_secs(20), || async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND wait_event_type = 'Lock' AND query LIKE '%payments_of_a_sale%'";
        old.count(waits).await == 1
    })
    .await;
    for n in 0..20 {
        assert!(old.pay(&format!("new-{n}")).await, "a payment waits for the migration");
    }
    open.commit().await.unwrap();
    migrating.await.unwrap().unwrap();
    assert_eq!(old.count(VALID).await, 3);
    old.drop().await;
}

#[tokio::test]
async fn an_index_that_was_left_half_built_is_built_anew() {
    let old = Old::at(5).await;
    old.fill(10).await;
    // What an interrupted run leaves behind: the name, and no index. Two rows cannot be unique in this.
    let half = "CREATE UNIQUE INDEX CONCURRENTLY payments_of_a_sale ON payments (amount)";
    sqlx::raw_sql(half).execute(&old.pool).await.unwrap_err();
    assert_eq!(old.count("SELECT count(*) FROM pg_index WHERE NOT indisvalid").await, 1);
    let store = Store::connect(&config_of(&old.url)).await.unwrap();
    store.migrate().await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(old.count(VALID).await, 3);
    assert_eq!(old.count("SELECT count(*) FROM pg_index WHERE NOT indisvalid").await, 0);
    old.drop().await;
}

#[tokio::test]
async fn a_table_that_is_locked_for_long_is_waited_for_a_little_at_a_time() {
    let old = Old::at(1).await;
    // Whoever writes to the table for long holds up a change of it, and it nobody else.
    let mut open = old.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE segments IN ROW EXCLUSIVE MODE").execute(&mut *open).await.unwrap();
    let config = config_of(&old.url);
    let migrating = tokio::spawn(async move { Store::connect(&config).await.unwrap().migrate().await });
    eventually("the change waits", Duration::from_secs(10), || async {
        old.count("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'").await
            > 0
    })
    .await;
    let read = sqlx::query("SELECT count(*) FROM segments").execute(&old.pool);
    tokio::time::timeout(Duration::from_secs(4), read).await.expect("readers wait with it").unwrap();
    assert!(!migrating.is_finished());
    open.rollback().await.unwrap();
    migrating.await.unwrap().unwrap();
    assert_eq!(old.count(VALID).await, 3);
    old.drop().await;
}
