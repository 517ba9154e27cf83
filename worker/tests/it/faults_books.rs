//! PostgreSQL and the way to it are in trouble: nothing is written twice, nothing is given up.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use sluice_shared::config::Settings;
use sluice_shared::message::Accepted;
use sluice_shared::redis::cmd;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::Trap;
use sluice_testkit::{ClockStep, eventually};
use sluice_worker::config::Role;
use sluice_worker::config::{Config, DEFAULTS};
use sluice_worker::process::Context;

use crate::harness::broker::SHARDS;
use crate::harness::world::verify_ledger;
use crate::harness::{PrivatePostgres, World, accepted};

const PATIENCE: Duration = Duration::from_secs(20);
const ROWS: &str = "SELECT count(*) FROM orders";
const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

fn some_orders(count: usize) -> Vec<Accepted> {
    (0..count).map(|n| accepted(&format!("u{n}"), "phone=1")).collect()
}

/// A writer that waits for a lock no longer than this, and takes few orders at once.
fn writer(urls: &[String; 3], lock_timeout_ms: u32) -> Context {
    let [database, amqp, redis] = urls;
    let file = format!(
        "[database]\nurl = \"{database}\"\nmin_connections = 0\nlock_timeout_ms = {lock_timeout_ms}\n\
         [amqp]\nurl = \"{amqp}\"\n[redis]\nurl = \"{redis}\"\n[orders]\nshards = {SHARDS}\nbatch_max = 50\n"
    );
    Context::new(Config::read(Settings::merge(DEFAULTS, Some(&file), []), &[]).unwrap()).unwrap()
}

/// A proxy before the server of a URL, and the URL that leads through it.
fn through_proxy(url: &str, protocol: Protocol) -> (Proxy, String) {
    let (login, place) = url.split_once('@').unwrap();
    let (server, rest) = place.split_once('/').unwrap();
    let proxy = Proxy::start(ANY, server.parse().unwrap(), protocol, 1).unwrap();
    let url = format!("{login}@{}/{rest}", proxy.address());
    (proxy, url)
}

/// How often the writer has tried again.
fn retries(context: &Context) -> u64 {
    let text = context.metrics.render(context.store.connections());
    let count = |(_, rest): (&str, &str)| rest.lines().next()?.parse().ok();
    text.split_once("job_retry_count_total{job=\"orders\"} ").and_then(count).unwrap_or(0)
}

/// Writes orders through a connection that is broken at each of these places, again and again; how
/// many were there already when they came once more.
async fn written_once(proxy: &Proxy, world: &World, urls: &[String; 3], traps: &[&str]) -> u64 {
    let context = writer(urls, 5_000);
    let role = world.run_in(context.clone(), Role::Orders);
    let mut orders = 0;
    for trap in traps.iter().cycle().take(6) {
        proxy.set(trap.parse::<Trap>().unwrap());
        world.broker.publish_orders(&some_orders(60)).await;
        orders += 60;
        eventually(trap, PATIENCE, async || proxy.has_sprung()).await;
        eventually("all have rows", PATIENCE, async || world.db.count(ROWS).await == orders).await;
    }
    role.stop().await;
    assert_eq!(world.db.count("SELECT taken FROM offers").await, orders);
    assert_eq!(world.db.count("SELECT count(*) FROM parked").await, 0);
    verify_ledger(&world.db).await;
    context.metrics.orders_so_far("repeated")
}

#[tokio::test]
async fn f55_a_commit_of_unknown_outcome_is_decided_by_the_redelivery() {
    let world = World::new(&[("phone", 10_000)]).await;
    let [database, amqp, redis] = world.urls();
    let (proxy, database) = through_proxy(&database, Protocol::Plain);
    // With the byte that ends the statement: without it, nothing is carried out.
    let traps = ["up cut text COMMIT\0", "up lose text COMMIT\0"];
    let repeated = written_once(&proxy, &world, &[database, amqp, redis], &traps).await;
    assert!(repeated > 0, "no commit was carried out whose answer was lost");
}

#[tokio::test]
async fn f56_a_lost_acknowledgement_brings_a_duplicate_that_changes_nothing() {
    let world = World::new(&[("phone", 10_000)]).await;
    let [database, amqp, redis] = world.urls();
    let (proxy, amqp) = through_proxy(&amqp, Protocol::Amqp);
    let repeated = written_once(&proxy, &world, &[database, amqp, redis], &["up lose frame ack"]).await;
    assert!(repeated > 0);
}

/// The server's process that waits for a lock, stopped: as if its machine were gone, it says nothing more,
/// not even that it has ended. Goes on when dropped.
struct Stopped(i32);

impl Stopped {
    async fn at_a_lock(world: &World) -> Self {
        let waiting = "SELECT pid FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let pid = async || sqlx::query_scalar(waiting).fetch_optional(&world.db.pool).await.unwrap();
        eventually("somebody waits", PATIENCE, async || pid().await.is_some()).await;
        let stopped = Self(pid().await.unwrap());
        stopped.signal("-STOP");
        stopped
    }

