//! What was done to whom, when, and how long it took to come back.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::plan::Fault;

/// Faults that are told when a promise was broken.
const LAST: usize = 20;

/// One fault that was carried out.
#[derive(Debug, Clone)]
struct Record {
    fault: Fault,
    details: String,
    begun: Duration,
    recovered: Option<Duration>,
}

/// Everything that was done, also in a file.
#[derive(Debug)]
pub(super) struct Journal {
    since: Instant,
    records: Mutex<(Vec<Record>, File)>,
}

impl Journal {
    /// Begins one; a file that is there is replaced.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { since: Instant::now(), records: Mutex::new((Vec::new(), file)) })
    }

    fn records(&self) -> MutexGuard<'_, (Vec<Record>, File)> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line that is no fault.
    pub(super) fn note(&self, text: &str) {
        let at = self.since.elapsed().as_secs_f64();
        // A disk that is full of logs shall not end the drill.
        writeln!(self.records().1, "{at:9.3} {text}").unwrap_or_default();
    }

    /// A fault begins; its number.
    pub(super) fn begin(&self, fault: Fault, details: &str) -> usize {
        self.note(&format!("{fault}: {details}"));
        let mut records = self.records();
        let begun = self.since.elapsed();
        records.0.push(Record { fault, details: details.to_owned(), begun, recovered: None });
        records.0.len() - 1
    }

    /// What it had hit works again, so long after the fault was undone.
    pub(super) fn recover(&self, number: usize, took: Duration) {
        let what = {
            let mut records = self.records();
            let Some(record) = records.0.get_mut(number) else { return };
            record.recovered = Some(took);
            format!("{} {}", record.fault, record.details)
        };
        self.note(&format!("recovered in {:.1} s: {what}", took.as_secs_f64()));
    }

    /// How many faults were carried out.
    pub(super) fn count(&self) -> usize {
        self.records().0.len()
    }

    /// The last faults, as lines.
    pub(super) fn last(&self) -> String {
        let records = self.records();
        let mut text = String::new();
        for record in records.0.iter().rev().take(LAST).rev() {
            let back = record.recovered.map_or_else(
                || "not back".to_owned(),
                |took| format!("back {:.1} s after it was undone", took.as_secs_f64()),
            );
            let at = record.begun.as_secs_f64();
            writeln!(text, "{at:9.1} s  {}: {}, {back}", record.fault, record.details).unwrap_or_default();
        }
        text
    }

    /// The table: kind, how often, how often it was recovered from, the slowest.
    pub(super) fn table(&self) -> String {
        let mut rows: BTreeMap<String, (u32, u32, Duration)> = BTreeMap::new();
        for record in &self.records().0 {
            let row = rows.entry(record.fault.to_string()).or_default();
            row.0 += 1;
            row.1 += u32::from(record.recovered.is_some());
            row.2 = row.2.max(record.recovered.unwrap_or_default());
        }
        let mut text = format!("{:<28} {:>9} {:>10} {:>10}\n", "fault", "injected", "recovered", "slowest s");
        let sum = rows
            .values()
            .fold((0, 0, Duration::ZERO), |sum, row| (sum.0 + row.0, sum.1 + row.1, sum.2.max(row.2)));
        rows.insert("~ all".to_owned(), sum);
        for (kind, (injected, recovered, slowest)) in rows {
            let kind = kind.trim_start_matches("~ ");
            let slowest = slowest.as_secs_f64();
            writeln!(text, "{kind:<28} {injected:>9} {recovered:>10} {slowest:>10.1}").unwrap_or_default();
        }
        text
    }
}
