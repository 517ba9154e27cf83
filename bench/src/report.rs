//! What a drill tells: a table of outcomes, what was wrong, and the verdicts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use crate::client::answer::Answer;
use crate::client::engine::Sink;
use crate::client::outcome::Outcome;
use crate::client::{Entry, Kind, Micros, Shot};
use crate::log::Writer;

/// Latencies up to a minute, to three digits.
const HIGHEST: u64 = 60_000_000;

/// Counts answers as they come and writes them to the log.
pub struct Tally {
    log: Writer,
    counted: Counted,
    bar: Progress,
    answered: u64,
    taken: u64,
}

impl Tally {
    /// Counts into a log, showing progress towards `expected` answers.
    pub fn new(log: Writer, title: &str, expected: u64) -> Self {
        Self { log, counted: Counted::default(), bar: Progress::new(title, expected), answered: 0, taken: 0 }
    }

    /// Notes one request that was made outside the load loop.
    pub fn count(&mut self, allowed: &[Outcome], entry: &Entry, answer: &Answer<'_>) {
        self.log.note(entry);
        self.answered += 1;
        self.taken += u64::from(entry.outcome.is_taken());
        let fresh = || Histogram::new_with_bounds(1, HIGHEST, 3);
        let key = (entry.kind, entry.outcome);
        if !self.counted.rows.contains_key(&key)
            && let Ok(histogram) = fresh()
        {
            self.counted.rows.insert(key, histogram);
        }
        if let Some(histogram) = self.counted.rows.get_mut(&key) {
            histogram.saturating_record(entry.latency());
        }
        if !allowed.contains(&entry.outcome) {
            self.fault(format!("{} was answered {}", entry.kind.as_str(), entry.outcome), entry, answer);
        }
        if let Some(fault) = answer.fault {
            self.fault(format!("{} {}: {fault}", entry.kind.as_str(), entry.outcome), entry, answer);
        }
    }

    fn fault(&mut self, what: String, entry: &Entry, answer: &Answer<'_>) {
        let (count, _) = self.counted.wrong.entry(what).or_insert_with(|| {
            let body = String::from_utf8_lossy(answer.body);
            let order = entry.order.map_or_else(|| "-".to_owned(), |order| order.to_string());
            let example = format!("buyer {} order {order}: {} {body:.300}", entry.buyer, entry.status);
            (0, example)
        });
        *count += 1;
    }

    /// Every entry until now.
    pub fn entries(&mut self) -> Result<Vec<Entry>> {
        self.log.settle()?;
        crate::log::read(self.log.path())
    }

    /// What was counted so far.
    pub fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Ends the log and hands out what was counted.
    pub fn finish(self) -> Result<(Counted, Vec<Entry>)> {
        self.bar.finish();
        let path = self.log.finish()?;
        let entries = crate::log::read(&path)?;
        Ok((self.counted, entries))
    }
}

impl Sink for Tally {
    fn note(&mut self, shot: &Shot, entry: &Entry, answer: &Answer<'_>) {
        self.count(shot.allowed, entry, answer);
    }

    fn tick(&mut self, now: Micros) {
        self.log.flush();
        self.bar.show(now, self.answered, self.taken);
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Counted {
    rows: BTreeMap<(Kind, Outcome), Histogram<u64>>,
    wrong: BTreeMap<String, (u64, String)>,
}

impl Counted {
    /// How often requests of this kind came to this.
    pub fn of(&self, kind: Kind, outcome: Outcome) -> u64 {
        self.rows.get(&(kind, outcome)).map_or(0, Histogram::len)
    }

    /// How many orders were sent.
    pub fn orders(&self) -> u64 {
        self.rows.iter().filter(|((kind, _), _)| kind.is_order()).map(|(_, row)| row.len()).sum()
    }

    /// How many requests of any kind had no answer that says what became of them.
    pub fn unresolved(&self) -> u64 {
        let transient = |outcome: &Outcome| outcome.is_transient();
        self.rows.iter().filter(|((_, outcome), _)| transient(outcome)).map(|(_, row)| row.len()).sum()
    }

    /// How many orders were answered like this.
    pub fn count(&self, outcome: Outcome) -> u64 {
        let rows = self.rows.iter().filter(|((kind, with), _)| kind.is_order() && *with == outcome);
        rows.map(|(_, row)| row.len()).sum()
    }

    /// How many requests took units.
    pub fn taken(&self) -> u64 {
        self.rows.iter().filter(|((_, outcome), _)| outcome.is_taken()).map(|(_, row)| row.len()).sum()
    }

    /// The table: kind, outcome, how many, and how long they took.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<10} {:<20} {:>9} {:>10} {:>10} {:>10}\n",
            "request", "outcome", "count", "p50 ms", "p99 ms", "p99.9 ms"
        );
        for ((kind, outcome), row) in &self.rows {
            let quantile = |q: f64| millis(row.value_at_quantile(q));
            // Writing into a string cannot fail.
            writeln!(
                text,
                "{:<10} {:<20} {:>9} {:>10} {:>10} {:>10}",
                kind.as_str(),
                outcome.0,
                row.len(),
                quantile(0.5),
                quantile(0.99),
                quantile(0.999)
            )
            .ok();
        }
        text
    }

