//! A back office of a test's own: the real server over a fresh database and a private Redis, and what
//! stands in for the warden and for edges.

pub mod http;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sluice_shared::clock::Millis;
use sluice_shared::config::Settings;
use sluice_shared::ids::{InstanceId, OrderId, SaleId, SkuId, UserId};
use sluice_shared::jwt::sign_hs256;
use sluice_shared::keys::{self, Segment};
use sluice_shared::lines::Lines;
use sluice_shared::message::Accepted;
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::{AcceptAfter, Heartbeat, SaleStep, SaleView};
use sluice_shared::script::{Preload, SegmentScripts, WardenScripts};
use sluice_testkit::{PrivateRedis, eventually, free_port};
use sluice_worker::config::{Config, DEFAULTS, Role};
use sluice_worker::process::Context;
use sluice_worker::role;
use sluice_worker::store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use self::http::{Reply, parse};
use super::harness::TestDatabase;
use super::harness::broker::SHARDS;

pub const ADMIN_TOKEN: &str = "the admin token of tests";
pub const ADMIN_JWT_SECRET: &str = "the admin jwt secret of tests";
pub const PAYMENT_SECRET: &str = "the payment secret of tests";
pub const EDGE_SECRET: &str = "the edge secret of tests";

/// A running back office.
pub struct World {
    pub address: SocketAddr,
    pub server: PrivateRedis,
    pub redis: Redis,
    pub store: Store,
    pub pool: sqlx::PgPool,
    database: String,
    stop: watch::Sender<bool>,
    seq: AtomicU64,
    _db: TestDatabase,
}

fn config(address: SocketAddr, database: &str, redis: &str) -> Config {
    let file = format!(
        "[redis]\nurl = \"{redis}\"\n[database]\nurl = \"{database}\"\nmin_connections = 0\n\
         [api]\nlisten = \"{address}\"\nadmin_token = \"{ADMIN_TOKEN}\"\nedge_wait_ms = 300\n\
         admin_jwt_secret = \"{ADMIN_JWT_SECRET}\"\npayment_secret = \"{PAYMENT_SECRET}\"\n\
         edge_secret = \"{EDGE_SECRET}\"\naudit_program = \"{}\"\n",
        env!("CARGO_BIN_EXE_sluice-worker")
    );
    Config::read(Settings::merge(DEFAULTS, Some(&file), []), &[Role::Api]).expect("a configuration")
}

impl World {
    /// Starts everything and waits until it answers.
    pub async fn start() -> Self {
        let db = TestDatabase::new().await;
        let server = PrivateRedis::start();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (store, pool, redis) = (db.store.clone(), db.pool.clone(), server.connect());
        let (stop, stopped) = watch::channel(false);
        let mut context = Context::new(config(address, &db.url, &server.url())).expect("a context");
        context.store = store.clone();
        tokio::spawn(role::api::run(context, stopped));
        let (database, seq) = (db.url.clone(), AtomicU64::new(0));
        let world = Self { address, server, redis, store, pool, database, stop, seq, _db: db };
        eventually("the api answers", Duration::from_secs(10), || async {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        world
    }

    /// A real warden beside it, and the writers that its barriers go through, until the world ends.
    pub fn warden(&self, amqp: &str) {
        let file = format!(
            "[redis]\nurl = \"{}\"\n[database]\nurl = \"{}\"\nmin_connections = 0\n[amqp]\nurl = \"{amqp}\"\n\
             [orders]\nshards = {SHARDS}\n[reconcile]\nreconcile_ms = 500\n",
            self.server.url(),
            self.database,
        );
        let config = Config::read(Settings::merge(DEFAULTS, Some(&file), []), &[]).expect("a configuration");
        let context = Context::new(config).expect("a context");
        tokio::spawn(role::orders::run(context.clone(), self.stop.subscribe()));
        tokio::spawn(role::reconcile::run(context, self.stop.subscribe()));
    }

    /// Sends bytes as they are and reads the answer to its end.
    pub async fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        // A server that refuses early need not read everything.
        let _ = stream.write_all(request).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
        read.expect("an answer in time").expect("an answer");
        parse(&bytes)
    }

    /// One request with these headers besides those that every request has.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || matches!(method, "POST" | "PATCH") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        self.raw(&[head.as_bytes(), b"\r\n", body].concat()).await
    }

    /// A call with the admin token.
    pub async fn admin(&self, method: &str, path: &str, body: Value) -> Reply {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let bearer = format!("Bearer {ADMIN_TOKEN}");
        self.send(method, &format!("/admin/v1{path}"), &[("authorization", &bearer)], &body).await
    }

    /// A call of the edge for a buyer.
    pub async fn edge(&self, method: &str, path: &str, user: &str) -> Reply {
        let bearer = format!("Bearer {EDGE_SECRET}");
        let headers = [("authorization", bearer.as_str()), ("x-sluice-user", user)];
        self.send(method, &format!("/internal/v1{path}"), &headers, b"").await
    }

