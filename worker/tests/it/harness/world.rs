//! A sale in the books, in RabbitMQ and on the shelf, and roles that run on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_shared::clock::Millis;
use sluice_shared::config::Settings;
use sluice_shared::ids::{InstanceId, OrderId, SaleId, SkuId, UserId};
use sluice_shared::keys::Segment;
use sluice_shared::lines::Lines;
use sluice_shared::message::{Accepted, OrderEvents, VERSION};
use sluice_shared::record::Record;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::sale::SaleStep;
use sluice_shared::script::{Answer, Ask, Preload, Reserved, SegmentScripts, WardenScripts};
use sluice_testkit::PrivateRedis;
use sluice_worker::config::Role;
use sluice_worker::config::{Config, DEFAULTS};
use sluice_worker::process::{Context, Stop};
use sluice_worker::store::audit_log::Actor;
use sluice_worker::store::ledger::{LineText, micros};
use sluice_worker::store::orders::{OrderRow, Refunded};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::broker::SHARDS;
use super::{TestDatabase, Vhost};

static SEQ: AtomicU64 = AtomicU64::new(1);

pub fn sku(text: &str) -> SkuId {
    SkuId::parse(text).unwrap()
}

pub fn user(text: &str) -> UserId {
    UserId::parse(text).unwrap()
}

/// An accepted order of sale `demo`, epoch 1, as an edge tells it.
pub fn accepted(who: &str, lines: &str) -> Accepted {
    accepted_of("demo", 1, who, lines)
}

pub fn accepted_of(sale: &str, number: u32, who: &str, lines: &str) -> Accepted {
    Accepted {
        v: VERSION,
        order: OrderId::mint(number, 0),
        sale: SaleId::parse(sale).unwrap(),
        epoch: 1,
        seq: SEQ.fetch_add(1, Ordering::Relaxed),
        user: user(who),
        lines: Lines::parse(lines).unwrap(),
        at: Millis::now(),
    }
}

/// Events of outbox payloads.
pub fn events(payloads: &[String]) -> Vec<sluice_shared::message::OrderEvent> {
    payloads.iter().flat_map(|text| serde_json::from_str::<OrderEvents>(text).unwrap().events).collect()
}

/// Puts a sale into the books: open, one segment, epoch 1.
pub async fn insert_sale(db: &TestDatabase, sale: &str, items: &[(&str, i64)]) -> u32 {
    let number: i32 = sqlx::query_scalar(
        "INSERT INTO sales (sale, step, starts_at, ends_at, mode, accept_after, pay_within_seconds, segments)
         VALUES ($1, 'open', now() - interval '1 hour', now() + interval '1 hour', 'queued', 'journal',
                 900, 1) RETURNING number",
    )
    .bind(sale)
    .fetch_one(&db.pool)
    .await
    .unwrap();
    for (place, (sku, stock)) in items.iter().enumerate() {
        sqlx::query(
            "INSERT INTO offers (sale, sku, place, title, price, currency, stock, per_user)
             VALUES ($1, $2, $3, $2, 1500, 'EUR', $4, 100)",
        )
        .bind(sale)
        .bind(sku)
        .bind(i16::try_from(place).unwrap())
        .bind(stock)
        .execute(&db.pool)
        .await
        .unwrap();
    }
    sqlx::query("INSERT INTO segments (sale, segment) VALUES ($1, 0)")
        .bind(sale)
        .execute(&db.pool)
        .await
        .unwrap();
    u32::try_from(number).unwrap()
}

/// An operator refunds an order.
pub async fn refund(db: &TestDatabase, order: &OrderId, restock: bool) -> OrderRow {
    let actor = Actor { who: "test".into(), role: "admin", request_id: "r".into() };
    match db.store.refund_by(&actor, order, restock, "late").await.unwrap() {
        Refunded::Done(row) => row,
        other => panic!("{other:?}"),
    }
}

