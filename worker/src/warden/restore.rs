//! Puts a segment on the shelf as the books have it, under the next epoch: for one that lost data.
//!
//! It is made under names that belong to the epoch, so that a warden who dies meanwhile, or who still
//! works although another one leads, is in nobody's way; and one script puts it in the place of what was
//! there. That is kept for a day.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use sluice_shared::ids::{OrderId, SkuId};
use sluice_shared::keys::Segment;
use sluice_shared::record::Record;
use sluice_shared::redis::{Cmd, Fault, Redis, cmd};
use sluice_shared::script::{Preload, Preloaded, Raised};
use tokio::sync::Semaphore;

use super::mark::Mark;
use super::verify::Ledgered;
use super::{Trouble, Warden};
use crate::store::books::OrderFact;

/// Fields in one command.
const PAGE: usize = 500;
/// What is made anew is gone after this, should nobody put it on the shelf.
const STAGED: Duration = Duration::from_secs(3600);
/// How long what was replaced is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Restores a segment. `new` is how the sale stands, with the units that the segment is given; `seq` is
/// the highest sequence that anybody has seen.
pub(super) async fn restore(
    warden: &Warden,
    segment: &Segment,
    mut new: Preload,
    books: &Ledgered,
    seq: u64,
) -> Result<(), Trouble> {
    let given = books.given.clone().unwrap_or_default();
    for (sku, units, _) in &mut new.items {
        *units = given.get(sku).copied().unwrap_or(0);
    }
    stage(warden, segment, &new).await?;
    let [meta, stock, orders, journal] = segment.staged(new.epoch);
    for key in [&meta, &stock] {
        expire(warden, key).await?;
    }
    let (held, restored) = restore_orders(warden, segment, &orders).await?;
    let mut left = BTreeMap::new();
    for (sku, units, _) in &new.items {
        left.insert(sku.clone(), remaining(sku, *units, &held)?.to_string());
    }
    // The scripts take a missing order map for lost data once there is a sequence.
    let seq = if restored == 0 { 0 } else { seq };
    let changes = books.changes.iter();
    let changes = changes.filter_map(|(key, sku)| Some((format!("adjust:{key}"), left.get(sku)?.clone())));
    write(warden, &meta, changes.chain([("seq".to_owned(), seq.to_string())])).await?;
    write(warden, &stock, left.iter().map(|(sku, n)| (sku.to_string(), n.clone()))).await?;
    // As they take a missing journal: it is there, and empty.
    let (begins, redis) = (format!("{}-0", new.epoch), warden.redis());
    redis.run::<String>("restoring", cmd("XADD").arg(&journal).arg(&begins).arg("o").arg("-")).await?;
    expire(warden, &journal).await?;
    redis.run::<u64>("restoring", cmd("XDEL").arg(&journal).arg(&begins)).await?;
    match warden.scripts.restore(redis, segment, new.epoch, KEPT).await? {
        Raised::Raised => Ok(()),
        Raised::Frozen(why) => Err(Trouble::Odd(format!("the restored segment: {why:?}"))),
    }
}

/// Writes the records of all rows, and what their buyers hold, page by page; answers the units that are held,
/// and how many orders there are. All rows are of one instant: what becomes of an order later is told by its
/// message, as ever.
async fn restore_orders(warden: &Warden, segment: &Segment, key: &str) -> Result<(Mark, usize), Trouble> {
    let store = &warden.context.store;
    let mut snapshot = store.bounded(store.books(&segment.sale)).await?;
    let (mut held, mut restored, mut after) = (Mark::default(), 0, String::new());
    loop {
        let page = store.bounded(snapshot.orders_after(&after)).await?;
        let Some((last, _)) = page.last() else { break };
        after = last.to_string();
        let ours: Vec<(OrderId, OrderFact)> =
            page.into_iter().filter(|(id, _)| id.segment == segment.index).collect();
        let mut marks = BTreeMap::<&str, Mark>::new();
        for (_, row) in ours.iter().filter(|(_, row)| row.live) {
            held.add(&row.lines);
            marks.entry(row.user.as_str()).or_default().add(&row.lines);
        }
        add_marks(warden.redis(), key, &mut marks).await?;
        let records = ours.iter().map(|(id, row)| (id.field(), record(row).to_string()));
        let marks = marks.into_iter().map(|(user, mark)| (format!("@{user}"), mark.to_string()));
        write(warden, key, records.chain(marks)).await?;
        restored += ours.len();
    }
    store.bounded(snapshot.close()).await?;
    Ok((held, restored))
}

