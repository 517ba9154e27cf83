//! Publishes what stays in a journal although nobody here holds it: its edge died or was cut off.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_protocol::edge::held::Parcel;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, parse_field};
use sluice_shared::keys::Segment;
use sluice_shared::message::Accepted;
use sluice_shared::record::{OrderState, Record};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::{SaleStep, SaleView};

use super::core::Core;
use super::sales::{Book, LiveSale};

/// How often journals are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// Journals of sales that are not on are looked at every so many times.
const SELDOM: u64 = 20;
/// How long after its end a sale is still swept.
const AFTERMATH: Duration = Duration::from_mins(1);
/// Entries looked at in one go, a segment.
const PAGE: usize = 1000;

/// One journal entry: epoch, sequence, order.
type Entry = ((u64, u64), [u8; 16]);

/// What is to be done about journal entries. No I/O and no clock.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Left behind by somebody: to be published.
    publish: Vec<(Entry, Record)>,
    /// Written to the books already: to be deleted.
    delete: Vec<(u64, u64)>,
}

/// Sorts out entries that nobody here holds. Young ones are still with their edge; what is beyond
/// `accepted` has its row. An entry from the future was accepted before Redis' clock went back. One
/// without a record is nothing that a script of ours leaves: it stays for the warden.
fn plan(entries: &[Entry], records: Vec<Option<Record>>, now: Millis, after: Duration) -> Plan {
    let mut plan = Plan::default();
    for (entry, record) in entries.iter().zip(records) {
        let Some(record) = record else { continue };
        if record.state != OrderState::Accepted || record.released {
            plan.delete.push(entry.0);
        } else if now >= record.accepted.after(after) || record.accepted >= now.after(after) {
            plan.publish.push((*entry, record));
        }
    }
    plan
}

/// Where the next look at a journal begins: after a full page the one behind it, else its start.
fn resume(page: &[Entry]) -> Option<(u64, u64)> {
    page.last().filter(|_| page.len() == PAGE).map(|(entry, _)| *entry)
}

/// Sweeps for as long as the engine runs.
pub(crate) async fn run(core: Arc<Core>, book: Arc<Book>, redis: Redis) {
    let mut cursors = std::collections::HashMap::<Arc<Segment>, (u64, u64)>::new();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0_u64;
    loop {
        tick.tick().await;
        let (sales, now, mut depth) = (book.now(), core.clock.now(), 0);
        let (all, on) = (round.is_multiple_of(SELDOM), |sale: &LiveSale| is_on(&sale.view, now));
        round += 1;
        for sale in sales.all().filter(|sale| all || on(sale)) {
            for desk in sale.desks() {
                let (segment, number) = (desk.segment(), sale.view.number);
                match sweep(&core, &redis, segment, number, cursors.get(segment).copied()).await {
                    Ok(swept) => {
                        depth += swept.depth;
                        match swept.resume {
                            Some(cursor) => cursors.insert(Arc::clone(segment), cursor),
                            None => cursors.remove(segment),
                        };
                    }
                    Err(why) => tracing::debug!(segment = segment.name(), %why, "journal not swept"),
                }
            }
        }
        core.metrics.journal.set(super::metrics::number(depth));
        cursors.retain(|segment, _| sales.all().any(|sale| sale.view.sale == segment.sale));
    }
}

fn is_on(view: &SaleView, now: Millis) -> bool {
    view.step != SaleStep::Preloaded && now < view.ends_at.after(AFTERMATH)
}

struct Swept {
    depth: usize,
    resume: Option<(u64, u64)>,
}

async fn sweep(
    core: &Core,
    redis: &Redis,
    segment: &Arc<Segment>,
    number: u32,
    from: Option<(u64, u64)>,
) -> Result<Swept, Fault> {
    let depth: usize = redis.run("measuring a journal", cmd("XLEN").arg(segment.journal())).await?;
    if depth == 0 || !core.publishes() || core.draining.load(Ordering::Relaxed) {
        return Ok(Swept { depth, resume: from.filter(|_| depth > 0) });
    }
    let page = page(redis, segment, from).await?;
    let resume = resume(&page);
    let strangers: Vec<Entry> = {
        let (held, dues) = (core.held(), core.dues());
        let closed = held.closed(segment);
        let id = |uuid| OrderId { uuid, sale: number, segment: segment.index };
        let ours = |(entry, uuid): &Entry| held.holds(&id(*uuid)) || dues.contains(segment, *entry);
        page.into_iter().filter(|entry| entry.0.0 > closed && !ours(entry)).collect()
    };
    if !strangers.is_empty() {
        let records = records(redis, segment, &strangers).await?;
        let plan = plan(&strangers, records, core.clock.now(), core.config.sweep_after);
        carry_out(core, segment, number, plan);
    }
    Ok(Swept { depth, resume })
}