/// Walks every chain of the ledger: lines without gaps, hashes that follow, heads and counters that
/// agree with them; each order taken once, and released once at the most.
pub async fn verify_ledger(db: &TestDatabase) {
    type Row = (String, String, i64, String, String, i64, time::OffsetDateTime, Vec<u8>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT sale, sku, line, kind, coalesce(order_id, change, ''), quantity, at, hash
         FROM ledger ORDER BY sale, sku, line",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    let mut heads: BTreeMap<(String, String), (i64, Vec<u8>, i64)> = BTreeMap::new();
    for (sale, sku, line, kind, about, quantity, at, hash) in rows {
        let head = heads.entry((sale.clone(), sku.clone())).or_default();
        assert_eq!(line, head.0 + 1, "{sale}/{sku}");
        let (kind_word, at_micros) = (kind.as_str(), micros(at));
        let (sale, sku, about) = (sale.as_str(), sku.as_str(), about.as_str());
        let text = LineText { sale, sku, line, kind: kind_word, about, quantity, at_micros };
        assert_eq!(hash, text.hash(&head.1), "{sale}/{sku} line {line}");
        let taken = match kind.as_str() {
            "take" => quantity,
            "release" => -quantity,
            _ => 0,
        };
        *head = (line, hash, head.2 + taken);
    }
    let offers: Vec<(String, String, i64, i64, Vec<u8>)> =
        sqlx::query_as("SELECT sale, sku, taken, ledger_line, ledger_hash FROM offers")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    for (sale, sku, taken, line, hash) in offers {
        let head = heads.remove(&(sale.clone(), sku.clone())).unwrap_or_default();
        assert_eq!((line, hash, taken), head, "{sale}/{sku}");
    }
    let sums = db
        .count(
            "SELECT count(*) FROM orders o WHERE
                   (SELECT count(DISTINCT kind) FROM ledger l WHERE l.order_id = o.id AND kind = 'take') <> 1
                OR (SELECT count(DISTINCT kind) FROM ledger l WHERE l.order_id = o.id AND kind = 'release')
                   <> CASE WHEN live THEN 0 ELSE 1 END",
        )
        .await;
    assert_eq!(sums, 0, "orders whose lines do not fit their state");
}

/// Roles that run until they are dropped.
pub struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// As SIGTERM: waits until the role has ended.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap().unwrap();
    }
}

/// Sale `demo` with its books, its queues and its shelf.
pub struct World {
    pub db: TestDatabase,
    pub broker: Vhost,
    pub server: PrivateRedis,
    pub redis: Redis,
    pub context: Context,
    pub segment: Segment,
    pub scripts: SegmentScripts,
}

pub fn edge() -> InstanceId {
    InstanceId::parse("edge.1.test").unwrap()
}

impl World {
    pub async fn new(items: &[(&str, i64)]) -> Self {
        Self::over(TestDatabase::new().await, items).await
    }

    /// The same, with these books.
    pub async fn over(db: TestDatabase, items: &[(&str, i64)]) -> Self {
        insert_sale(&db, "demo", items).await;
        let broker = Vhost::new().await;
        let server = PrivateRedis::start();
        let redis = server.connect();
        let segment = Segment::new(SaleId::parse("demo").unwrap(), 0);
        let scripts = SegmentScripts::new(segment.clone(), 1);
        shelve(&redis, &scripts, items).await;
        let context = context(&db.url, &broker.url, &server.url());
        Self { db, broker, server, redis, context, segment, scripts }
    }

    /// Where PostgreSQL, RabbitMQ and Redis are.
    pub fn urls(&self) -> [String; 3] {
        [self.db.url.clone(), self.broker.url.clone(), self.server.url()]
    }

    /// Another process with the same settings.
    pub fn process(&self) -> Context {
        context(&self.db.url, &self.broker.url, &self.server.url())
    }

