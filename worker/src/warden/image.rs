//! One sale segment as Redis holds it, read without writing: what is compared with the books.

use std::collections::BTreeMap;

use ahash::AHashMap;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{SkuId, UserId, parse_field};
use sluice_shared::keys::Shelf;
use sluice_shared::lines::{Lines, LinesPool};
use sluice_shared::record::{OrderState, Record, Refund};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::SaleStep;

use super::mark::Mark;

/// Fields or entries in one page. A buyer may have to wait for it: half of it took 1.3 ms of Redis' time.
const PAGE: usize = 4_000;
/// How often the shelf is looked at until two looks agree.
const LOOKS: usize = 20;
/// Fields of `meta` that are numbers and change only when the sale does.
pub const NUMBERS: [&str; 4] = ["cfg", "jmax", "starts", "ends"];

/// An order of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the buyer is told.
    pub state: OrderState,
    /// Whether its units are back on the shelf.
    pub released: bool,
    /// Epoch of the reply that took the units.
    pub epoch: u64,
    /// Place in the sequence.
    pub seq: u64,
    /// When the units were taken.
    pub accepted: Millis,
    /// When the record last changed.
    pub updated: Millis,
    /// Money to give back.
    pub refund: Refund,
    /// What was taken.
    pub lines: Lines,
    /// By whom.
    pub user: UserId,
}

impl Entry {
    /// The record again, for whoever publishes it.
    pub fn record(&self) -> Record {
        Record {
            state: self.state,
            released: self.released,
            epoch: self.epoch,
            seq: self.seq,
            accepted: self.accepted,
            updated: self.updated,
            pay_before: None,
            refund: self.refund,
            lines: self.lines.clone(),
            user: self.user.clone(),
        }
    }
}

/// A hash as it is.
type Fields = BTreeMap<String, String>;

/// What `meta` and `stock` say, read until two looks agree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// `sale:segment:epoch`; `None` when there is no such segment in Redis.
    pub fence: Option<String>,
    /// The epoch.
    pub epoch: u64,
    /// The highest sequence given out.
    pub seq: u64,
    /// SKU → units one user may hold.
    pub limits: BTreeMap<SkuId, u64>,
    /// SKU → units put on this shelf: preloaded + added − withdrawn.
    pub init: BTreeMap<SkuId, u64>,
    /// Ids of the stock changes that were carried out here.
    pub changes: Vec<String>,
    /// SKU → units left; `None` where the number cannot be read.
    pub stock: BTreeMap<SkuId, Option<i64>>,
    /// What a warden wrote of the sale; `None` where it cannot be read.
    pub control: Option<Control>,
    /// Fields of `meta` that are not what they must be.
    pub torn: Vec<&'static str>,
}

/// The whole segment.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// `meta` and `stock`.
    pub head: Head,
    /// Redis' clock just before the head was read.
    pub at: Millis,
    /// The order map.
    pub orders: AHashMap<[u8; 16], Entry>,
    /// The buyers' marks.
    pub marks: AHashMap<UserId, Mark>,
    /// Entries of the journal: epoch, sequence, order.
    pub journal: Vec<(u64, u64, [u8; 16])>,
    /// Fields and entries that cannot be read.
    pub torn: Vec<String>,
    /// How many of the segment's keys exist.
    pub keys: usize,
    /// Whether the journal is one of them; it is there, empty or not, since the first order.
    pub has_journal: bool,
    /// Keys that will run out by themselves.
    pub mortal: Vec<String>,
}

/// What a warden wrote of the sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// The version of the sale's configuration.
    pub cfg: u64,
    /// Where the sale is in its life.
    pub step: SaleStep,
    /// When it begins and ends.
    pub span: [Millis; 2],
}

impl Head {
    /// Reads it: what two looks in one go agree about stood so at one moment. They seldom differ, because
    /// Redis answers what comes in one go in one go.
    pub async fn read(redis: &Redis, shelf: &Shelf) -> Result<Self, Fault> {
        let ask = |key: String| cmd("HGETALL").arg(key).to_owned();
        let mut looks = 0;
        loop {
            looks += 1;
            let asked = [shelf.meta(), shelf.stock(), shelf.meta(), shelf.stock()].map(ask);
            let (meta, stock, meta_again, stock_again): (Fields, Fields, Fields, Fields) =
                redis.run_all("reading meta and stock", asked).await?;
            if looks == LOOKS || (&meta, &stock) == (&meta_again, &stock_again) {
                return Ok(Self::of(&meta, stock));
            }
        }
    }

