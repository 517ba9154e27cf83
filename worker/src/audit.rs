//! `sluice-worker audit`: proves from the books that nothing was lost, oversold or leaked, or names
//! what was.
//!
//! Redis is read before PostgreSQL, so that whatever happens in between can only make an order look
//! further than its record, never the reverse. What is under way is no difference while it is young,
//! and a difference counts only when it is seen at every look.

pub mod broker;
pub mod chain;
pub mod equations;
pub mod gather;
pub mod gauge;
mod memory;
pub mod names;
pub mod print;
pub mod rows;
pub mod segment;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use sluice_shared::clock::Millis;
use sluice_shared::ids::SaleId;
use sluice_shared::redis::{Fault, Redis};

use crate::sources::Sources;
use crate::store::{Store, StoreError};

use broker::Depths;

/// Looks at a difference before it is one.
const LOOKS: usize = 4;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Offenders that are named, at the most.
const NAMED: usize = 50;
/// How long one answer of Redis may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this sale; else all that have books
    #[arg(long, value_name = "S")]
    sale: Option<String>,
    /// Wait until nothing is under way, at most this long: 30s, 2m
    #[arg(long, value_name = "T", value_parser = span)]
    wait: Option<Duration>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Give up before it takes more than so many MiB of memory
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(50..))]
    memory: Option<u64>,
    /// Also write what came of it into this file, as metrics for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

/// Why the books could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Redis.
    #[error(transparent)]
    Redis(#[from] Fault),
    /// There is no such sale.
    #[error("there is no sale {0} in the books")]
    UnknownSale(SaleId),
}

/// What the books say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether every equation of every sale holds.
    pub balanced: bool,
    /// Whether nothing was under way.
    pub at_rest: bool,
    /// When it was looked last.
    pub at: String,
    /// How often it was looked.
    pub looks: usize,
    /// One a sale.
    pub sales: Vec<SaleReport>,
}

/// One sale's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SaleReport {
    /// The sale.
    pub sale: SaleId,
    /// Where it is in its life.
    pub state: &'static str,
    /// Whether every equation holds.
    pub balanced: bool,
    /// Whether nothing was under way.
    pub at_rest: bool,
    /// Whether Redis still has it; else only PostgreSQL's side was judged.
    pub in_redis: bool,
    /// Where every unit is.
    pub units: Vec<Units>,
    /// The equations.
    pub equations: Vec<Equation>,
    /// What else an operator should know.
    pub notes: Vec<String>,
}

/// Where every unit of a SKU is: `preloaded + added − withdrawn = left + journalled + in_broker + held
/// + sold`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Units {
    /// The SKU.
    pub sku: String,
    /// Put on sale at first (ledger).
    pub preloaded: i64,
    /// Added since (ledger).
    pub added: i64,
    /// Withdrawn since (ledger).
    pub withdrawn: i64,
    /// On the shelf (Redis).
    pub left: i64,
    /// Accepted and in the journal, without a row (Redis).
    pub journalled: i64,
    /// Accepted, handed over, without a row.
    pub in_broker: i64,
    /// In orders that wait for money, or on their way back (PostgreSQL).
    pub held: i64,
    /// In paid orders (PostgreSQL).
    pub sold: i64,
    /// Left side minus right side.
    pub difference: i64,
}

/// One equation in one scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Equation {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub says: &'static str,
    /// Of which SKU or segment; empty: of the sale.
    pub scope: String,
    /// The left side.
    pub left: i64,
    /// The right side.
    pub right: i64,
    /// Left minus right.
    pub difference: i64,
    /// Whether it holds.
    pub holds: bool,
    /// Orders, users or lines that break it: the first 50.
    pub offenders: Vec<String>,
    /// How many break it.
    pub offending: usize,
}