    /// Each wrong answer as a verdict, or that there was none.
    pub fn verdicts(&self, verdicts: &mut Verdicts) {
        for (what, (count, example)) in &self.wrong {
            verdicts.say(false, format!("{what} {count} times, first: {example}"));
        }
        if self.wrong.is_empty() {
            verdicts.say(true, "every answer was one that its request may get");
        }
    }
}

/// Microseconds as milliseconds with two digits.
fn millis(micros: u64) -> String {
    format!("{}.{:02}", micros / 1000, micros % 1000 / 10)
}

/// The latency below which this share of entries is.
pub fn quantile<'a>(entries: impl Iterator<Item = &'a Entry>, share: f64) -> Option<Duration> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, HIGHEST, 3).ok()?;
    for entry in entries {
        histogram.saturating_record(entry.latency());
    }
    (!histogram.is_empty()).then(|| Duration::from_micros(histogram.value_at_quantile(share)))
}

/// Lines that say what holds and what does not.
#[derive(Debug, Default)]
pub struct Verdicts {
    lines: Vec<(bool, String)>,
}

impl Verdicts {
    /// Says that something holds, or does not.
    pub fn say(&mut self, good: bool, what: impl Into<String>) {
        self.lines.push((good, what.into()));
    }

    /// Whether everything holds.
    pub fn are_good(&self) -> bool {
        self.lines.iter().all(|(good, _)| *good)
    }
}

impl std::fmt::Display for Verdicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (good, what) in &self.lines {
            writeln!(f, "{}  {what}", if *good { "ok  " } else { "FAIL" })?;
        }
        Ok(())
    }
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    expected: u64,
    shown: Instant,
}

impl Progress {
    fn new(title: &str, expected: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:<16} {bar:30} {pos}/{len} {msg} {elapsed}");
            let bar = ProgressBar::new(expected).with_prefix(title.to_owned());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, title: title.to_owned(), expected, shown: Instant::now() }
    }

    fn show(&mut self, now: Micros, answered: u64, taken: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(self.expected.max(answered));
            bar.set_position(answered);
            bar.set_message(format!("{taken} taken"));
        } else if self.shown.elapsed() >= Duration::from_secs(5) {
            self.shown = Instant::now();
            let (title, seconds) = (&self.title, now / 1_000_000);
            eprintln!("{title}: {seconds} s, {answered} of about {} answered, {taken} taken", self.expected);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::client::outcome::{ACCEPTED, SOLD_OUT};

    #[test]
    fn a_wrong_answer_is_a_verdict_with_an_example() {
        let path = std::env::temp_dir().join(format!("sluice-bench-tally-{}", std::process::id()));
        let mut tally = Tally::new(Writer::create(&path).unwrap(), "test", 2);
        let entry = Entry {
            due: 0,
            sent: 0,
            done: 1_500,
            kind: Kind::Buy,
            buyer: 3,
            order: None,
            named: None,
            units: 1,
            status: 409,
            outcome: SOLD_OUT,
        };
        let answer = Answer::none(SOLD_OUT);
        tally.count(&[ACCEPTED, SOLD_OUT], &entry, &answer);
        tally.count(&[ACCEPTED], &entry, &answer);
        let (counted, entries) = tally.finish().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((entries.len(), counted.of(Kind::Buy, SOLD_OUT), counted.taken()), (2, 2, 0));
        let mut verdicts = Verdicts::default();
        counted.verdicts(&mut verdicts);
        assert!(!verdicts.are_good());
        assert!(
            verdicts.to_string().contains("buy was answered sold_out 1 times, first: buyer 3"),
            "{verdicts}"
        );
        assert!(counted.table().contains("1.50"), "{}", counted.table());
    }
}