    fn of(meta: &Fields, stock: Fields) -> Self {
        let number = |field: &str| meta.get(field).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut head = Self {
            fence: meta.get("fence").cloned(),
            epoch: number("epoch"),
            seq: number("seq"),
            ..Self::default()
        };
        let torn = |field: &&str| meta.get(*field).is_none_or(|text| text.parse::<u64>().is_err());
        if head.fence.is_some() {
            head.torn = ["epoch", "seq"].into_iter().chain(NUMBERS).filter(torn).collect();
            let state = meta.get("state").and_then(|word| SaleStep::parse(word));
            head.torn.extend(state.is_none().then_some("state"));
        }
        head.control = control(meta);
        for (field, value) in meta {
            let units = || value.parse().ok();
            match field.split_once(':') {
                Some(("limit", sku)) => head.limits.extend(SkuId::parse(sku).ok().zip(units())),
                Some(("init", sku)) => head.init.extend(SkuId::parse(sku).ok().zip(units())),
                Some(("adjust", change)) => head.changes.push(change.to_owned()),
                _ => {}
            }
        }
        head.changes.sort_unstable();
        for (sku, units) in stock {
            if let Ok(sku) = SkuId::parse(&sku) {
                head.stock.insert(sku, units.parse().ok());
            }
        }
        head
    }
}

impl Image {
    /// Reads all of a segment, page by page.
    pub async fn read(redis: &Redis, shelf: &Shelf) -> Result<Self, Fault> {
        let mut image = Self { at: redis.time().await?, ..Self::default() };
        let kinds = kinds(redis, shelf).await?;
        for (key, kind) in keys(shelf).into_iter().zip(kinds) {
            image.keys += usize::from(kind != Kind::Missing);
            if kind == Kind::Wrong {
                image.torn.push(format!("{key}, which has another type,"));
            }
            // -2: there is no such key, -1: it does not run out.
            let left: i64 = redis.run("looking how long a key lives", cmd("PTTL").arg(&key)).await?;
            if left >= 0 {
                image.mortal.push(key);
            }
        }
        let [meta, stock, orders, journal] = kinds.map(|kind| kind != Kind::Wrong);
        image.has_journal = kinds[3] == Kind::Right;
        // The journal first: an entry that leaves it meanwhile has its order in the map all the same.
        if journal {
            image.read_journal(redis, shelf).await?;
        }
        if meta && stock {
            image.head = Head::read(redis, shelf).await?;
            image.torn.extend(image.head.torn.iter().map(|field| format!("meta {field}")));
        }
        if orders {
            image.read_orders(redis, shelf).await?;
        }
        Ok(image)
    }

    /// Takes a page in while Redis answers with the next.
    async fn read_orders(&mut self, redis: &Redis, shelf: &Shelf) -> Result<(), Fault> {
        let scan = async |cursor: u64| {
            let mut scan = cmd("HSCAN");
            scan.arg(shelf.orders()).arg(cursor).arg("COUNT").arg(PAGE);
            redis.run::<(u64, Vec<(String, String)>)>("reading the order map", &scan).await
        };
        // About one order to each mark; growing while it is read costs as much as reading it.
        let fields: usize = redis.run("counting the order map", cmd("HLEN").arg(shelf.orders())).await?;
        self.orders.reserve(fields / 2);
        self.marks.reserve(fields / 2);
        let mut pool = LinesPool::default();
        let (mut cursor, mut page) = scan(0).await?;
        while cursor != 0 {
            let (next, ()) = tokio::join!(scan(cursor), async { self.take_page(page, &mut pool) });
            (cursor, page) = next?;
        }
        self.take_page(page, &mut pool);
        Ok(())
    }

    fn take_page(&mut self, page: Vec<(String, String)>, pool: &mut LinesPool) {
        for (field, value) in page {
            self.take_field(&field, &value, pool);
        }
    }

    fn take_field(&mut self, field: &str, value: &str, pool: &mut LinesPool) {
        if let Some(user) = field.strip_prefix('@') {
            match (UserId::parse(user), Mark::parse(value)) {
                // All of his orders have ended.
                (Ok(_), Some(mark)) if mark.is_empty() => {}
                (Ok(user), Some(mark)) => {
                    self.marks.insert(user, mark);
                }
                _ => self.torn.push(field.to_owned()),
            }
            return;
        }
        let (Some(uuid), Some(record)) = (parse_field(field), Record::parse_shared(value, pool)) else {
            self.torn.push(field.to_owned());
            return;
        };
        let entry = Entry {
            state: record.state,
            released: record.released,
            epoch: record.epoch,
            seq: record.seq,
            accepted: record.accepted,
            updated: record.updated,
            refund: record.refund,
            lines: record.lines,
            user: record.user,
        };
        self.orders.insert(uuid, entry);
    }