/// Adds to marks what earlier pages have written of the same buyers.
async fn add_marks(redis: &Redis, key: &str, marks: &mut BTreeMap<&str, Mark>) -> Result<(), Trouble> {
    let users: Vec<&str> = marks.keys().copied().collect();
    for page in users.chunks(PAGE) {
        let mut ask = cmd("HMGET");
        ask.arg(key);
        for user in page {
            ask.arg(format!("@{user}"));
        }
        let texts: Vec<Option<String>> = redis.run("restoring", &ask).await?;
        for (user, text) in page.iter().zip(texts) {
            let Some(text) = text else { continue };
            let earlier = Mark::parse(&text);
            let earlier =
                earlier.ok_or_else(|| Trouble::Odd("a mark that was written is torn".to_owned()))?;
            marks.entry(*user).or_default().join(&earlier);
        }
    }
    Ok(())
}

/// Deletes what was made anew for an epoch and is not on the shelf.
pub(super) async fn forget(warden: &Warden, segment: &Segment, epoch: u64) -> Result<(), Fault> {
    let unlink = cmd("UNLINK").arg(&segment.staged(epoch)[..]).to_owned();
    warden.redis().run::<u64>("forgetting a copy", &unlink).await.map(|_| ())
}

/// The segment beside the shelf, without orders.
async fn stage(warden: &Warden, segment: &Segment, new: &Preload) -> Result<(), Trouble> {
    let (scripts, redis) = (&warden.scripts, warden.redis());
    let staged = match scripts.stage(redis, segment, new).await {
        Err(Fault::NoScript { .. }) => {
            scripts.load(redis).await?;
            scripts.stage(redis, segment, new).await?
        }
        answer => answer?,
    };
    match staged {
        Preloaded::Preloaded => Ok(()),
        other => Err(Trouble::Odd(format!("a segment that is made anew: {other:?}"))),
    }
}

/// Units that nobody holds.
fn remaining(sku: &SkuId, units: u64, held: &Mark) -> Result<u64, Trouble> {
    let held = held.get(sku);
    let less = || Trouble::Odd(format!("{sku}: the books hold {held} units of {units}"));
    units.checked_sub(held).ok_or_else(less)
}

/// Writes fields of a hash, some pages at once; other sales have their turn between them.
async fn write(
    warden: &Warden,
    key: &str,
    fields: impl IntoIterator<Item = (String, String)>,
) -> Result<(), Fault> {
    let mut fields: Vec<(String, String)> = fields.into_iter().collect();
    let pages = std::iter::from_fn(move || {
        let page = fields.split_off(fields.len().saturating_sub(PAGE));
        (!page.is_empty()).then_some(page)
    });
    let set = |page| set(warden.redis().clone(), warden.restoring.clone(), key.to_owned(), page);
    let mut written = stream::iter(pages).map(set).buffer_unordered(super::RESTORING);
    while written.next().await.transpose()?.is_some() {}
    Ok(())
}

/// Writes a page when there is room for it. The key is mortal again with each: a warden that was held up
/// may write to what its successor has deleted meanwhile.
async fn set(
    redis: Redis,
    room: Arc<Semaphore>,
    key: String,
    page: Vec<(String, String)>,
) -> Result<(), Fault> {
    let mut set = cmd("HSET");
    set.arg(&key);
    for (field, value) in page {
        set.arg(field).arg(value);
    }
    // Never closed.
    let _room = room.acquire().await;
    let (_, _): (u64, u64) = redis.run_all("restoring", [set, expiry(&key)]).await?;
    Ok(())
}

fn expiry(key: &str) -> Cmd {
    cmd("EXPIRE").arg(key).arg(STAGED.as_secs()).to_owned()
}

/// A warden may die at any moment, and nobody comes back to what it has begun.
async fn expire(warden: &Warden, key: &str) -> Result<(), Fault> {
    warden.redis().run::<u64>("restoring", &expiry(key)).await.map(|_| ())
}

fn record(row: &OrderFact) -> Record {
    Record {
        state: row.state,
        released: !row.live,
        epoch: row.epoch,
        seq: row.seq,
        accepted: row.accepted,
        updated: row.updated,
        pay_before: Some(row.pay_before),
        refund: row.refund,
        lines: row.lines.clone(),
        user: row.user.clone(),
    }
}
