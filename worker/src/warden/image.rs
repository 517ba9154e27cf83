//! One sale segment as Redis holds it, without its orders: those are read page by page ([`super::scan`]).

use std::collections::BTreeMap;

use sluice_shared::clock::Millis;
use sluice_shared::ids::SkuId;
use sluice_shared::keys::Segment;
use sluice_shared::record::Record;
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::SaleStep;

/// How often the shelf is looked at until two looks agree.
const LOOKS: usize = 20;
/// Fields of `meta` that are numbers and change only when the sale does.
pub const NUMBERS: [&str; 4] = ["cfg", "jmax", "starts", "ends"];
/// Types of `meta`, `stock`, `orders` and `journal`.
pub const TYPES: [&str; 4] = ["hash", "hash", "hash", "stream"];

/// Whether a field of `meta` holds what belongs there: a time may be before 1970, a count is never below 0.
pub fn is_number(field: &str, text: &str) -> bool {
    if matches!(field, "starts" | "ends") { text.parse::<i64>().is_ok() } else { text.parse::<u64>().is_ok() }
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

/// A segment's keys, and what `meta` and `stock` say.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// `meta` and `stock`.
    pub head: Head,
    /// Redis' clock just before the head was read.
    pub at: Millis,
    /// What is found under each of the segment's keys.
    pub kinds: [Kind; 4],
    /// Keys and fields of the head that cannot be read.
    pub torn: Vec<String>,
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
    pub async fn read(redis: &Redis, segment: &Segment) -> Result<Self, Fault> {
        let ask = |key: String| cmd("HGETALL").arg(key).to_owned();
        let mut looks = 0;
        loop {
            looks += 1;
            let asked = [segment.meta(), segment.stock(), segment.meta(), segment.stock()].map(ask);
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
        let torn = |field: &&str| meta.get(*field).is_none_or(|text| !is_number(field, text));
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
    /// Reads it.
    pub async fn read(redis: &Redis, segment: &Segment) -> Result<Self, Fault> {
        let mut image =
            Self { at: redis.time().await?, kinds: kinds(redis, segment).await?, ..Self::default() };
        for (key, kind) in keys(segment).into_iter().zip(image.kinds) {
            if kind == Kind::Wrong {
                image.torn.push(format!("{key}, which has another type,"));
            }
            // -2: there is no such key, -1: it does not run out.
            let left: i64 = redis.run("looking how long a key lives", cmd("PTTL").arg(&key)).await?;
            if left >= 0 {
                image.mortal.push(key);
            }
        }
        if !image.kinds[..2].contains(&Kind::Wrong) {
            image.head = Head::read(redis, segment).await?;
            image.torn.extend(image.head.torn.iter().map(|field| format!("meta {field}")));
        }
        Ok(image)
    }

    /// How many of the segment's keys exist.
    pub fn keys(&self) -> usize {
        self.kinds.iter().filter(|kind| **kind != Kind::Missing).count()
    }

    /// Whether there is an order map that can be read.
    pub fn has_orders(&self) -> bool {
        self.kinds[2] == Kind::Right
    }

    /// Whether there is a journal; it is there, empty or not, since the first order.
    pub fn has_journal(&self) -> bool {
        self.kinds[3] == Kind::Right
    }

    /// Whether an order's units were off the shelf when the head was read: the map is read after it.
    pub fn held(&self, record: &Record) -> bool {
        held_then(self, [record.epoch, record.seq], record.released, record.updated)
    }
}

/// The same of an order of this place, whose record last changed then.
pub fn held_then(image: &Image, [epoch, seq]: [u64; 2], released: bool, updated: Millis) -> bool {
    let later = epoch >= image.head.epoch && seq > image.head.seq;
    let released_since = released && updated >= image.at && seq > 0;
    !later && (!released || released_since)
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    #[default]
    Missing,
    /// What belongs there.
    Right,
    /// Something of another type: nobody of ours wrote that.
    Wrong,
}

fn keys(segment: &Segment) -> [String; 4] {
    [segment.meta(), segment.stock(), segment.orders(), segment.journal()]
}

/// What is found under `meta`, `stock`, `orders` and `journal`.
pub async fn kinds(redis: &Redis, segment: &Segment) -> Result<[Kind; 4], Fault> {
    let ask = |key: String| cmd("TYPE").arg(key).to_owned();
    let found: [String; 4] = redis.run_all("looking at its keys", keys(segment).map(ask)).await?;
    let mut kinds = [Kind::Missing; 4];
    for ((kind, found), right) in kinds.iter_mut().zip(&found).zip(TYPES) {
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
