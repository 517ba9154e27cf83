//! A private Redis, a virtual host of its own on the real broker, a warden's hand, and edges.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use sluice_edge::engine::{Ask, Engine, EngineConfig, Outcome};
use sluice_shared::amqp::Link;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{InstanceId, OrderId, SaleId, SkuId, UserId};
use sluice_shared::keys::{EDGES, GENERATION, REGISTER, SALES, SALES_CHANNEL, Segment};
use sluice_shared::lines::Lines;
use sluice_shared::message::{Accepted, OrderMessage};
use sluice_shared::redis::{FromRedisValue, Redis, cmd};
use sluice_shared::sale::{AcceptAfter, Heartbeat, Item, SaleStep, SaleView};
use sluice_shared::script::{Preload, SegmentScripts, WardenScripts};
use sluice_shared::topology::{Topology, write_queue};
use sluice_testkit::{PrivateRedis, eventually, required};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long anything may take that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// Write queues.
pub(crate) const SHARDS: u16 = 2;

static COUNT: AtomicU32 = AtomicU32::new(0);

fn unique(what: &str) -> String {
    format!("sluice-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A virtual host, deleted when dropped.
pub(crate) struct Vhost(String);

impl Vhost {
    fn new() -> Self {
        let vhost = Self(unique("test"));
        assert!(vhost.ask("PUT"), "virtual host {}", vhost.0);
        vhost
    }

    fn ask(&self, method: &str) -> bool {
        let url = format!("{}/api/vhosts/{}", required("SLUICE_TEST_AMQP_MANAGEMENT_URL"), self.0);
        Command::new("curl").args(["-sf", "-X", method, &url]).status().is_ok_and(|done| done.success())
    }

    pub(crate) fn url(&self) -> String {
        let admin = required("SLUICE_TEST_AMQP_URL");
        let (server, _) = admin.rsplit_once('/').unwrap();
        format!("{server}/{}", self.0)
    }

    /// Cuts the relays' connections, as an operator would.
    pub(crate) async fn cut_relays(&self) {
        let base = required("SLUICE_TEST_AMQP_MANAGEMENT_URL");
        let list = format!("{base}/api/vhosts/{}/connections", self.0);
        let cut = || async {
            let listed = Command::new("curl").args(["-sf", &list]).output().unwrap();
            let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
            let relay = |c: &&serde_json::Value| c["user_provided_name"].to_string().contains(" relay");
            let names = listed.as_array().unwrap().iter().filter(relay).map(|c| c["name"].as_str().unwrap());
            let names: Vec<String> = names.map(|name| name.replace(' ', "%20").replace('>', "%3E")).collect();
            for name in &names {
                let url = format!("{base}/api/connections/{name}");
                assert!(Command::new("curl").args(["-sf", "-X", "DELETE", &url]).status().unwrap().success());
            }
            !names.is_empty()
        };
        eventually("the management API lists the relay", SOON, cut).await;
    }

    /// Asks the management API for something of this virtual host: `/api/{what}/{vhost}/{rest}`.
    pub(crate) fn manage(&self, method: &str, what: &str, rest: &str, body: &str) {
        let base = required("SLUICE_TEST_AMQP_MANAGEMENT_URL");
        let url = format!("{base}/api/{what}/{}/{rest}", self.0);
        let mut curl = Command::new("curl");
        curl.args(["-sf", "-X", method, &url]);
        if !body.is_empty() {
            curl.args(["-H", "Content-Type: application/json", "-d", body]);
        }
        assert!(curl.status().unwrap().success(), "{method} {url} {body}");
    }

    pub(crate) async fn link(&self) -> Link {
        Link::connect(&self.url(), "test").await.unwrap()
    }

    pub(crate) async fn declare(&self) {
        self.link().await.declare(&Topology::new(SHARDS)).await.unwrap();
    }

    /// The next `count` orders out of all write queues.
    pub(crate) async fn orders(&self, count: usize) -> Vec<Accepted> {
        self.orders_until(|found| found.len() >= count).await
    }

    /// Orders out of all write queues until there are enough.
    pub(crate) async fn orders_until(&self, enough: impl Fn(&[Accepted]) -> bool) -> Vec<Accepted> {
        let (link, mut found) = (self.link().await, Vec::new());
        let mut consumers = Vec::new();
        for shard in 0..SHARDS {
            consumers.push(link.consumer(&write_queue(shard), "test", 1000).await.unwrap());
        }
        let read = async {
            while !enough(&found) {
                for consumer in &mut consumers {
                    let next = tokio::time::timeout(Duration::from_millis(20), consumer.next()).await;
                    let Ok(next) = next else { continue };
                    let delivery = next.unwrap().unwrap();
                    consumer.ack(delivery.tag).await.unwrap();
                    let OrderMessage::Accepted(order) = serde_json::from_slice(&delivery.body).unwrap()
                    else {
                        panic!("no order");
                    };
                    assert_eq!(delivery.id, order.order.to_string());
                    assert_eq!(
                        (delivery.kind.as_str(), delivery.sale.as_deref()),
                        ("order.accepted", Some(order.sale.as_str()))
                    );
                    let age = Millis::now().seconds().abs_diff(delivery.sent.unwrap().try_into().unwrap());
                    assert!(age < 60, "sent {age} s ago");
                    found.push(order);
                }
            }
        };
        tokio::time::timeout(SOON, read).await.expect("messages in the write queues");
        found
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // One that stays behind costs the test broker little.
        let _ = self.ask("DELETE");
    }
}

/// A directory for lock files, deleted when dropped.
struct State(PathBuf);

impl Drop for State {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Redis, broker, and what a warden does.
pub(crate) struct World {
    pub(crate) redis: PrivateRedis,
    pub(crate) shop: Redis,
    pub(crate) vhost: Vhost,
    warden: WardenScripts,
}

/// A sale of one SKU, `phone`.
#[derive(Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) stock: u64,
    pub(crate) per_user: u32,
    pub(crate) accept_after: AcceptAfter,
}

impl Default for Offer {
    fn default() -> Self {
        Self { stock: 1000, per_user: 1000, accept_after: AcceptAfter::Journal }
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_on(PrivateRedis::start()).await
    }

    /// The same on a Redis that is there.
    pub(crate) async fn start_on(redis: PrivateRedis) -> Self {
        let (shop, vhost) = (redis.connect(), Vhost::new());
        Self { redis, shop, vhost, warden: WardenScripts::default() }
    }

    pub(crate) fn view(sale: &str, offer: Offer, epoch: u64) -> SaleView {
        let now = Millis::now().0;
        SaleView {
            sale: SaleId::parse(sale).unwrap(),
            number: 1,
            step: SaleStep::Open,
            starts_at: Millis(now - 1000),
            ends_at: Millis(now + 3_600_000),
            cfg: 1,
            segments: 1,
            accept_after: offer.accept_after,
            epochs: vec![epoch],
            items: vec![Item {
                sku: SkuId::parse("phone").unwrap(),
                title: "Phone".into(),
                price: 1,
                currency: "EUR".into(),
                per_user: offer.per_user,
            }],
        }
    }

    /// Opens a sale under epoch 1, with its queues declared.
    pub(crate) async fn sell(&self, sale: &str, offer: Offer) -> Segment {
        self.vhost.declare().await;
        self.sell_without_queues(sale, offer).await
    }

    pub(crate) async fn sell_without_queues(&self, sale: &str, offer: Offer) -> Segment {
        let view = Self::view(sale, offer, 1);
        let segment = Segment::new(view.sale.clone(), 0);
        self.warden.load(&self.shop).await.unwrap();
        let items = vec![(view.items[0].sku.clone(), offer.stock, offer.per_user)];
        let new = Preload {
            epoch: 1,
            step: SaleStep::Open,
            starts_at: view.starts_at,
            ends_at: view.ends_at,
            cfg: 1,
            journal_max: 1_000_000,
            items,
        };
        self.warden.preload(&self.shop, &segment, &new).await.unwrap();
        self.arm(&segment, 1).await;
        self.list(&view).await;
        segment
    }

    /// Loads the scripts of an epoch and gives a long lease.
    pub(crate) async fn arm(&self, segment: &Segment, epoch: u64) {
        self.warden.load(&self.shop).await.unwrap();
        self.lease(segment, epoch, &[]).await;
        SegmentScripts::new(segment.clone(), epoch).load(&self.shop).await.unwrap();
    }

    async fn lease(&self, segment: &Segment, epoch: u64, admit: &[InstanceId]) {
        let span = Duration::from_secs(3600);
        self.warden.lease(&self.shop, segment, epoch, span, admit, &[]).await.unwrap().unwrap();
    }

    /// Raises a segment from `epoch` to the next, as the end of a re-opening.
    pub(crate) async fn raise(&self, segment: &Segment, epoch: u64) {
        self.warden.raise(&self.shop, segment, epoch, 0).await.unwrap();
        self.arm(segment, epoch + 1).await;
    }

    /// Publishes a sale's view.
    pub(crate) async fn list(&self, view: &SaleView) {
        let text = serde_json::to_string(view).unwrap();
        self.ask::<u64>("HSET", &[SALES, view.sale.as_str(), &text]).await;
        let generation: u64 = self.ask("INCR", &[GENERATION]).await;
        self.ask::<u64>("PUBLISH", &[SALES_CHANNEL, &generation.to_string()]).await;
    }

    pub(crate) async fn ask<T: FromRedisValue>(&self, name: &str, arguments: &[&str]) -> T {
        let mut command = cmd(name);
        for argument in arguments {
            command.arg(*argument);
        }
        self.shop.run("testing", &command).await.unwrap()
    }

    /// Units of `phone` left.
    pub(crate) async fn left(&self, segment: &Segment) -> i64 {
        self.ask("HGET", &[&segment.stock(), "phone"]).await
    }

    pub(crate) async fn journal(&self, segment: &Segment) -> usize {
        self.ask("XLEN", &[&segment.journal()]).await
    }

    pub(crate) async fn journal_empties(&self, segment: &Segment) {
        eventually("the journal is empty", SOON, || async { self.journal(segment).await == 0 }).await;
    }

    /// What an edge last told.
    pub(crate) async fn heartbeat(&self, name: &str) -> Option<Heartbeat> {
        let all: Vec<(String, String)> = self.ask("HGETALL", &[EDGES]).await;
        let mut beats = all.iter().map(|(_, text)| serde_json::from_str::<Heartbeat>(text).unwrap());
        beats.find(|beat| beat.name == name)
    }

    /// Waits until an edge has given two further signs of life: it has heard of all that was there before.
    pub(crate) async fn two_beats(&self, name: &str) {
        let mut last = self.heartbeat(name).await.map(|beat| beat.at);
        for _ in 0..2 {
            let at = async || self.heartbeat(name).await.map(|beat| beat.at);
            eventually("a sign of life", SOON, async || at().await.is_some_and(|at| Some(at) != last)).await;
            last = at().await;
        }
    }

    /// An edge that runs and is admitted to a segment of epoch `epoch`.
    pub(crate) async fn edge(&self, name: &str, segment: &Segment, epoch: u64) -> Edge {
        let edge = Edge::start(self, name, |_| {});
        self.admit(&edge, segment, epoch).await;
        edge
    }

    /// Takes an edge into the register, as a warden does once it hears of it.
    pub(crate) async fn register(&self, name: &str, segment: &Segment, epoch: u64) {
        let beats = || async { self.heartbeat(name).await.is_some() };
        eventually("a heartbeat", SOON, beats).await;
        let instance = self.heartbeat(name).await.unwrap().instance;
        self.ask::<u64>("HSET", &[REGISTER, instance.as_str(), "1"]).await;
        self.lease(segment, epoch, &[instance]).await;
    }

    pub(crate) async fn admit(&self, edge: &Edge, segment: &Segment, epoch: u64) {
        self.register(&edge.name, segment, epoch).await;
        let sells = || async { edge.engine.sale(segment.sale.as_str()).is_some_and(|sale| !sale.frozen()) };
        eventually("the edge sells", SOON, sells).await;
        eventually("its start is over", SOON, || async { edge.engine.has_started() }).await;
    }
}

/// An engine in this process.
pub(crate) struct Edge {
    pub(crate) engine: Arc<Engine>,
    name: String,
    registry: Registry,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    _state: State,
}

impl Edge {
    pub(crate) fn start(world: &World, name: &str, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let state = State(std::env::temp_dir().join(unique("state")));
        let mut config = EngineConfig {
            name: name.to_owned(),
            state_dir: state.0.clone(),
            redis_url: world.redis.url(),
            redis_deadline: Duration::from_millis(500),
            amqp_url: world.vhost.url(),
            amqp_inflight: 2048,
            shards: SHARDS,
            batch_max: 256,
            batches_inflight: 2,
            queue_max: 20_000,
            held_max: 100_000,
            spare_max: 100_000,
            spare_for: Duration::from_secs(30),
            sweep_after: Duration::from_secs(1),
            streams_max: 100,
            listen_for: Duration::from_secs(20),
            skew_max: Duration::from_secs(600),
        };
        change(&mut config);
        let mut registry = sluice_shared::metrics::registry();
        let engine = Engine::new(config, &mut registry).unwrap();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&engine).run(stopped));
        Self { engine, name: name.to_owned(), registry, stop, task, _state: state }
    }

    /// One unit for a user, by a fresh token.
    pub(crate) async fn buy(&self, user: &str) -> (OrderId, Outcome) {
        let order = OrderId::mint(1, 0);
        (order, self.redeem(&order, user).await)
    }

    /// One unit for a user, by a token that may have been used.
    pub(crate) async fn redeem(&self, order: &OrderId, user: &str) -> Outcome {
        let sale = self.engine.sale_by_number(order.sale).expect("the sale");
        let (user, lines) = (UserId::parse(user).unwrap(), Lines::parse("phone=1").unwrap());
        self.engine.reserve(&sale, Ask { uuid: order.uuid, user, lines, expired: false }).await
    }

    /// The sum of a metric's samples.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = sluice_shared::metrics::render(&self.registry);
        let samples = text.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub(crate) async fn until(&self, name: &str, holds: impl Fn(f64) -> bool) {
        eventually(name, SOON, || async { holds(self.metric(name)) }).await;
    }

    /// Stops in order.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }

    /// Dies at once, whatever it holds.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}

/// Whether an outcome is a fresh acceptance.
pub(crate) fn accepted(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Accepted { replayed: false, .. })
}