    pub fn run(&self, role: Role) -> Running {
        self.run_in(self.context.clone(), role)
    }

    pub fn run_in(&self, context: Context, role: Role) -> Running {
        let (stop, stopped) = watch::channel(false);
        Running { stop, task: tokio::spawn(run(role, context, stopped)) }
    }

    /// Takes units as the gate does; the message that its edge would publish.
    pub async fn reserve(&self, who: &str, lines: &str) -> Accepted {
        let order = OrderId::mint(1, 0);
        let ask =
            Ask { uuid: order.uuid, user: user(who), lines: Lines::parse(lines).unwrap(), expired: false };
        let answers = match self.scripts.reserve(&self.redis, &edge(), &[ask]).await.unwrap() {
            Reserved::Answers(answers) => answers,
            other => panic!("{other:?}"),
        };
        assert!(matches!(answers.answers[0], Answer::Ok { .. }), "{:?}", answers.answers);
        Accepted::of(&self.segment, 1, order.uuid, &self.record(&order).await.unwrap())
    }

    /// An order that is reserved and written.
    pub async fn bought(&self, who: &str, lines: &str) -> Accepted {
        let order = self.reserve(who, lines).await;
        let report = self.db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
        assert_eq!(report.written, 1);
        order
    }

    pub async fn record(&self, order: &OrderId) -> Option<Record> {
        let get = cmd("HGET").arg(self.segment.orders()).arg(order.field()).to_owned();
        let text: Option<String> = self.redis.run("test", &get).await.unwrap();
        text.map(|text| Record::parse(&text).unwrap())
    }

    pub async fn left(&self, sku: &str) -> i64 {
        let get = cmd("HGET").arg(self.segment.stock()).arg(sku).to_owned();
        self.redis.run("test", &get).await.unwrap()
    }

    pub async fn state(&self, order: &OrderId) -> String {
        self.db.store.order(order).await.unwrap().map_or_else(|| "-".into(), |row| row.state.as_str().into())
    }
}

async fn run(role: Role, context: Context, stop: Stop) -> anyhow::Result<()> {
    use sluice_worker::role as r;
    match role {
        Role::Orders => r::orders::run(context, stop).await,
        Role::Outbox => r::outbox::run(context, stop).await,
        Role::Saga => r::saga::run(context, stop).await,
        Role::Timeout => r::timeout::run(context, stop).await,
        Role::Api | Role::Reconcile => anyhow::bail!("not one of these tests'"),
    }
}

pub fn context(database: &str, amqp: &str, redis: &str) -> Context {
    let file = format!(
        "[database]\nurl = \"{database}\"\nmin_connections = 0\n[amqp]\nurl = \"{amqp}\"\n\
         [redis]\nurl = \"{redis}\"\n[orders]\nshards = {SHARDS}\n[outbox]\npoll_ms = 1000\n"
    );
    let config = Config::read(Settings::merge(DEFAULTS, Some(&file), []), &[]).unwrap();
    Context::new(config).unwrap()
}

/// Puts the segment on the shelf as a warden does.
pub async fn shelve(redis: &Redis, scripts: &SegmentScripts, items: &[(&str, i64)]) {
    let warden = Arc::new(WardenScripts::default());
    warden.load(redis).await.unwrap();
    let preload = Preload {
        epoch: scripts.epoch,
        step: SaleStep::Open,
        starts_at: Millis(0),
        ends_at: Millis(i64::MAX / 2),
        cfg: 1,
        journal_max: 100_000,
        items: items.iter().map(|(name, n)| (sku(name), u64::try_from(*n).unwrap(), 100)).collect(),
    };
    warden.preload(redis, &scripts.segment, &preload).await.unwrap();
    scripts.load(redis).await.unwrap();
    let span = Duration::from_secs(3600);
    warden.lease(redis, &scripts.segment, scripts.epoch, span, &[edge()], &[]).await.unwrap().unwrap();
}
