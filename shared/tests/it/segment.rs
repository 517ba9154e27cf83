//! A sale segment on a private Redis, and its whole state as one value to compare.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_shared::clock::Millis;
use sluice_shared::ids::{InstanceId, OrderId, SaleId, SkuId, UserId};
use sluice_shared::keys::Segment;
use sluice_shared::lines::Lines;
use sluice_shared::record::Record;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::sale::SaleStep;
use sluice_shared::script::{
    Answer, Answers, Ask, Control, Preload, Release, Released, Reserved, SegmentScripts, WardenScripts,
};
use sluice_testkit::PrivateRedis;

pub(crate) fn sku(text: &str) -> SkuId {
    SkuId::parse(text).unwrap()
}

pub(crate) fn user(text: &str) -> UserId {
    UserId::parse(text).unwrap()
}

pub(crate) fn edge() -> InstanceId {
    InstanceId::parse("edge.1.test").unwrap()
}

/// One request: a new order id each time.
pub(crate) fn ask(who: &str, lines: &str) -> Ask {
    let uuid = OrderId::mint(1, 0).uuid;
    Ask { uuid, user: user(who), lines: Lines::parse(lines).unwrap(), expired: false }
}

/// Everything that Redis holds of a segment; times are left out of the records, and how many orders have
/// ended out of the marks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Whole {
    pub(crate) stock: BTreeMap<String, u64>,
    pub(crate) orders: BTreeMap<String, String>,
    pub(crate) marks: BTreeMap<String, String>,
    pub(crate) journal: Vec<(String, String)>,
    pub(crate) seq: u64,
}

pub(crate) struct Sale {
    pub(crate) server: std::sync::Arc<std::sync::Mutex<PrivateRedis>>,
    pub(crate) redis: Redis,
    pub(crate) segment: Segment,
    pub(crate) scripts: SegmentScripts,
    pub(crate) warden: WardenScripts,
}

impl Sale {
    /// An open sale with these SKUs: name, units, units a user may hold.
    pub(crate) async fn open(items: &[(&str, u64, u32)]) -> Self {
        let sale = Self::preloaded(items, 1_000).await;
        sale.step(2, SaleStep::Open, 0, i64::MAX / 2).await;
        sale
    }

    pub(crate) async fn preloaded(items: &[(&str, u64, u32)], journal_max: u64) -> Self {
        let server = PrivateRedis::start();
        let redis = server.connect();
        let server = std::sync::Arc::new(std::sync::Mutex::new(server));
        Self::on(server, redis, items, journal_max).await
    }

    /// An open sale on the server of another one, which must have been emptied.
    pub(crate) async fn again(&self, items: &[(&str, u64, u32)]) -> Self {
        let sale = Self::on(self.server.clone(), self.redis.clone(), items, 1_000).await;
        sale.step(2, SaleStep::Open, 0, i64::MAX / 2).await;
        sale
    }

    async fn on(
        server: std::sync::Arc<std::sync::Mutex<PrivateRedis>>,
        redis: Redis,
        items: &[(&str, u64, u32)],
        journal_max: u64,
    ) -> Self {
        let segment = Segment::new(SaleId::parse("demo").unwrap(), 0);
        let scripts = SegmentScripts::new(segment.clone(), 7);
        let warden = WardenScripts::default();
        warden.load(&redis).await.unwrap();
        let preload = Preload {
            epoch: 7,
            step: SaleStep::Preloaded,
            starts_at: Millis(0),
            ends_at: Millis(i64::MAX / 2),
            cfg: 1,
            journal_max,
            items: items.iter().map(|(name, units, limit)| (sku(name), *units, *limit)).collect(),
        };
        warden.preload(&redis, &segment, &preload).await.unwrap();
        scripts.load(&redis).await.unwrap();
        let sale = Self { server, redis, segment, scripts, warden };
        sale.lease(Duration::from_secs(3600)).await;
        sale
    }

    pub(crate) async fn lease(&self, span: Duration) {
        let leased = self.warden.lease(&self.redis, &self.segment, 7, span, &[edge()], &[]).await;
        leased.unwrap().unwrap();
    }

    pub(crate) async fn step(&self, cfg: u64, step: SaleStep, starts: i64, ends: i64) {
        let (starts_at, ends_at) = (Millis(starts), Millis(ends));
        let control = Control { cfg, step, starts_at, ends_at, limits: Vec::new() };
        let set = self.warden.control(&self.redis, &self.segment, 7, &control).await;
        assert_eq!(set.unwrap().unwrap(), cfg);
    }

    pub(crate) async fn reserved(&self, batch: &[Ask]) -> Reserved {
        self.scripts.reserve(&self.redis, &edge(), batch).await.unwrap()
    }

    pub(crate) async fn answers(&self, batch: &[Ask]) -> Answers {
        match self.reserved(batch).await {
            Reserved::Answers(answers) => answers,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn reserve(&self, ask: &Ask) -> Answer {
        self.answers(std::slice::from_ref(ask)).await.answers.remove(0)
    }

    pub(crate) async fn release(&self, ask: &Ask, state: sluice_shared::record::OrderState) -> Released {
        let (lines, user) = (ask.lines.clone(), ask.user.clone());
        let release = Release { uuid: ask.uuid, state, lines, user };
        let released = self.scripts.release(&self.redis, &[release]).await.unwrap().unwrap();
        released.into_iter().next().unwrap()
    }

    pub(crate) async fn set(&self, key: &str, field: &str, value: &str) {
        let set = cmd("HSET").arg(key).arg(field).arg(value).to_owned();
        self.redis.run::<i64>("test", &set).await.unwrap();
    }

    pub(crate) async fn whole(&self) -> Whole {
        let all = |key: String| {
            let redis = self.redis.clone();
            async move { redis.run::<BTreeMap<String, String>>("test", cmd("HGETALL").arg(key)).await.unwrap() }
        };
        let stock = all(self.segment.stock()).await;
        let stock = stock.into_iter().map(|(sku, left)| (sku, left.parse().unwrap())).collect();
        let mut whole = Whole { stock, ..Whole::default() };
        for (field, value) in all(self.segment.orders()).await {
            match field.strip_prefix('@') {
                Some(user) => {
                    let held: Vec<&str> = value.split(',').filter(|part| !part.starts_with("#=")).collect();
                    let held = (!held.is_empty()).then(|| held.join(","));
                    held.and_then(|held| whole.marks.insert(user.to_owned(), held))
                }
                None => {
                    let mut record = Record::parse(&value).unwrap();
                    (record.accepted, record.updated) = (Millis(0), Millis(0));
                    whole.orders.insert(field, record.to_string())
                }
            };
        }
        let range = cmd("XRANGE").arg(self.segment.journal()).arg("-").arg("+").to_owned();
        let journal: Vec<(String, Vec<String>)> = self.redis.run("test", &range).await.unwrap();
        whole.journal = journal.into_iter().map(|(id, mut fields)| (id, fields.remove(1))).collect();
        let seq: String =
            self.redis.run("test", cmd("HGET").arg(self.segment.meta()).arg("seq")).await.unwrap();
        whole.seq = seq.parse().unwrap();
        whole
    }
}
