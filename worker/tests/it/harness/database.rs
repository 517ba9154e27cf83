//! A database of one test's own: copied from a template that is migrated once for each state of the
//! migrations, dropped with the test.

use std::str::FromStr;

use sha2::{Digest, Sha256};
use sluice_shared::config::{Secret, Settings};
use sluice_testkit::required;
use sluice_worker::config::{Config, DEFAULTS};
use sluice_worker::store::DatabaseConfig;
use sluice_worker::store::Store;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

/// A database, and a pool of the test's own to look into it.
pub struct TestDatabase {
    pub url: String,
    pub store: Store,
    pub pool: PgPool,
    /// What is dropped with it; nothing where the server is the test's own.
    name: Option<String>,
}

fn server() -> PgConnectOptions {
    PgConnectOptions::from_str(&required("SLUICE_TEST_DATABASE_URL")).expect("SLUICE_TEST_DATABASE_URL")
}

fn url_of(name: &str) -> String {
    server().database(name).to_url_lossy().to_string()
}

/// The settings that processes have, for another database.
pub fn config_of(url: &str) -> DatabaseConfig {
    let config = Config::read(Settings::merge(DEFAULTS, None, []), &[]).expect("the defaults");
    DatabaseConfig { url: Secret::new(url), min_connections: 0, ..config.database }
}

/// The migrations' texts in short.
fn fingerprint() -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let all = files.iter().fold(Sha256::new(), |all, file| all.chain_update(std::fs::read(file).unwrap()));
    hex::encode(&all.finalize()[..6])
}

async fn template(admin: &mut PgConnection) -> String {
    let name = format!("sluice_it_{}", fingerprint());
    // Tests are processes of their own: the first makes it, the others wait.
    sqlx::query("SELECT pg_advisory_lock(7270)").execute(&mut *admin).await.unwrap();
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)")
        .bind(&name)
        .fetch_one(&mut *admin)
        .await
        .unwrap();
    if !there {
        let draft = format!("{name}_draft");
        run(admin, format!("DROP DATABASE IF EXISTS {draft} WITH (FORCE)")).await;
        run(admin, format!("CREATE DATABASE {draft}")).await;
        let store = Store::connect(&config_of(&url_of(&draft))).await.unwrap();
        store.migrate().await.unwrap();
        store.close().await;
        run(admin, format!("ALTER DATABASE {draft} RENAME TO {name}")).await;
    }
    sqlx::query("SELECT pg_advisory_unlock(7270)").execute(&mut *admin).await.unwrap();
    name
}

async fn run(admin: &mut PgConnection, text: String) {
    sqlx::query(AssertSqlSafe(text)).execute(admin).await.unwrap();
}

impl TestDatabase {
    pub async fn new() -> Self {
        let mut admin = server().connect().await.expect("postgresql answers");
        let template = template(&mut admin).await;
        let name = format!("sluice_t_{}", uuid::Uuid::now_v7().simple());
        run(&mut admin, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
        admin.close().await.unwrap();
        let mut db = Self::whole(url_of(&name)).await;
        db.name = Some(name);
        db
    }

    /// A migrated database that nobody else uses.
    pub async fn whole(url: String) -> Self {
        let store = Store::connect(&config_of(&url)).await.unwrap();
        let pool = PgPoolOptions::new().max_connections(3).connect(&url).await.unwrap();
        Self { url, store, pool, name: None }
    }

    /// One number.
    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// One text a row.
    pub async fn texts(&self, sql: &'static str) -> Vec<String> {
        sqlx::query_scalar(sql).fetch_all(&self.pool).await.unwrap()
    }

    pub async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        // A runtime of its own: the test's may be the one that is being dropped.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut admin = server().connect().await.unwrap();
                run(&mut admin, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
            });
        });
        // What stays behind is a database of a test server.
        let _ = dropping.join();
    }
}