/// Judges the books of one sale, or of all: what the back office shows. Reads only.
pub async fn judge(store: &Store, redis: &Redis, sale: Option<&SaleId>) -> Result<Report, AuditError> {
    look_until(store, redis, sale, None, None).await
}

/// Looks until the books balance (with `wait`: and nothing is under way), or it has looked enough.
async fn look_until(
    store: &Store,
    redis: &Redis,
    sale: Option<&SaleId>,
    broker: Option<&broker::Broker>,
    wait: Option<Duration>,
) -> Result<Report, AuditError> {
    let end = wait.map(|wait| Instant::now() + wait);
    let mut broken: Vec<BTreeSet<String>> = Vec::new();
    for look in 1.. {
        let depths = match broker {
            Some(broker) => broker.depths().await,
            None => None,
        };
        let mut report = once(store, redis, sale, depths).await?;
        report.looks = look;
        let breaches = report.breaches();
        if let Some(first) = breaches.first() {
            tracing::debug!(look, count = breaches.len(), first, "this look found differences");
        }
        broken.push(breaches);
        let rested = report.at_rest || wait.is_none();
        if report.balanced && rested {
            return Ok(report);
        }
        let enough = look >= LOOKS || report.balanced;
        if enough && end.is_none_or(|end| Instant::now() >= end) {
            // Only what broke at each of the last looks is broken.
            let last = &broken[broken.len().saturating_sub(LOOKS)..];
            let always = last.iter().skip(1).fold(last[0].clone(), |kept, seen| &kept & seen);
            report.keep_only(&always);
            return Ok(report);
        }
        tokio::time::sleep(PAUSE).await;
    }
    // The loop above only ends by returning; this is what it would look at last.
    once(store, redis, sale, None).await
}

async fn once(
    store: &Store,
    redis: &Redis,
    sale: Option<&SaleId>,
    depths: Option<Depths>,
) -> Result<Report, AuditError> {
    let sales = match sale {
        Some(sale) => vec![sale.clone()],
        None => store.booked_sales().await?,
    };
    let mut reports = Vec::with_capacity(sales.len());
    for sale in &sales {
        reports.push(match gather::gather(store, redis, sale).await {
            Ok(books) => equations::judge(&books, depths),
            Err(AuditError::Store(StoreError::Broken(what))) => unreadable(sale, what),
            Err(error) => return Err(error),
        });
    }
    Ok(Report {
        balanced: reports.iter().all(|report| report.balanced),
        at_rest: reports.iter().all(|report| report.at_rest),
        at: Millis::now().to_text(),
        looks: 1,
        sales: reports,
    })
}

/// Rows that hold what no row of ours holds are a difference, not an outage.
fn unreadable(sale: &SaleId, what: String) -> SaleReport {
    let equation = Equation {
        name: "P0",
        says: "every row can be read",
        scope: String::new(),
        left: 1,
        right: 0,
        difference: 1,
        holds: false,
        offenders: vec![what],
        offending: 1,
    };
    SaleReport {
        sale: sale.clone(),
        state: "unreadable",
        balanced: false,
        at_rest: false,
        in_redis: false,
        units: Vec::new(),
        equations: vec![equation],
        notes: Vec::new(),
    }
}

impl Report {
    /// Every breach by name: what has to be seen again to count.
    fn breaches(&self) -> BTreeSet<String> {
        let mut breaches = BTreeSet::new();
        for sale in &self.sales {
            for equation in sale.equations.iter().filter(|equation| !equation.holds) {
                let key = format!("{}/{}/{}", sale.sale, equation.name, equation.scope);
                breaches.extend(equation.offenders.iter().map(|who| format!("{key}/{who}")));
                // Whoever is not named may be broken every time.
                if equation.offending > equation.offenders.len() || equation.offenders.is_empty() {
                    breaches.insert(key);
                }
            }
        }
        breaches
    }

