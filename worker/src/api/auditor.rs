//! Audits for the back office: each is made by a process of its own, `sluice-worker audit`, within bounds of
//! memory and time. Whatever a sale's size, this process, which books payments, holds only the report.
//!
//! One is made at a time: whoever asks for the same sale meanwhile gets the same report, whoever asks for
//! another one comes again. A long one is given once more for a while, so that nobody keeps Redis busy by
//! asking over and over.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_shared::config::Secret;
use sluice_shared::ids::SaleId;
use sluice_shared::verdict::{Code, Rejection};
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, ChildStdout, Command};
use tokio::sync::watch;

use crate::config::Config;

/// What an audit may take.
const TIME: Duration = Duration::from_secs(300);
/// MiB of memory.
const MEMORY: &str = "500";
/// Bytes of a report: every equation of a sale of a hundred SKUs, with all names that it may have.
const REPORT_MAX: u64 = 16 << 20;
const WORDS_MAX: u64 = 16 << 10;
/// One that took longer is given again for twice as long.
const LONG: Duration = Duration::from_secs(5);

/// What came of an audit: the report, or why there is none.
type Outcome = Result<Arc<Value>, String>;

/// Makes audits.
#[derive(Debug)]
pub struct Auditor {
    program: PathBuf,
    urls: [(&'static str, Secret); 2],
    latest: Mutex<Option<Latest>>,
}

/// The audit that is under way, or was the last.
#[derive(Debug, Clone)]
struct Latest {
    sale: SaleId,
    outcome: watch::Receiver<Option<Outcome>>,
    /// Until when it is given again, once it is done.
    until: watch::Receiver<Option<Instant>>,
}

impl Auditor {
    /// For the sales of these stores.
    pub fn new(config: &Config) -> Self {
        let program = &config.api.audit_program;
        // This very program, even where its file has been replaced since.
        let program = if program.is_empty() { "/proc/self/exe" } else { program };
        let (redis, database) = (config.redis.url.clone(), config.database.url.clone());
        let urls = [("SLUICE_REDIS_URL", redis), ("SLUICE_DATABASE_URL", database)];
        Self { program: program.into(), urls, latest: Mutex::new(None) }
    }

    /// A sale's report.
    pub async fn report(&self, sale: &SaleId) -> Result<Arc<Value>, Rejection> {
        let mut outcome = self.begin(sale)?;
        let done = outcome.wait_for(Option::is_some).await;
        // A sender that is gone was dropped with its runtime.
        let done = done.ok().and_then(|done| done.clone());
        let done = done.unwrap_or_else(|| Err("it ended early".to_owned()));
        done.map_err(|why| {
            tracing::warn!(%sale, why, "an audit could not be made");
            Rejection::new(Code::Unavailable, format!("the audit could not be made: {why}"))
        })
    }

    /// Joins the audit of this sale that is under way, or begins one.
    fn begin(&self, sale: &SaleId) -> Result<watch::Receiver<Option<Outcome>>, Rejection> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = latest.as_ref() {
            let under_way = other.outcome.borrow().is_none() && other.outcome.has_changed().is_ok();
            let fresh = other.until.borrow().is_some_and(|until| Instant::now() < until);
            if other.sale == *sale && (under_way || fresh) {
                return Ok(other.outcome.clone());
            }
            if under_way {
                let busy = "another audit is under way; repeat it when that is done";
                return Err(Rejection::new(Code::Overloaded, busy));
            }
        }
        let ((told, outcome), (over, until)) = (watch::channel(None), watch::channel(None));
        *latest = Some(Latest { sale: sale.clone(), outcome: outcome.clone(), until });
        let mut command = Command::new(&self.program);
        command.args(["audit", "--sale", sale.as_str(), "--json", "--memory", MEMORY]);
        command.envs(self.urls.iter().map(|(name, url)| (name, url.reveal())));
        // How much is in the broker, it is not to ask.
        command.envs([("SLUICE_AMQP_URL", ""), ("SLUICE_AMQP_MANAGEMENT_URL", "")]);
        // Not by whoever asked: he may be gone before it is done.
        tokio::spawn(async move {
            let began = Instant::now();
            let audited = tokio::time::timeout(TIME, audit(command)).await;
            let audited =
                audited.unwrap_or_else(|_| Err(format!("it took longer than {} s", TIME.as_secs())));
            let took = began.elapsed();
            if took > LONG && audited.is_ok() {
                over.send_replace(Some(Instant::now() + took * 2));
            }
            told.send_replace(Some(audited.map(Arc::new)));
        });
        Ok(outcome)
    }
}

/// Runs the program to its end; it is killed when this is given up.
async fn audit(mut command: Command) -> Result<Value, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    let (report, words) = (child.stdout.take(), child.stderr.take());
    let (report, words, status) = tokio::join!(read(report), last_words(words), child.wait());
    let status = status.map_err(|error| error.to_string())?;
    match status.code() {
        // Balanced, or not.
        Some(0 | 1) => serde_json::from_slice(&report?).map_err(|error| format!("its report: {error}")),
        _ if words.is_empty() => Err(status.to_string()),
        _ => Err(words),
    }
}

async fn read(report: Option<ChildStdout>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    if let Some(report) = report {
        report.take(REPORT_MAX).read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}

/// The last line that it wrote: why it could not go on.
async fn last_words(words: Option<ChildStderr>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut words) = words {
        // What is beyond is dropped when the pipe is.
        let _ = (&mut words).take(WORDS_MAX).read_to_end(&mut bytes).await;
    }
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().rev().find_map(|line| line.strip_prefix("sluice-worker audit: "));
    last.unwrap_or_default().to_owned()
}