    /// A change of stock with a key.
    pub async fn stock(&self, sale: &str, key: &str, body: Value) -> Reply {
        let bearer = format!("Bearer {ADMIN_TOKEN}");
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
        let path = format!("/admin/v1/sales/{sale}/stock");
        self.send("POST", &path, &headers, body.to_string().as_bytes()).await
    }

    /// A payment notice, signed now.
    pub async fn notice(&self, body: &Value) -> Reply {
        let body = body.to_string();
        let signature = sign(PAYMENT_SECRET, Millis::now().seconds(), body.as_bytes());
        self.callback(&signature, body.as_bytes()).await
    }

    /// A payment notice with this signature header.
    pub async fn callback(&self, signature: &str, body: &[u8]) -> Reply {
        let bearer = format!("Bearer {EDGE_SECRET}");
        let headers = [("authorization", bearer.as_str()), ("x-payment-signature", signature)];
        self.send("POST", "/internal/v1/payments/callback", &headers, body).await
    }

    /// Makes a sale of ten phones and brings it to a state, with its shelf when it has one.
    pub async fn sale_in(&self, sale: &str, state: SaleStep) {
        self.admin("POST", "/sales", a_sale(sale)).await.expect(201);
        let steps: &[&str] = match state {
            SaleStep::Created => &[],
            SaleStep::Preloaded => &["preload"],
            SaleStep::Open => &["preload", "open"],
            SaleStep::Paused => &["preload", "open", "pause"],
            SaleStep::Closed => &["preload", "open", "close"],
        };
        for step in steps {
            // The warden's stand-in runs first, so that no step waits for it.
            self.project_all(sale).await;
            self.admin("POST", &format!("/sales/{sale}/{step}"), Value::Null).await.expect(200);
        }
        if state != SaleStep::Created {
            self.shelve(sale).await;
        }
    }

    async fn project_all(&self, sale: &str) {
        self.project(sale, u64::MAX).await;
    }

    /// Writes the sale's view at a version, as the warden would.
    pub async fn project(&self, sale: &str, cfg: u64) {
        let view = SaleView {
            sale: SaleId::parse(sale).unwrap(),
            number: 1,
            step: SaleStep::Open,
            starts_at: Millis(0),
            ends_at: Millis(1),
            cfg,
            segments: 1,
            accept_after: AcceptAfter::Journal,
            epochs: vec![1],
            items: Vec::new(),
        };
        let mut set = cmd("HSET");
        set.arg(keys::SALES).arg(sale).arg(serde_json::to_string(&view).unwrap());
        let count = cmd("INCR").arg(keys::GENERATION).to_owned();
        let _: (i64, u64) = self.redis.run_at_once("test", [set, count]).await.unwrap();
    }

    /// An edge's sign of life.
    pub async fn heartbeat(&self, instance: &str, generation: u64, age: Duration) {
        let now = self.redis.time().await.unwrap();
        let beat = Heartbeat {
            instance: InstanceId::parse(instance).unwrap(),
            name: instance.to_owned(),
            lock: instance.to_owned(),
            start: 1,
            at: Millis(now.0 - i64::try_from(age.as_millis()).unwrap()),
            generation,
            held: 0,
            draining: false,
            gone: false,
            closed: BTreeMap::new(),
            broker: true,
        };
        let mut set = cmd("HSET");
        set.arg(keys::EDGES).arg(instance).arg(serde_json::to_string(&beat).unwrap());
        let _: i64 = self.redis.run("test", &set).await.unwrap();
    }

    /// Puts a sale on its shelf and loads the scripts, as the warden would.
    pub async fn shelve(&self, sale: &str) -> SegmentScripts {
        let row = self.store.sale(&SaleId::parse(sale).unwrap()).await.unwrap().unwrap();
        let segment = Segment::new(row.sale.clone(), 0);
        self.store.shelve(&segment).await.unwrap();
        let warden = WardenScripts::default();
        warden.load(&self.redis).await.unwrap();
        let items = row.items.iter().map(|item| (item.sku.clone(), item.stock, item.per_user)).collect();
        let (starts_at, ends_at) = (row.starts_at, row.ends_at);
        let new =
            Preload { epoch: 1, step: row.step, starts_at, ends_at, cfg: row.cfg, journal_max: 1000, items };
        warden.preload(&self.redis, &segment, &new).await.unwrap();
        let scripts = SegmentScripts::new(segment, 1);
        scripts.load(&self.redis).await.unwrap();
        scripts
    }

    /// An order of one phone that the edge has accepted and nobody has written: its record is on the
    /// shelf, its units are taken from it.
    pub async fn accept(&self, sale: &str, user: &str) -> Accepted {
        let row = self.store.sale(&SaleId::parse(sale).unwrap()).await.unwrap().unwrap();
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        let accepted = Accepted {
            v: 1,
            order: OrderId::mint(row.number, 0),
            sale: row.sale.clone(),
            epoch: 1,
            seq,
            user: UserId::parse(user).unwrap(),
            lines: Lines::parse("phone=1").unwrap(),
            at: Millis::now(),
        };
        let segment = Segment::new(row.sale, 0);
        let (at, lines) = (accepted.at.0, &accepted.lines);
        let record = format!("Ah|1|{seq}|{at}|{at}|0|-|{lines}|{user}");
        let mut set = cmd("HSET");
        set.arg(segment.orders()).arg(accepted.order.field()).arg(record);
        let _: i64 = self.redis.run("test", &set).await.unwrap();
        let mut take = cmd("HINCRBY");
        take.arg(segment.stock()).arg("phone").arg(-1);
        let _: i64 = self.redis.run("test", &take).await.unwrap();
        accepted
    }