    fn keep_only(&mut self, breaches: &BTreeSet<String>) {
        for sale in &mut self.sales {
            for equation in sale.equations.iter_mut().filter(|equation| !equation.holds) {
                let key = format!("{}/{}/{}", sale.sale, equation.name, equation.scope);
                let seen = |who: &String| breaches.contains(&format!("{key}/{who}"));
                let kept = breaches.contains(&key) || equation.offenders.iter().any(seen);
                equation.holds = !kept;
                // Those that were only under way are not told with those that stay.
                equation.offenders.retain(seen);
                equation.offenders.truncate(NAMED);
            }
            sale.balanced = sale.equations.iter().all(|equation| equation.holds);
        }
        self.balanced = self.sales.iter().all(|sale| sale.balanced);
    }
}

/// Prints the audit; answers the exit code: 0 balanced, 1 not, 2 could not read.
pub async fn run(sources: &Sources, args: &Args) -> u8 {
    let audited = match args.memory {
        None => command(sources, args).await,
        Some(most) => tokio::select! {
            audited = command(sources, args) => audited,
            () = memory::over(most << 20) => Err(anyhow::anyhow!("it needs more than {most} MiB of memory")),
        },
    };
    match audited {
        Ok(report) => {
            if args.json {
                println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
            } else {
                print!("{}", print::table(&report));
            }
            u8::from(!report.balanced)
        }
        Err(error) => {
            eprintln!("sluice-worker audit: {error:#}");
            2
        }
    }
}

async fn command(sources: &Sources, args: &Args) -> anyhow::Result<Report> {
    let began = Instant::now();
    let sale = args.sale.as_deref().map(SaleId::parse).transpose()?;
    let redis = Redis::lazy(sources.redis_url.reveal(), DEADLINE)?;
    let store = Store::connect(&sources.database).await?;
    let broker = broker::Broker::of(sources);
    let report = look_until(&store, &redis, sale.as_ref(), broker.as_ref(), args.wait).await?;
    if let Some(file) = &args.metrics {
        let text = gauge::text(&report, began.elapsed(), Millis::now().seconds());
        gauge::write(file, &text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(report)
}

/// Reads `500ms`, `30s`, `2m`; a number alone is seconds.
fn span(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no time such as 30s"))?;
    match &text[digits.len()..] {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        unit => Err(format!("{unit:?} is no unit of time: ms, s or m")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_read() {
        assert_eq!(span("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(span("5"), Ok(Duration::from_secs(5)));
        assert!(span("soon").is_err() && span("5h").is_err());
    }

    fn looked(offender: &str) -> Report {
        let equation = Equation {
            name: "R3",
            says: "",
            scope: "demo:0".to_owned(),
            left: 2,
            right: 1,
            difference: 1,
            holds: false,
            offenders: vec![offender.to_owned()],
            offending: 1,
        };
        let mut sale = unreadable(&SaleId::parse("demo").unwrap(), String::new());
        sale.equations = vec![equation];
        Report { balanced: false, at_rest: false, at: String::new(), looks: 1, sales: vec![sale] }
    }

    #[test]
    fn only_what_is_broken_at_every_look_is_broken() {
        let (first, mut last) = (looked("ann").breaches(), looked("bob"));
        last.keep_only(&(&first & &last.breaches()));
        assert!(last.balanced && last.sales[0].equations[0].holds);
        // Whatever comes and goes besides, and however much of it.
        let hundred = |look: &str| {
            let mut report = looked("zoe");
            let passing = (0..100).map(|n| format!("{look}{n}"));
            report.sales[0].equations[0].offenders.extend(passing);
            report
        };
        let (first_look, mut second) = (hundred("first").breaches(), hundred("second"));
        second.keep_only(&(&first_look & &second.breaches()));
        assert_eq!(second.sales[0].equations[0].offenders, ["zoe"]);
        assert!(!second.balanced);
        let mut same = looked("ann");
        same.keep_only(&(&first & &same.breaches()));
        assert!(!same.balanced);
    }
}
