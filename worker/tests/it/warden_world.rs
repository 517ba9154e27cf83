//! A sale in the books, wardens that run on it, and edges that only send heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sluice_shared::clock::Millis;
use sluice_shared::config::Settings;
use sluice_shared::ids::{InstanceId, OrderId, SaleId, SkuId, UserId};
use sluice_shared::keys::{EDGES, REOPENING, SALES, Segment};
use sluice_shared::lines::Lines;
use sluice_shared::message::Accepted;
use sluice_shared::record::Record;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::sale::{AcceptAfter, Heartbeat, Question, SaleStep, SaleView};
use sluice_shared::script::{Answer, Ask, Reserved, SegmentScripts};
use sluice_testkit::{PrivateRedis, eventually};
use sluice_worker::config::Role;
use sluice_worker::config::{Config, DEFAULTS};
use sluice_worker::process::Context;
use sluice_worker::role;
use sluice_worker::store::audit_log::Actor;
use sluice_worker::store::sales::{OfferRow, SaleRow};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::broker::SHARDS;
use crate::harness::{TestDatabase, Vhost};

/// Long enough for a busy machine; conditions are met much sooner.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Place {
    pub db: TestDatabase,
    pub broker: Vhost,
    pub server: PrivateRedis,
    /// Where Redis is reached: the server's own address, or that of a proxy before it.
    pub url: String,
    pub redis: Redis,
    pub segment: Segment,
    pub number: u32,
}

/// A role that runs until it is stopped or killed.
pub struct Process {
    pub context: Context,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Process {
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        (&mut self.task).await.unwrap().unwrap();
    }

