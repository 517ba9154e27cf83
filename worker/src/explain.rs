//! `sluice-worker explain ORDER`: one order's time-line through every stage.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::Segment;
use sluice_shared::record::Record;
use sluice_shared::redis::{Fault, Redis, cmd};

use crate::sources::Sources;
use crate::store::{Store, StoreError};

/// How long one answer of Redis may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The order's id
    #[arg(value_name = "ORDER")]
    order: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What is known of an order, in the order of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimeLine {
    /// The order.
    pub order: OrderId,
    /// Its sale; `None` when the books do not know its number.
    pub sale: Option<SaleId>,
    /// Whether any store knows it.
    pub known: bool,
    /// What happened.
    pub events: Vec<Happening>,
}

/// One thing that happened, or that is so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Happening {
    /// When; `None` for what has not happened yet.
    pub at: Option<String>,
    /// Milliseconds since the token was made.
    pub after_ms: Option<i64>,
    /// Which store says so.
    pub store: &'static str,
    /// What.
    pub what: String,
}

/// Why there is no time-line.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Redis.
    #[error(transparent)]
    Redis(#[from] Fault),
}

/// Gathers what every store knows. Reads only.
pub async fn time_line(store: &Store, redis: &Redis, order: &OrderId) -> Result<TimeLine, ExplainError> {
    let sale = store.sale_of_number(order.sale).await?;
    let token = minted(order);
    let mut seen: Vec<(Option<Millis>, &'static str, String)> = Vec::new();
    if let Some(sale) = &sale {
        let segment = Segment::new(sale.clone(), order.segment);
        shelved(redis, &segment, order, &mut seen).await?;
    }
    let traces = store.traces(order).await?;
    seen.extend(traces.into_iter().map(|trace| (trace.at, trace.table, trace.what)));
    let known = !seen.is_empty();
    seen.insert(0, (Some(token), "token", "the sale token was made, and the order's id with it".to_owned()));
    // What has no time has not happened yet: last. Equal times stay in the order of the stages.
    seen.sort_by_key(|(at, ..)| at.map_or(i64::MAX, |at| at.0));
    let events = seen
        .into_iter()
        .map(|(at, store, what)| Happening {
            at: at.map(Millis::to_text),
            after_ms: at.map(|at| at.0 - token.0),
            store,
            what,
        })
        .collect();
    Ok(TimeLine { order: *order, sale, known, events })
}

/// The first 48 bits of a UUID v7 are its time (RFC 9562 §5.7).
fn minted(order: &OrderId) -> Millis {
    let millis = order.uuid[..6].iter().fold(0_i64, |millis, byte| millis << 8 | i64::from(*byte));
    Millis(millis)
}

/// What the segment's record and journal say.
async fn shelved(
    redis: &Redis,
    segment: &Segment,
    order: &OrderId,
    seen: &mut Vec<(Option<Millis>, &'static str, String)>,
) -> Result<(), Fault> {
    let mut read = cmd("HGET");
    read.arg(segment.orders()).arg(order.field());
    let text: Option<String> = redis.run("reading the record", &read).await?;
    let Some(text) = text else { return Ok(()) };
    let Some(record) = Record::parse(&text) else {
        seen.push((None, "redis", format!("the record cannot be read: {text}")));
        return Ok(());
    };
    let Record { epoch, seq, lines, user, .. } = &record;
    if *seq > 0 {
        let what = format!("accepted: {lines} for {user}, epoch {epoch}, sequence {seq}");
        seen.push((Some(record.accepted), "redis", what));
        let place = format!("{epoch}-{seq}");
        let mut range = cmd("XRANGE");
        range.arg(segment.journal()).arg(&place).arg(&place);
        let entries: Vec<(String, Vec<String>)> = redis.run("reading the journal", &range).await?;
        if !entries.is_empty() {
            let what = format!("journal entry {place} waits for the broker's confirm");
            seen.push((None, "journal", what));
        }
    }
    let units = if record.released { "its units are back on the shelf" } else { "it holds its units" };
    let refund = record.refund.for_buyer().map(|refund| format!(", refund {refund}"));
    let due = record.pay_before.map(|due| format!(", to be paid before {}", due.to_text()));
    let (state, refund, due) = (record.state.as_str(), refund.unwrap_or_default(), due.unwrap_or_default());
    seen.push((Some(record.updated), "redis", format!("is {state}, {units}{refund}{due}")));
    Ok(())
}

impl TimeLine {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let sale = self.sale.as_ref().map_or("an unknown sale", SaleId::as_str);
        // Writing into a String cannot fail.
        let _ = writeln!(text, "order {} of {sale}", self.order);
        let wide = self.events.iter().map(|event| event.store.len()).max().unwrap_or(0);
        for event in &self.events {
            let at = event.at.as_deref().unwrap_or("-");
            let after = event.after_ms.map(|ms| format!("+{ms} ms")).unwrap_or_default();
            let _ = writeln!(text, "  {at:24}  {after:>14}  {:wide$}  {}", event.store, event.what);
        }
        if !self.known {
            let _ = writeln!(text, "no store knows this order: its token was not used, or nothing was sold");
        }
        text
    }
}

/// Prints an order's time-line; answers the exit code: 0 told, 1 nobody knows it, 2 could not read.
pub async fn run(sources: &Sources, args: &Args) -> u8 {
    match command(sources, args).await {
        Ok(line) => {
            if args.json {
                println!("{}", serde_json::to_string_pretty(&line).unwrap_or_default());
            } else {
                print!("{}", line.table());
            }
            u8::from(!line.known)
        }
        Err(error) => {
            eprintln!("sluice-worker explain: {error:#}");
            2
        }
    }
}

async fn command(sources: &Sources, args: &Args) -> anyhow::Result<TimeLine> {
    let order = OrderId::parse(&args.order)
        .ok_or_else(|| anyhow::anyhow!("{:?} is no order id such as 0190…2b-1-0", args.order))?;
    let redis = Redis::lazy(sources.redis_url.reveal(), DEADLINE)?;
    let store = Store::connect(&sources.database).await?;
    Ok(time_line(&store, &redis, &order).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_tells_when_it_was_minted() {
        let before = Millis::now();
        let minted = minted(&OrderId::mint(1, 0));
        assert!((before..=Millis::now()).contains(&minted));
    }
}
