//! One measurement: a load, the processes that serve it, and the CPU time that they used.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;

use crate::client::answer::Answer;
use crate::client::engine::{Options, Sink, run};
use crate::client::{Entry, Kind, Lane, Load, Micros, Shot};
use crate::cpu;
use crate::report::quantile;

/// What one side did in one round.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// CPU time of the serving processes, µs a request.
    pub each: f64,
    /// Requests a second.
    pub rate: f64,
    /// 99 of 100 were answered within this time of being sent.
    pub p99: Duration,
}

/// Drives a load as fast as answers come; every answer must have this status.
pub fn measure(options: &Options, load: &mut dyn Load, pids: &[i32], status: u16) -> Result<Measured> {
    let mut meter = Meter { entries: Vec::new(), wrong: None, status };
    let before = cpu::of(pids)?;
    let ran = run(options, load, &mut meter)?;
    let used = cpu::of(pids)?.saturating_sub(before);
    if let Some(wrong) = meter.wrong {
        bail!("a measured request was not answered {status}: {wrong}");
    }
    Ok(Measured::of(used, ran.requests, ran.elapsed, &meter.entries))
}

impl Measured {
    /// From what was used, and what was done meanwhile.
    #[allow(clippy::cast_precision_loss)]
    pub fn of(used: Duration, requests: u64, elapsed: Duration, entries: &[Entry]) -> Self {
        let requests = requests.max(1) as f64;
        Self {
            each: used.as_secs_f64() * 1e6 / requests,
            rate: requests / elapsed.as_secs_f64().max(1e-6),
            p99: quantile(entries.iter(), 0.99).unwrap_or_default(),
        }
    }
}

struct Meter {
    entries: Vec<Entry>,
    wrong: Option<String>,
    status: u16,
}

impl Sink for Meter {
    fn note(&mut self, shot: &Shot, entry: &Entry, answer: &Answer<'_>) {
        // As fast as answers come, everything is due at once: what counts is the time on the way.
        self.entries.push(Entry { due: entry.sent, ..*entry });
        if entry.status != self.status && self.wrong.is_none() {
            let body = String::from_utf8_lossy(answer.body);
            self.wrong =
                Some(format!("{} {} {body:.200} (buyer {})", entry.status, entry.outcome, shot.buyer));
        }
    }

    fn tick(&mut self, _: Micros) {}
}

/// Requests sent round and round, all due at once.
pub struct Ring {
    requests: Vec<Bytes>,
    count: u64,
    sent: u64,
}

/// Neighbours in time are this far apart in the ring.
const STRIDE: u64 = 7;

impl Ring {
    /// `count` requests out of these.
    pub fn new(requests: Vec<Bytes>, count: u64) -> Self {
        Self { requests, count, sent: 0 }
    }

    /// The same requests once more.
    pub fn again(&mut self, count: u64) -> &mut Self {
        (self.count, self.sent) = (count, 0);
        self
    }
}

impl Load for Ring {
    fn peek(&self) -> Option<Micros> {
        (self.sent < self.count).then_some(0)
    }

    fn take(&mut self) -> Option<Shot> {
        let at = usize::try_from(self.sent * STRIDE % self.requests.len() as u64).ok()?;
        self.sent += 1;
        Some(Shot {
            due: 0,
            kind: Kind::Buy,
            buyer: u32::try_from(at).ok()?,
            order: None,
            units: 1,
            request: self.requests.get(at)?.clone(),
            allowed: &[],
            lane: Lane::Crowd,
            attempt: 0,
        })
    }

    fn answered(&mut self, _: &Shot, _: &Answer<'_>, _: Micros, _: &mut Vec<Shot>) {}
}
