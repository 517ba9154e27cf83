//! The scenes: each makes a sale of its own, lets things happen, and judges what is left.

pub mod all;
pub mod alone;
pub mod audit;
pub mod broker_outage;
pub mod burst;
pub mod chaos;
pub mod expiry;
pub mod kill;
pub mod lost_data;
pub mod lost_reply;
pub mod payments;
pub mod power_cut;
mod resolve;
pub mod rolling;
pub mod sell_out;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use sluice_shared::ids::{OrderId, SaleId};

use crate::admin::{self, Admin, Offer, Row, SKU};
use crate::buyers::{Buyers, Target};
use crate::client::answer::Answer;
use crate::client::call::{Reply, call};
use crate::client::engine::{Options, Ran, run};
use crate::client::outcome::{OK, Outcome, UNAVAILABLE};
use crate::client::{Entry, Kind, Load, Micros};
use crate::crowd::{Crowd, Plan};
use crate::environment::Environment;
use crate::log::Writer;
use crate::oracle::{Contradiction, Rules, judge, judge_payments, judged};
use crate::report::{Counted, Tally, Verdicts};
use crate::schedule::Profile;

/// At most one order of so many may be answered by 503 while nothing is broken.
const UNKNOWN_SHARE: u64 = 100;
/// How fast the orders come that a sale has before anything happens to it, and how long they may take. A
/// small machine, on which everything runs beside the buyers, can take so many.
const BEFORE: f64 = 3_000.0;
const BEFORE_TAKES: Duration = Duration::from_secs(600);

/// What every drill is given.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The running system.
    pub environment: Environment,
    /// Connections of the crowd.
    pub connections: usize,
    /// Where the log goes; beside the environment's file, and deleted when all is good, if not given.
    pub log: Option<PathBuf>,
    /// Chooses whatever is left to chance.
    pub seed: u64,
}

/// One request outside the load loop.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Whose it is.
    pub buyer: u32,
    /// The order that it is about.
    pub order: &'a OrderId,
    /// Units that it asks for.
    pub units: u32,
    /// Its bytes.
    pub request: Bytes,
}

/// One drill's sale with its buyers.
pub struct Scene {
    /// What it was given.
    pub setting: Setting,
    /// The back office.
    pub admin: Admin,
    /// The sale.
    pub sale: SaleId,
    /// What it sells.
    pub offer: Offer,
    /// Who buys.
    pub buyers: Arc<Buyers>,
    /// What holds and what does not.
    pub verdicts: Verdicts,
    /// Servers that have to answer die meanwhile.
    pub faults: bool,
    base: Instant,
}

/// Whether the edge is ready and no sale is frozen.
fn sells_again(environment: &Environment) -> Result<()> {
    let ready = b"GET /-/ready HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
    let reply = call(environment.edge_admin, ready);
    let answer = reply.answer();
    let frozen = String::from_utf8_lossy(answer.body).contains("frozen");
    if answer.outcome == OK && !frozen { Ok(()) } else { bail!("a sale is still frozen") }
}

impl Scene {
    /// Makes a sale, opens it and waits until the gate sells.
    pub fn open(setting: &Setting, offer: Offer, count: u32) -> Result<Self> {
        let name = format!("drill-{:08x}", rand::random::<u32>());
        let sale = SaleId::parse(&name)?;
        let admin = Admin::new(&setting.environment);
        eprintln!("{name}: {} units, {count} buyers", offer.stock);
        admin.open(&sale, &offer)?;
        let number =
            wait_for("a sale token", Duration::from_secs(20), || number(&setting.environment, &sale, &name))?;
        let target = Target { sale: sale.clone(), sku: SKU.to_owned(), number };
        let buyers = Arc::new(Buyers::new(&setting.environment, &target, &name, count));
        Ok(Self {
            setting: setting.clone(),
            admin,
            sale,
            offer,
            buyers,
            verdicts: Verdicts::default(),
            faults: false,
            base: Instant::now(),
        })
    }