    /// An order that is written.
    pub async fn order(&self, sale: &str, user: &str) -> OrderId {
        let accepted = self.accept(sale, user).await;
        let report = self.store.write_orders(std::slice::from_ref(&accepted)).await.unwrap();
        assert_eq!(report.written, 1);
        accepted.order
    }

    /// An order that is written and paid.
    pub async fn paid_order(&self, sale: &str, user: &str, payment: &str) -> OrderId {
        let order = self.order(sale, user).await;
        self.notice(&a_notice(&order, payment)).await.expect(200);
        order
    }

    /// Units left on the shelf.
    pub async fn left(&self, sale: &str, sku: &str) -> i64 {
        let mut get = cmd("HGET");
        get.arg(Segment::new(SaleId::parse(sale).unwrap(), 0).stock()).arg(sku);
        // A connection whose server was killed breaks with the first command after it.
        match self.redis.run("test", &get).await {
            Err(Fault::Unknown { .. }) => self.redis.run("test", &get).await.unwrap(),
            read => read.unwrap(),
        }
    }

    /// Units of an offer in the books.
    pub async fn stock_in_books(&self, sale: &str, sku: &str) -> i64 {
        let sku = SkuId::parse(sku).unwrap();
        let row = self.store.sale(&SaleId::parse(sale).unwrap()).await.unwrap().unwrap();
        let item = row.items.iter().find(|item| item.sku == sku).unwrap();
        i64::try_from(item.stock).unwrap()
    }

    /// Kinds of a sale's ledger lines, in the order of SKU and line.
    pub async fn ledger(&self, sale: &str) -> Vec<String> {
        sqlx::query_scalar("SELECT kind || ' ' || quantity FROM ledger WHERE sale = $1 ORDER BY sku, line")
            .bind(sale)
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    /// Whether the hash chain of every offer of a sale holds, reckoned anew from the schema's words.
    pub async fn chain_holds(&self, sale: &str) -> bool {
        type Line = (String, i64, String, String, i64, i64, Vec<u8>);
        let lines: Vec<Line> = sqlx::query_as(
            "SELECT sku, line, kind, coalesce(order_id, change, ''), quantity, \
             (extract(epoch from at) * 1000000)::bigint, hash FROM ledger WHERE sale = $1 ORDER BY sku, line",
        )
        .bind(sale)
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut heads: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        lines.into_iter().all(|(sku, line, kind, about, quantity, at, hash)| {
            let text = format!("{sale}|{sku}|{line}|{kind}|{about}|{quantity}|{at}");
            let head = heads.entry(sku).or_default();
            *head = Sha256::digest([head.as_slice(), text.as_bytes()].concat()).to_vec();
            *head == hash
        })
    }

    /// Actions in the audit log, in their order: `action by who (role)`.
    pub async fn audited(&self, target: &str) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT action || ' by ' || who || ' (' || role || ')' FROM audit_log \
             WHERE target = $1 AND request_id <> '' ORDER BY id",
        )
        .bind(target)
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }
}

/// A sale of ten phones and five books that began a minute ago and lasts an hour.
pub fn a_sale(sale: &str) -> Value {
    let now = Millis::now();
    json!({
        "sale": sale,
        "starts_at": Millis(now.0 - 60_000).to_text(),
        "ends_at": Millis(now.0 + 3_600_000).to_text(),
        "items": [
            {"sku": "phone", "title": "Phone", "price": 59900, "currency": "EUR", "stock": 10, "per_user": 2},
            {"sku": "book", "title": "Book", "price": 0, "currency": "EUR", "stock": 5, "per_user": 1},
        ],
    })
}

/// The notice of a payment for one phone.
pub fn a_notice(order: &OrderId, payment: &str) -> Value {
    json!({
        "payment_id": payment, "order_id": order, "amount": 59900, "currency": "EUR",
        "status": "succeeded", "provider": {"ignored": true},
    })
}

/// The signature header of a body.
pub fn sign(secret: &str, at: i64, body: &[u8]) -> String {
    format!("t={at},v1={}", mac(secret, at, body))
}

/// Lower-case hex of HMAC-SHA256(secret, at.body).
pub fn mac(secret: &str, at: i64, body: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    hex::encode(ring::hmac::sign(&key, &[at.to_string().as_bytes(), b".", body].concat()))
}

/// A JWT of the back office.
pub fn staff(role: &str) -> String {
    let exp = Millis::now().seconds() + 60;
    let claims = json!({"sub": format!("a-{role}"), "aud": "sluice-admin", "role": role, "exp": exp});
    format!("Bearer {}", sign_hs256(ADMIN_JWT_SECRET, &claims))
}
