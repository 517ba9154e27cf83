//! Reads stock and, where a SKU is sold out, the ids of the sale's orders: what the latch judges by.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashSet;
use futures_util::StreamExt;
use sluice_shared::ids::{SaleId, SkuId, parse_field};
use sluice_shared::keys::Segment;
use sluice_shared::redis::{Fault, Redis, cmd};

use super::core::Core;
use super::sales::{Book, LiveSale};

/// How often the stock of a selling sale is read.
const EVERY: Duration = Duration::from_millis(500);
/// The stock of a sale that does not sell is read every so many times.
const SELDOM: u64 = 10;
/// Sales whose stock is read at the same time.
const ABREAST: usize = 32;
/// Fields in one step of a scan.
const STEP: usize = 1000;
/// Reading ids again waits this many times as long as it took: a large sale that sells unit by unit
/// must not be read all the time.
const REST: u32 = 10;
/// Order ids of one sale, at the most; a larger sale is never latched.
const IDS: usize = 4_000_000;

/// When the ids of each sale may be read again.
type Rests = HashMap<SaleId, Instant>;

/// Reads for as long as the engine runs.
pub(crate) async fn run(core: Arc<Core>, book: Arc<Book>, redis: Redis) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut round, mut rests) = (0_u64, Rests::new());
    loop {
        tick.tick().await;
        let (sales, now) = (book.now(), core.clock.now());
        let often = |sale: &LiveSale| sale.sells(now) || sale.latch().unread();
        let due = sales.all().map(Arc::as_ref).filter(|sale| often(sale) || round.is_multiple_of(SELDOM));
        let look = |sale| {
            let redis = &redis;
            async move {
                read(redis, sale).await;
            }
        };
        futures_util::stream::iter(due).for_each_concurrent(ABREAST, look).await;
        round += 1;
        rests.retain(|_, until| *until > Instant::now());
        for sale in sales.all().filter(|sale| sale.sells(now)) {
            if rests.contains_key(&sale.view.sale) {
                continue;
            }
            let start = Instant::now();
            if ids(&redis, sale).await {
                rests.insert(sale.view.sale.clone(), Instant::now() + start.elapsed() * REST);
            }
        }
    }
}

/// Reads every segment's stock and sequence; answers whether all could be read.
async fn read(redis: &Redis, sale: &LiveSale) -> bool {
    let mut all = true;
    for desk in sale.desks() {
        let (segment, latch) = (desk.segment(), sale.latch());
        let releases = latch.releases();
        match stock(redis, segment).await {
            Ok(Some((left, seq))) => latch.read(segment.index, &left, seq, releases),
            Ok(None) => all = false,
            Err(why) => {
                tracing::debug!(segment = segment.name(), %why, "stock not read");
                all = false;
            }
        }
    }
    all
}

/// Units left by SKU, and the sequence before they were read; `None` where the keys are gone.
async fn stock(redis: &Redis, segment: &Segment) -> Result<Option<(Vec<(SkuId, u64)>, u64)>, Fault> {
    let doing = "reading the stock";
    let seq: Option<u64> = redis.run(doing, cmd("HGET").arg(segment.meta()).arg("seq")).await?;
    let left: Vec<(String, u64)> = redis.run(doing, cmd("HGETALL").arg(segment.stock())).await?;
    let known = |(sku, units): (String, u64)| SkuId::parse(&sku).ok().map(|sku| (sku, units));
    Ok(seq.map(|seq| (left.into_iter().filter_map(known).collect(), seq)))
}

/// Reads the order ids of a sale where its latch wants them; answers whether it did.
async fn ids(redis: &Redis, sale: &LiveSale) -> bool {
    let Some(asked) = sale.latch().wants_ids() else { return false };
    let mut ids = AHashSet::new();
    for desk in sale.desks() {
        if let Err(why) = scan(redis, desk.segment(), &mut ids).await {
            tracing::debug!(segment = desk.segment().name(), %why, "order ids not read");
            return true;
        }
        if ids.len() > IDS {
            return true;
        }
    }
    // Whoever sold meanwhile has raised a sequence.
    if read(redis, sale).await {
        sale.latch().ids(ids, asked);
    }
    true
}

async fn scan(redis: &Redis, segment: &Segment, ids: &mut AHashSet<[u8; 16]>) -> Result<(), Fault> {
    let mut cursor = "0".to_owned();
    loop {
        let mut step = cmd("HSCAN");
        step.arg(segment.orders()).arg(&cursor).arg("COUNT").arg(STEP);
        let (next, found): (String, Vec<(String, String)>) = redis.run("reading order ids", &step).await?;
        ids.extend(found.iter().filter_map(|(field, _)| parse_field(field)));
        if next == "0" || ids.len() > IDS {
            return Ok(());
        }
        cursor = next;
    }
}