    /// Where this scene's log is written.
    fn log_path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.setting.log {
            return Ok(path.clone());
        }
        let directory = self.setting.environment.directory.join("drills");
        std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(directory.join(format!("{}.log", self.sale)))
    }

    /// A tally that writes this scene's log.
    pub fn tally(&self, title: &str, expected: u64) -> Result<Tally> {
        Ok(Tally::new(Writer::create(&self.log_path()?)?, title, expected))
    }

    /// The time in the log.
    pub fn now(&self) -> Micros {
        Micros::try_from(self.base.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    /// A plain crowd of this sale.
    pub fn plan(&self, profile: Profile) -> Plan {
        let plan = Plan::plain(profile);
        Plan { price: self.offer.price, per_user: self.offer.per_user, seed: self.setting.seed, ..plan }
    }

    /// One request and its answer, noted in the log.
    pub fn ask(&self, tally: &mut Tally, kind: Kind, ask: &Ask<'_>, allowed: &[Outcome]) -> Reply {
        let sent = self.now();
        let reply = call(self.setting.environment.edge, &ask.request);
        let answer = reply.answer();
        tally.count(allowed, &self.entry(kind, ask, sent, &answer), &answer);
        reply
    }

    /// The line of the log for a request that has just ended.
    fn entry(&self, kind: Kind, ask: &Ask<'_>, sent: Micros, answer: &Answer<'_>) -> Entry {
        Entry {
            due: sent,
            sent,
            done: self.now(),
            kind,
            buyer: ask.buyer,
            order: Some(*ask.order),
            named: answer.order,
            units: ask.units,
            status: answer.status,
            outcome: answer.outcome,
        }
    }

    /// How the load is made.
    pub fn options(&self, limit: Duration) -> Options {
        Options {
            base: self.base,
            targets: self.setting.environment.edges.clone(),
            connections: self.setting.connections,
            bots: 32,
            patience: Duration::from_secs(10),
            limit,
        }
    }

    /// Runs a load to its end and says how it went.
    pub fn run(&mut self, load: &mut dyn Load, tally: &mut Tally, limit: Duration) -> Result<Ran> {
        let ran = run(&self.options(limit), load, tally)?;
        let seconds = ran.elapsed.as_secs_f64().max(1e-6);
        #[allow(clippy::cast_precision_loss)]
        let (rate, each) =
            (ran.requests as f64 / seconds, ran.cpu.as_secs_f64() * 1e6 / ran.requests.max(1) as f64);
        println!(
            "{} requests in {seconds:.2} s: {rate:.0}/s; the generator used {each:.1} µs of CPU each",
            ran.requests
        );
        if ran.unsent > 0 {
            self.verdicts.say(false, format!("{} requests were not sent: time was up", ran.unsent));
        }
        Ok(ran)
    }

    /// Sells to the first so many buyers before anything happens.
    pub fn sell_before(&mut self, orders: u32, tally: &mut Tally) -> Result<()> {
        if orders == 0 {
            return Ok(());
        }
        let plan = Plan { mint: true, faults: self.faults, ..self.plan(Profile::Rate(BEFORE)) };
        let mut crowd = Crowd::new(&self.buyers, (0..orders).collect(), plan);
        self.run(&mut crowd, tally, BEFORE_TAKES).map(drop)
    }

    /// Runs the audit until it is at rest; `orders` is how many may have to be written until then.
    pub fn audit(&mut self, when: &str, orders: u64) -> Result<()> {
        let wait = Duration::from_secs(30 + orders / 2_000);
        let audit = admin::audit(&self.setting.environment, &self.sale, wait)?;
        self.verdicts.say(audit.code == 0, format!("the books balance {when} (audit exit {})", audit.code));
        if audit.code != 0 {
            println!("{}", audit.text);
        }
        Ok(())
    }

    /// Judges the log against the books, prints everything, closes the sale. Whether all is good.
    pub fn close(mut self, tally: Tally, rules: &Rules) -> Result<bool> {
        let (counted, log) = tally.finish()?;
        let rows = self.admin.orders(&self.sale)?;
        self.judge(&counted, &log, &rows, rules);
        self.admin.step(&self.sale, "close")?;
        print!("\n{}\n{}", counted.table(), self.verdicts);
        let good = self.verdicts.are_good();
        let path = self.log_path()?;
        if good && self.setting.log.is_none() {
            std::fs::remove_file(&path).with_context(|| format!("deleting {}", path.display()))?;
        } else {
            println!("log: {}", path.display());
        }
        Ok(good)
    }

    fn judge(&mut self, counted: &Counted, log: &[Entry], rows: &[Row], rules: &Rules) {
        counted.verdicts(&mut self.verdicts);
        let (late, orders) = (counted.count(UNAVAILABLE), counted.orders());
        let words = format!("{late} of {orders} orders were answered \"not known yet\", and the truth later");
        self.verdicts.say(late <= orders / UNKNOWN_SHARE || self.faults, words);
        let live: u32 = rows.iter().filter(|row| row.is_live()).map(|row| row.units).sum();
        let states = states(rows);
        self.verdicts
            .say(live <= rules.stock, format!("{live} of {} units are taken; orders: {states}", rules.stock));
        let mut found = judge(log, rows, |user| self.buyers.buyer(user), rules);
        found.extend(judge_payments(log, rows));
        let scope = judged(log, rules).map(|(rule, count)| format!("{rule} {count}")).join(", ");
        self.tell(&found, &scope, log.len(), rows.len());
    }

    fn tell(&mut self, found: &[Contradiction], scope: &str, entries: usize, rows: usize) {
        let mut rules: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for contradiction in found {
            rules.entry(contradiction.rule).or_insert((0, &contradiction.facts)).0 += 1;
        }
        for (rule, (count, facts)) in &rules {
            self.verdicts.say(false, format!("broken {count} times: {rule}; first: {facts}"));
        }
        if found.is_empty() {
            self.verdicts.say(
                true,
                format!("{entries} answers and {rows} orders do not contradict each other: {scope}"),
            );
        }
    }
}

/// How many orders are in each state, in words.
fn states(rows: &[Row]) -> String {
    let mut states: BTreeMap<&str, u32> = BTreeMap::new();
    for row in rows {
        *states.entry(row.state.as_str()).or_default() += 1;
    }
    let words: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// The sale's number, out of a token's order id.
fn number(environment: &Environment, sale: &SaleId, name: &str) -> Result<u32> {
    let target = Target { sale: sale.clone(), sku: SKU.to_owned(), number: 0 };
    let probe = Buyers::new(environment, &target, &format!("{name}-probe"), 1);
    let reply = call(environment.edge, &probe.token_request(0));
    let answer = reply.answer();
    let order: Option<OrderId> = answer.order.filter(|_| answer.outcome == OK);
    order.map(|order| order.sale).with_context(|| format!("the gate answered {}", answer.outcome))
}

/// Asks until it succeeds or the time is up.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {} s for {what}", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