    /// As kill -9: nothing of it runs any more.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// What it counts, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        self.context.metrics.render(self.context.store.connections())
    }

    /// A number that it counts; 0 where it has counted nothing yet.
    pub fn counted(&self, metric: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.trim().parse().unwrap())
    }

    /// Waits until a task of a warden, `sales`, `edges` or `reconcile`, has made so many whole rounds from now on.
    pub async fn rounds(&self, task: &str, count: u32) {
        let metric = format!("sluice_warden_rounds_total{{task=\"{task}\"}}");
        // The round that is under way began before now.
        let until = self.counted(&metric) + f64::from(count + 1);
        eventually(&metric, PATIENCE, async || self.counted(&metric) >= until).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An edge that sends heartbeats, and closes epochs when it is asked and may.
pub struct Edge {
    pub instance: InstanceId,
    pub answers: Arc<AtomicBool>,
    pub draining: Arc<AtomicBool>,
    pub held: Arc<AtomicU64>,
    task: JoinHandle<()>,
    redis: Redis,
}

impl Edge {
    /// Its heartbeat stays behind.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// It says good-bye, as an edge that ends in order.
    pub async fn leave(self) {
        self.task.abort();
        let _ = self.task.await;
        let get = cmd("HGET").arg(EDGES).arg(self.instance.as_str()).to_owned();
        let text: String = self.redis.run("test", &get).await.unwrap();
        let last = Heartbeat { gone: true, ..serde_json::from_str(&text).unwrap() };
        let text = serde_json::to_string(&last).unwrap();
        let set = cmd("HSET").arg(EDGES).arg(self.instance.as_str()).arg(text).to_owned();
        self.redis.run::<u64>("test", &set).await.unwrap();
    }

    /// Its heartbeat is gone, and nobody said why.
    pub async fn vanish(self) {
        self.task.abort();
        let _ = self.task.await;
        let del = cmd("HDEL").arg(EDGES).arg(self.instance.as_str()).to_owned();
        self.redis.run::<u64>("test", &del).await.unwrap();
    }
}

fn connect(url: &str) -> Redis {
    Redis::lazy(url, Duration::from_secs(2)).unwrap()
}

pub fn sku(text: &str) -> SkuId {
    SkuId::parse(text).unwrap()
}

pub fn user(text: &str) -> UserId {
    UserId::parse(text).unwrap()
}

pub fn actor() -> Actor {
    Actor { who: "tests".to_owned(), role: "admin", request_id: "r".to_owned() }
}

impl Place {
    /// Sale `demo`, known to the back office only.
    pub async fn new(stock: u64) -> Self {
        Self::new_through(stock, PrivateRedis::url).await
    }

    /// The same, reaching Redis at another address.
    pub async fn new_through(stock: u64, through: impl FnOnce(&PrivateRedis) -> String) -> Self {
        let (db, broker, server) = (TestDatabase::new().await, Vhost::new().await, PrivateRedis::start());
        let url = through(&server);
        let redis = connect(&url);
        let segment = Segment::new(SaleId::parse("demo").unwrap(), 0);
        let mut place = Self { db, broker, server, url, redis, segment, number: 0 };
        place.number = place.make("demo", stock).await;
        place
    }

    /// A sale in the books; its number.
    pub async fn make(&self, sale: &str, stock: u64) -> u32 {
        let now = Millis::now();
        let item = OfferRow {
            sku: sku("phone"),
            title: "Phone".to_owned(),
            price: 1500,
            currency: "EUR".to_owned(),
            stock,
            taken: 0,
            per_user: 2,
        };
        let new = SaleRow {
            sale: SaleId::parse(sale).unwrap(),
            number: 0,
            step: SaleStep::Created,
            closed_from: None,
            starts_at: Millis(now.0 - 60_000),
            ends_at: Millis(now.0 + 3_600_000),
            mode: "queued".to_owned(),
            accept_after: AcceptAfter::Journal,
            pay_within_seconds: 900,
            segments: 1,
            cfg: 1,
            created_at: now,
            updated_at: now,
            items: vec![item],
        };
        self.db.store.create_sale(&new, &actor()).await.unwrap().unwrap().number
    }

    /// The same, open and served by a warden, with one edge registered; the orders role runs.
    pub async fn open(stock: u64) -> (Self, Process, Process, Edge) {
        Self::new(stock).await.opened().await
    }

    pub async fn opened(self) -> (Self, Process, Process, Edge) {
        let place = self;
        place.open_step().await;
        let (warden, orders) = (place.warden(""), place.orders());
        let edge = place.edge("a", "lock", 1);
        place.until_sells(&edge).await;
        (place, warden, orders, edge)
    }

    /// One sale more, of a higher number, which sells; from now on the place is about it.
    pub async fn open_another(&mut self, sale: &str, stock: u64, edge: &Edge) {
        self.number = self.make(sale, stock).await;
        self.segment = Segment::new(SaleId::parse(sale).unwrap(), 0);
        self.open_step().await;
        self.until_sells(edge).await;
    }

    async fn open_step(&self) {
        self.step(SaleStep::Preloaded).await;
        self.step(SaleStep::Open).await;
    }

    /// Where PostgreSQL, RabbitMQ and Redis are.
    pub fn urls(&self) -> [String; 3] {
        [self.db.url.clone(), self.broker.url.clone(), self.url.clone()]
    }

    pub async fn step(&self, to: SaleStep) {
        self.step_of(&self.segment.sale, to).await;
    }

    pub async fn step_of(&self, sale: &SaleId, to: SaleStep) {
        let judge = |before: &SaleRow, _| Ok(SaleRow { step: to, ..before.clone() });
        let changed = self.db.store.change_sale(sale, &actor(), "test", judge).await;
        changed.unwrap().unwrap().unwrap();
    }

    pub fn context(&self, more: &str) -> Context {
        let database = if more.contains("[database]") {
            String::new()
        } else {
            format!("[database]\nurl = \"{}\"\nmin_connections = 0\nmax_connections = 6\n", self.db.url)
        };
        let file = format!(
            "{database}[amqp]\nurl = \"{}\"\n[redis]\nurl = \"{}\"\n[orders]\nshards = {SHARDS}\n{more}",
            self.broker.url, self.url
        );
        let config = Config::read(Settings::merge(DEFAULTS, Some(&file), []), &[Role::Reconcile]).unwrap();
        Context::new(config).unwrap()
    }

    pub fn warden(&self, more: &str) -> Process {
        self.process(more, role::reconcile::run)
    }

    pub fn orders(&self) -> Process {
        self.process("", role::orders::run)
    }

    pub fn saga(&self) -> Process {
        self.process("", role::saga::run)
    }

    pub fn outbox(&self) -> Process {
        self.process("", role::outbox::run)
    }

    fn process<F>(&self, more: &str, role: impl FnOnce(Context, watch::Receiver<bool>) -> F) -> Process
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let context = self.context(more);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(role(context.clone(), stopped));
        Process { context, stop, task }
    }

    pub fn edge(&self, name: &str, lock: &str, start: u64) -> Edge {
        let instance = InstanceId::parse(&format!("edge.{start}.{name}")).unwrap();
        let edge = Edge {
            instance: instance.clone(),
            answers: Arc::new(AtomicBool::new(true)),
            draining: Arc::new(AtomicBool::new(false)),
            held: Arc::new(AtomicU64::new(0)),
            task: tokio::spawn(async {}),
            redis: self.redis.clone(),
        };
        let beat = Heartbeat {
            instance,
            name: "edge".to_owned(),
            lock: lock.to_owned(),
            start,
            at: Millis(0),
            generation: 0,
            held: 0,
            draining: false,
            gone: false,
            closed: BTreeMap::new(),
            broker: true,
        };
        let (answers, draining, held) = (edge.answers.clone(), edge.draining.clone(), edge.held.clone());
        let task = tokio::spawn(beat_on(connect(&self.url), beat, answers, draining, held));
        Edge { task, ..edge }
    }

    pub async fn epoch(&self) -> u64 {
        self.db.store.epoch(&self.segment).await.unwrap().unwrap_or(0)
    }

    /// The sale as edges see it.
    pub async fn view(&self) -> Option<SaleView> {
        let get = cmd("HGET").arg(SALES).arg(self.segment.sale.as_str()).to_owned();
        let text: Option<String> = self.redis.run("test", &get).await.ok()?;
        text.map(|text| serde_json::from_str(&text).unwrap())
    }

    pub async fn meta(&self, field: &str) -> Option<String> {
        let get = cmd("HGET").arg(self.segment.meta()).arg(field).to_owned();
        self.redis.run("test", &get).await.ok().flatten()
    }

    pub async fn left(&self) -> i64 {
        let get = cmd("HGET").arg(self.segment.stock()).arg("phone").to_owned();
        self.redis.run("test", &get).await.unwrap()
    }

    pub async fn run(&self, words: &[&str]) {
        let mut command = cmd(words[0]);
        command.arg(&words[1..]);
        self.redis.run::<sluice_shared::redis::Value>("test", &command).await.unwrap();
    }

    /// Asks as an edge does, under the epoch of the view.
    pub async fn ask(&self, edge: &InstanceId, who: &str) -> Result<Accepted, String> {
        let epoch = self.view().await.map_or(0, |view| view.epochs[0]);
        if epoch == 0 {
            return Err("frozen".to_owned());
        }
        let order = OrderId::mint(self.number, 0);
        let lines = Lines::parse("phone=1").unwrap();
        let ask = Ask { uuid: order.uuid, user: user(who), lines, expired: false };
        let scripts = SegmentScripts::new(self.segment.clone(), epoch);
        match scripts.reserve(&self.redis, edge, &[ask]).await {
            Ok(Reserved::Answers(answers)) => match &answers.answers[0] {
                Answer::Ok(_) => {
                    let record = self.record(&order).await.unwrap();
                    Ok(Accepted::of(&self.segment, self.number, order.uuid, &record))
                }
                other => Err(format!("{other:?}")),
            },
            other => Err(format!("{other:?}")),
        }
    }

    pub async fn record(&self, order: &OrderId) -> Option<Record> {
        let get = cmd("HGET").arg(self.segment.orders()).arg(order.field()).to_owned();
        let text: Option<String> = self.redis.run("test", &get).await.unwrap();
        text.map(|text| Record::parse(&text).unwrap())
    }

    /// An order in the books, its journal entry gone.
    pub async fn bought(&self, edge: &InstanceId, who: &str) -> Accepted {
        let order = self.ask(edge, who).await.unwrap();
        let report = self.db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
        assert_eq!(report.written, 1);
        let place = format!("{}-{}", order.epoch, order.seq);
        self.run(&["XDEL", &self.segment.journal(), &place]).await;
        order
    }

    pub async fn written(&self, order: &OrderId) -> bool {
        self.db.store.order(order).await.unwrap().is_some()
    }

    /// Waits until an edge sells, by a sale to a buyer who does not matter.
    pub async fn until_sells(&self, edge: &Edge) {
        static BUYERS: AtomicU64 = AtomicU64::new(0);
        let who = format!("nobody{}", BUYERS.fetch_add(1, Ordering::Relaxed));
        eventually("the sale sells", PATIENCE, || async {
            let Ok(order) = self.ask(&edge.instance, &who).await else { return false };
            self.db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
            let place = format!("{}-{}", order.epoch, order.seq);
            self.run(&["XDEL", &self.segment.journal(), &place]).await;
            true
        })
        .await;
    }
}

async fn beat_on(
    redis: Redis,
    mut beat: Heartbeat,
    answers: Arc<AtomicBool>,
    draining: Arc<AtomicBool>,
    held: Arc<AtomicU64>,
) {
    loop {
        if answers.load(Ordering::Relaxed)
            && let Ok(asked) =
                redis.run::<BTreeMap<String, String>>("test", cmd("HGETALL").arg(REOPENING)).await
        {
            beat.closed = asked
                .into_iter()
                .map(|(segment, question)| (segment, Question::parse(&question).unwrap()))
                .collect();
        }
        beat.draining = draining.load(Ordering::Relaxed);
        beat.held = held.load(Ordering::Relaxed);
        if let Ok(now) = redis.time().await {
            beat.at = now;
            let text = serde_json::to_string(&beat).unwrap();
            let set = cmd("HSET").arg(EDGES).arg(beat.instance.as_str()).arg(text).to_owned();
            let _ = redis.run::<u64>("test", &set).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