    fn signal(&self, signal: &str) {
        let done = std::process::Command::new("kill").args([signal, &self.0.to_string()]).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

#[tokio::test]
async fn f59_a_server_that_is_gone_without_a_word_is_given_up() {
    let world = World::new(&[("phone", 1_000)]).await;
    let mut context = writer(&world.urls(), 5_000);
    let mut config = (*context.config).clone();
    config.database.statement_timeout = Duration::from_millis(800);
    config.database.connect_timeout = Duration::from_millis(600);
    context = Context::new(config).unwrap();
    let role = world.run_in(context.clone(), Role::Orders);
    let mut lock = world.db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    world.broker.publish_orders(&some_orders(100)).await;
    let stopped = Stopped::at_a_lock(&world).await;
    lock.rollback().await.unwrap();
    eventually("the writer tries again", PATIENCE, async || retries(&context) >= 1).await;
    // Its machine would have taken its locks with it.
    drop(stopped);
    eventually("100 rows", PATIENCE, async || world.db.count(ROWS).await == 100).await;
    role.stop().await;
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn f60_a_locked_table_holds_up_the_writer_and_nobody_else() {
    let world = World::new(&[("phone", 1_000)]).await;
    let context = writer(&world.urls(), 200);
    let mut lock = world.db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let role = world.run_in(context.clone(), Role::Orders);
    world.broker.publish_orders(&some_orders(200)).await;
    eventually("the writer tries again and again", PATIENCE, async || retries(&context) >= 3).await;
    // The same pool answers everybody else.
    let asked = Instant::now();
    context.store.now().await.unwrap();
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    lock.rollback().await.unwrap();
    eventually("200 rows", PATIENCE, async || world.db.count(ROWS).await == 200).await;
    role.stop().await;
    verify_ledger(&world.db).await;
}

/// Makes PostgreSQL refuse three statements in a row with this SQLSTATE while orders are written.
async fn refused_with(state: &str) {
    let world = World::new(&[("phone", 1_000)]).await;
    // A sequence counts through rollbacks.
    let text = format!(
        "CREATE SEQUENCE refusals;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('refusals') <= 3 THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER refuse AFTER INSERT ON ledger FOR EACH STATEMENT EXECUTE FUNCTION refuse();"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&world.db.pool).await.unwrap();
    let role = world.run(Role::Orders);
    world.broker.publish_orders(&some_orders(100)).await;
    eventually("100 rows", PATIENCE, async || world.db.count(ROWS).await == 100).await;
    role.stop().await;
    assert!(world.db.count("SELECT last_value FROM refusals").await > 3);
    assert_eq!(world.db.count("SELECT count(*) FROM parked").await, 0);
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn f61_a_deadlock_or_a_serialization_failure_is_tried_again_with_the_same_orders() {
    refused_with("40P01").await;
    refused_with("40001").await;
}

#[tokio::test]
async fn f62_a_full_disk_of_the_books_keeps_orders_waiting() {
    let server = PrivatePostgres::start(&[]);
    let world = World::over(server.database().await, &[("phone", 10_000)]).await;
    let context = writer(&world.urls(), 5_000);
    let role = world.run_in(context.clone(), Role::Orders);
    world.broker.publish_orders(&some_orders(100)).await;
    eventually("100 rows", PATIENCE, async || world.db.count(ROWS).await == 100).await;
    server.fill_disk();
    let (mut orders, end) = (100, Instant::now() + PATIENCE);
    while !server.told().contains("No space left on device") {
        assert!(Instant::now() < end, "there is room for {orders} orders");
        world.broker.publish_orders(&some_orders(100)).await;
        orders += 100;
    }
    eventually("the writer tries again", PATIENCE, async || retries(&context) >= 3).await;
    server.clear_disk();
    let rows = async || sqlx::query_scalar::<_, i64>(ROWS).fetch_one(&world.db.pool).await.ok();
    eventually("all have rows", PATIENCE, async || rows().await == Some(orders)).await;
    role.stop().await;
    assert_eq!(world.db.count("SELECT taken FROM offers").await, orders);
    assert_eq!(world.db.count("SELECT count(*) FROM parked").await, 0);
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn f78_when_the_clock_of_the_books_jumps_orders_expire_early_or_late_and_once() {
    let clock = ClockStep::new();
    let server = PrivatePostgres::start(&clock.environment());
    let world = World::over(server.database().await, &[("phone", 100)]).await;
    let mut orders = Vec::new();
    for n in 0..20 {
        orders.push(world.bought(&format!("u{n}"), "phone=1").await);
    }
    // Half are overdue, but the clock goes back before anybody looks.
    world.db.run("UPDATE orders SET pay_before = now() - interval '1 second' WHERE seq % 2 = 0").await;
    let expired = "SELECT count(*) FROM orders WHERE state = 'expired'";
    clock.set(-3_600);
    let late = world.process();
    let role = world.run_in(late.clone(), Role::Timeout);
    let behind = late.store.now().await.unwrap().0 - world.redis.time().await.unwrap().0;
    assert!((-3_610_000..-3_590_000).contains(&behind), "{behind}");
    // Ten looks into the delay queue in a second, and one sweep beside them.
    let looks = async || {
        let stats: String = world.redis.run("test", cmd("INFO").arg("commandstats")).await.unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
        line.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    let before = looks().await;
    eventually("25 looks", PATIENCE, async || looks().await >= before + 25).await;
    assert_eq!(world.db.count(expired).await, 0);
    clock.set(0);
    eventually("the overdue expire", PATIENCE, async || world.db.count(expired).await == 10).await;
    clock.set(3_600);
    eventually("all expire", PATIENCE, async || world.db.count(expired).await == 20).await;
    role.stop().await;
    assert_eq!(world.db.count("SELECT count(*) FROM ledger WHERE kind = 'release'").await, 20);
    verify_ledger(&world.db).await;
}