fn carry_out(core: &Core, segment: &Arc<Segment>, number: u32, plan: Plan) {
    let mut swept = 0;
    for ((entry, uuid), record) in plan.publish {
        let message = Accepted::of(segment, number, uuid, &record);
        let Some(parcel) = Parcel::new(segment, entry, message) else { continue };
        let Some(place) = core.room.take() else { break };
        swept += u64::from(core.held().adopt(parcel, place, Instant::now()));
    }
    if swept > 0 {
        tracing::info!(segment = segment.name(), swept, "publishing orders that another edge left behind");
        core.metrics.swept.inc_by(swept);
        core.publish.notify_one();
    }
    if !plan.delete.is_empty() {
        let mut dues = core.dues();
        plan.delete.into_iter().for_each(|entry| dues.add(segment, entry));
        drop(dues);
        core.erase.notify_one();
    }
}

async fn page(redis: &Redis, segment: &Segment, from: Option<(u64, u64)>) -> Result<Vec<Entry>, Fault> {
    let start = from.map_or_else(|| "-".to_owned(), |(epoch, seq)| format!("({epoch}-{seq}"));
    let mut range = cmd("XRANGE");
    range.arg(segment.journal()).arg(start).arg("+").arg("COUNT").arg(PAGE);
    let rows: Vec<(String, Vec<String>)> = redis.run("reading a journal", &range).await?;
    let read = |(id, fields): &(String, Vec<String>)| {
        let (epoch, seq) = id.split_once('-')?;
        let order = fields.chunks_exact(2).find(|pair| pair[0] == "o").map(|pair| &pair[1])?;
        Some(((epoch.parse().ok()?, seq.parse().ok()?), parse_field(order)?))
    };
    let entries: Vec<Entry> = rows.iter().filter_map(read).collect();
    if entries.len() < rows.len() {
        tracing::error!(segment = segment.name(), "a journal holds entries that no script of ours wrote");
    }
    Ok(entries)
}

async fn records(redis: &Redis, segment: &Segment, entries: &[Entry]) -> Result<Vec<Option<Record>>, Fault> {
    let mut get = cmd("HMGET");
    get.arg(segment.orders());
    for (_, uuid) in entries {
        get.arg(OrderId { uuid: *uuid, sale: 0, segment: 0 }.field());
    }
    let texts: Vec<Option<String>> = redis.run("reading records", &get).await?;
    Ok(texts.iter().map(|text| text.as_deref().and_then(Record::parse)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(1);

    fn judge(record: &str, now: i64) -> Plan {
        plan(&[((1, 7), [9; 16])], vec![Record::parse(record)], Millis(now), AFTER)
    }

    #[test]
    fn an_old_entry_is_published_and_a_young_one_left_to_its_edge() {
        let record = "Ah|1|7|5000|5000|0|-|phone=1|u";
        assert_eq!(judge(record, 5999), Plan::default());
        let plan = judge(record, 6000);
        assert_eq!((plan.publish.len(), plan.delete.len()), (1, 0));
    }

    #[test]
    fn an_entry_from_the_future_is_published() {
        let record = "Ah|1|7|1000000|1000000|0|-|phone=1|ann";
        assert_eq!(judge(record, 1_000_000 - AFTER.as_millis() as i64).publish.len(), 1);
        assert_eq!(judge(record, 999_999).publish.len(), 0);
    }

    #[test]
    fn an_entry_is_deleted_unpublished_only_when_its_order_has_a_row() {
        for record in ["Ph|1|7|5000|5000|0|-|phone=1|u", "Cr|1|7|5000|5000|0|-|phone=1|u"] {
            let plan = judge(record, 5000);
            assert_eq!((plan.publish.len(), plan.delete.as_slice()), (0, [(1, 7)].as_slice()), "{record}");
        }
        assert_eq!(judge("torn", 9_000_000), Plan::default());
    }

    #[test]
    fn a_full_page_leads_on_and_the_last_one_back_to_the_start() {
        let entry = |seq| ((1, seq), [0; 16]);
        let full: Vec<Entry> = (0..PAGE as u64).map(entry).collect();
        assert_eq!(resume(&full), Some((1, PAGE as u64 - 1)));
        assert_eq!(resume(&full[1..]), None);
        assert_eq!(resume(&[]), None);
    }
}