    async fn read_journal(&mut self, redis: &Redis, shelf: &Shelf) -> Result<(), Fault> {
        let mut from = "-".to_owned();
        loop {
            let mut range = cmd("XRANGE");
            range.arg(shelf.journal()).arg(&from).arg("+").arg("COUNT").arg(PAGE);
            let page: Vec<(String, Vec<String>)> = redis.run("reading the journal", &range).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = format!("({last}");
            for (id, fields) in &page {
                let order = fields.get(1).and_then(|order| parse_field(order));
                let place = id.split_once('-').and_then(|(e, s)| Some((e.parse().ok()?, s.parse().ok()?)));
                match (place, order) {
                    (Some((epoch, seq)), Some(order)) => self.journal.push((epoch, seq, order)),
                    _ => self.torn.push(format!("journal {id}")),
                }
            }
        }
    }

    /// Units of every SKU that the map's orders hold.
    pub fn held(&self) -> BTreeMap<SkuId, u64> {
        let mut held = BTreeMap::new();
        for entry in self.orders.values().filter(|entry| !entry.released) {
            for (sku, n) in entry.lines.iter() {
                *held.entry(sku.clone()).or_default() += u64::from(n);
            }
        }
        held
    }

    /// What every buyer's mark should be: the sum over his orders that hold units.
    pub fn held_by_user(&self) -> AHashMap<UserId, Mark> {
        let mut users: AHashMap<UserId, Mark> = AHashMap::new();
        for entry in self.orders.values().filter(|entry| !entry.released) {
            users.entry(entry.user.clone()).or_default().add(&entry.lines);
        }
        users
    }
}

/// `None` where something of it is missing or torn.
fn control(meta: &Fields) -> Option<Control> {
    let number = |field: &str| meta.get(field)?.parse::<i64>().ok();
    Some(Control {
        cfg: u64::try_from(number("cfg")?).ok()?,
        step: SaleStep::parse(meta.get("state")?)?,
        span: [Millis(number("starts")?), Millis(number("ends")?)],
    })
}

/// What is found under a segment's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Missing,
    /// What belongs there.
    Right,
    /// Something of another type: nobody of ours wrote that.
    Wrong,
}

fn keys(shelf: &Shelf) -> [String; 4] {
    [shelf.meta(), shelf.stock(), shelf.orders(), shelf.journal()]
}

/// What is found under `meta`, `stock`, `orders` and `journal`.
pub async fn kinds(redis: &Redis, shelf: &Shelf) -> Result<[Kind; 4], Fault> {
    let ask = |key: String| cmd("TYPE").arg(key).to_owned();
    let found: [String; 4] = redis.run_all("looking at its keys", keys(shelf).map(ask)).await?;
    let mut kinds = [Kind::Missing; 4];
    for ((kind, found), right) in kinds.iter_mut().zip(&found).zip(["hash", "hash", "hash", "stream"]) {
        *kind = match found.as_str() {
            "none" => Kind::Missing,
            found if found == right => Kind::Right,
            _ => Kind::Wrong,
        };
    }
    Ok(kinds)
}

/// How many scripts Redis keeps, and what they take of its memory: text and machine code.
pub async fn scripts(redis: &Redis) -> Result<[i64; 2], Fault> {
    let info: String = redis.run("asking for the scripts' memory", cmd("INFO").arg("memory")).await?;
    let of = |name: &str| {
        let value = info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.parse::<i64>().ok()).unwrap_or(0)
    };
    let bytes = of("used_memory_scripts_eval") + of("used_memory_vm_eval");
    Ok([of("number_of_cached_scripts"), bytes])
}

/// Which start of Redis this is: it changes with a restart and with a promotion.
pub async fn run_id(redis: &Redis) -> Result<String, Fault> {
    let doing = "asking which redis this is";
    let info: String = redis.run(doing, cmd("INFO").arg("server")).await?;
    let id = info.lines().find_map(|line| line.trim().strip_prefix("run_id:"));
    id.map(str::to_owned).ok_or_else(|| Fault::Unreadable { doing, why: "no run_id".to_owned() })
}
