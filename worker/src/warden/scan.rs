//! A segment's order map and journal, page by page: whoever goes through them holds two pages, however
//! many orders there are.
//!
//! `HSCAN` gives every field that is there all the time, and each once: it gives one twice only when the
//! map shrinks meanwhile, and an order map does not. Records stay in it, and there is at most one mark to each.

use std::time::Duration;

use sluice_shared::ids::{UserId, parse_field};
use sluice_shared::keys::Segment;
use sluice_shared::lines::LinesPool;
use sluice_shared::record::Record;
use sluice_shared::redis::{Fault, Redis, cmd};
use tokio::task::JoinSet;

use super::mark::Mark;

/// Fields or entries in one page. A buyer may have to wait for it: it takes 1.3 ms of Redis' time.
pub const PAGE: usize = 2_000;

/// A field of the order map.
#[derive(Debug, Clone)]
pub enum Field {
    /// An order.
    Order([u8; 16], Record),
    /// What a buyer holds.
    Mark(UserId, Mark),
    /// What cannot be read.
    Torn(String),
}

/// What of the order map is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Everything.
    All,
    /// Everything but marks.
    Orders,
}

type Page = (u64, Vec<(String, String)>);

/// The order map, page by page.
#[derive(Debug)]
pub struct Scan {
    redis: Redis,
    key: String,
    wanted: Wanted,
    /// The next page: Redis answers with it while the one before is looked at.
    next: JoinSet<Result<Page, Fault>>,
    pool: LinesPool,
}

impl Scan {
    /// From the first page.
    pub fn of(redis: &Redis, segment: &Segment, wanted: Wanted) -> Self {
        let (next, pool) = (JoinSet::new(), LinesPool::default());
        let mut scan = Self { redis: redis.clone(), key: segment.orders(), wanted, next, pool };
        scan.ask(0);
        scan
    }

    fn ask(&mut self, cursor: u64) {
        let mut ask = cmd("HSCAN");
        ask.arg(&self.key).arg(cursor).arg("COUNT").arg(PAGE);
        if self.wanted == Wanted::Orders {
            ask.arg("MATCH").arg("[^@]*");
        }
        let redis = self.redis.clone();
        self.next.spawn(async move { redis.run("reading the order map", &ask).await });
    }

    /// The next page, which may be empty; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<Field>>, Fault> {
        let Some(answer) = self.next.join_next().await else { return Ok(None) };
        let lost = |error: tokio::task::JoinError| Fault::Unknown {
            doing: "reading the order map",
            why: error.to_string(),
        };
        let (cursor, page) = answer.map_err(lost)??;
        if cursor != 0 {
            self.ask(cursor);
        }
        // A mark without units is of a buyer whose orders have all ended.
        let holds = |field: &Field| !matches!(field, Field::Mark(_, mark) if mark.is_empty());
        Ok(Some(page.into_iter().map(|(field, value)| self.read(field, &value)).filter(holds).collect()))
    }

    /// The orders of the next page.
    pub async fn next_orders(&mut self) -> Result<Option<Vec<([u8; 16], Record)>>, Fault> {
        let order = |field| match field {
            Field::Order(uuid, record) => Some((uuid, record)),
            Field::Mark(..) | Field::Torn(_) => None,
        };
        Ok(self.next().await?.map(|page| page.into_iter().filter_map(order).collect()))
    }

    fn read(&mut self, field: String, value: &str) -> Field {
        let read = match field.strip_prefix('@') {
            Some(user) => {
                UserId::parse(user).ok().zip(Mark::parse(value)).map(|(user, mark)| Field::Mark(user, mark))
            }
            None => parse_field(&field)
                .zip(Record::parse_shared(value, &mut self.pool))
                .map(|(uuid, record)| Field::Order(uuid, record)),
        };
        read.unwrap_or(Field::Torn(field))
    }
}

/// The records of these orders, in their order; none where there is no such field, or it is torn.
pub async fn records(
    redis: &Redis,
    segment: &Segment,
    uuids: &[[u8; 16]],
) -> Result<Vec<Option<Record>>, Fault> {
    let (mut pool, mut records) = (LinesPool::default(), Vec::with_capacity(uuids.len()));
    for page in uuids.chunks(PAGE) {
        let mut ask = cmd("HMGET");
        ask.arg(segment.orders());
        for uuid in page {
            ask.arg(hex::encode(uuid));
        }
        let texts: Vec<Option<String>> = redis.run("reading records", &ask).await?;
        records.extend(texts.iter().map(|text| Record::parse_shared(text.as_deref()?, &mut pool)));
    }
    Ok(records)
}

/// An entry of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The epoch in its id.
    pub epoch: u64,
    /// The sequence in its id.
    pub seq: u64,
    /// The order that it names.
    pub order: [u8; 16],
}

/// The journal, page by page.
#[derive(Debug)]
pub struct Journal {
    redis: Redis,
    key: String,
    from: String,
    to: String,
}

impl Journal {
    /// From the first entry.
    pub fn of(redis: &Redis, segment: &Segment) -> Self {
        Self { redis: redis.clone(), key: segment.journal(), from: "-".to_owned(), to: "+".to_owned() }
    }

    /// Of the entries that are there now; `None` when there are none.
    pub async fn of_now(redis: &Redis, segment: &Segment) -> Result<Option<Self>, Fault> {
        let mut last = cmd("XREVRANGE");
        last.arg(segment.journal()).arg("+").arg("-").arg("COUNT").arg(1);
        let last: Vec<(String, Vec<String>)> = redis.run("reading the journal", &last).await?;
        Ok(last.into_iter().next().map(|(to, _)| Self { to, ..Self::of(redis, segment) }))
    }

    /// The next entries, and the ids of those that cannot be read; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<(Vec<Entry>, Vec<String>)>, Fault> {
        let mut range = cmd("XRANGE");
        range.arg(&self.key).arg(&self.from).arg(&self.to).arg("COUNT").arg(PAGE);
        let page: Vec<(String, Vec<String>)> = self.redis.run("reading the journal", &range).await?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        self.from = format!("({last}");
        let (mut entries, mut torn) = (Vec::with_capacity(page.len()), Vec::new());
        for (id, fields) in page {
            let order = fields.get(1).and_then(|order| parse_field(order));
            let place = id.split_once('-').and_then(|(e, s)| Some((e.parse().ok()?, s.parse().ok()?)));
            match (place, order) {
                (Some((epoch, seq)), Some(order)) => entries.push(Entry { epoch, seq, order }),
                _ => torn.push(id),
            }
        }
        Ok(Some((entries, torn)))
    }
}

/// How long Redis has worked on `HSCAN` since it started, for whomever: what a scan has taken of its time,
/// at the most.
pub async fn time_spent(redis: &Redis) -> Result<Duration, Fault> {
    let info: String = redis.run("asking what takes time", cmd("INFO").arg("commandstats")).await?;
    let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_hscan:"));
    let micros =
        line.and_then(|line| line.split(',').find_map(|part| part.strip_prefix("usec="))?.parse().ok());
    Ok(Duration::from_micros(micros.unwrap_or(0)))
}
