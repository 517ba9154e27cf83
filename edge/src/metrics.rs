//! What the HTTP side counts. Labels are closed sets: a code, a kind of call; never a user.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use sluice_shared::verdict::Code;

use crate::connections::Tally;

/// What a request is counted under: one of the calls, or one of these two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind(usize);

impl Kind {
    /// Something of the upstream's.
    pub const PROXIED: Self = Self(0);
    /// Nothing that there is.
    pub const OTHER: Self = Self(1);

    /// The call in this row of the table.
    pub fn call(row: usize) -> Self {
        Self(row + 2)
    }
}

/// Upper bounds of the latency buckets in microseconds.
const BOUNDS: [u64; 12] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000];

/// A histogram of fixed buckets without a lock.
#[derive(Debug, Default)]
struct Latency {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Latency {
    fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// Counters of one edge's HTTP side.
#[derive(Debug)]
pub struct Metrics {
    refused: Vec<AtomicU64>,
    /// Orders answered as accepted: new ones, replays, and those taken again by their receipts.
    accepted: [AtomicU64; 3],
    /// By kind: its label, and how long its requests took.
    latency: Vec<(&'static str, Latency)>,
    /// Connections to the public listeners.
    pub connections: Arc<Tally>,
    /// Requests being served.
    pub busy: Arc<AtomicUsize>,
    /// Event streams open.
    pub streams: AtomicUsize,
}

impl Metrics {
    /// Nothing is counted yet; calls have these labels.
    pub fn new(calls: impl IntoIterator<Item = &'static str>) -> Self {
        let labels = ["proxied", "other"].into_iter().chain(calls);
        Self {
            refused: Code::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            accepted: Default::default(),
            latency: labels.map(|label| (label, Latency::default())).collect(),
            connections: Arc::default(),
            busy: Arc::default(),
            streams: AtomicUsize::new(0),
        }
    }

    /// Counts a request that was answered.
    pub fn answered(&self, kind: Kind, verdict: Option<Code>, took: Duration) {
        if let Some(count) = verdict.and_then(|code| self.refused.get(code as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some((_, latency)) = self.latency.get(kind.0) {
            latency.observe(took);
        }
    }

    /// Counts an order answered as accepted.
    pub fn accepted(&self, replayed: bool) {
        self.accepted[usize::from(replayed)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an order that was lost and is taken again by its receipt.
    pub fn honoured(&self) {
        self.accepted[2].fetch_add(1, Ordering::Relaxed);
    }
}

/// Numbers that live elsewhere and are read when somebody looks.
pub trait Gauges: std::fmt::Debug + Send + Sync + 'static {
    /// Name, help, value.
    fn read(&self) -> Vec<(&'static str, &'static str, u64)>;
}

/// Puts everything on the registry.
pub fn register(registry: &mut Registry, metrics: Arc<Metrics>, gauges: Box<dyn Gauges>) {
    registry.register_collector(Box::new(Exporter { metrics, gauges }));
}

#[derive(Debug)]
struct Exporter {
    metrics: Arc<Metrics>,
    gauges: Box<dyn Gauges>,
}

struct Counts<'a>(&'a str, Vec<(&'a str, u64)>);

impl EncodeMetric for Counts<'_> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        for (value, count) in &self.1 {
            let labels = [(self.0, *value)];
            encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

struct Latencies<'a>(&'a [(&'static str, Latency)]);

impl EncodeMetric for Latencies<'_> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        for (label, latency) in self.0 {
            let counts: Vec<u64> = latency.buckets.iter().map(|n| n.load(Ordering::Relaxed)).collect();
            let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
            let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            let sum = seconds(latency.micros.load(Ordering::Relaxed));
            let labels = [("call", *label)];
            let mut family = encoder.encode_family(&labels)?;
            family.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Collector for Exporter {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let metrics = &self.metrics;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let refused = Code::ALL.iter().zip(&metrics.refused).map(|(code, n)| (code.as_str(), load(n)));
        let refused = Counts("code", refused.collect());
        let what = "Requests that were refused, by the code of the refusal";
        refused.encode(encoder.encode_descriptor("http_refused", what, None, MetricType::Counter)?)?;
        let [new, replayed, honoured] = &metrics.accepted;
        let kinds = [("new", new), ("replayed", replayed), ("honoured", honoured)];
        let accepted = Counts("kind", kinds.iter().map(|(kind, count)| (*kind, load(count))).collect());
        let what = "Orders answered as accepted";
        accepted.encode(encoder.encode_descriptor("http_accepted", what, None, MetricType::Counter)?)?;
        let tally = &metrics.connections;
        let ends = [("made_room", &tally.made_room), ("full", &tally.full), ("address", &tally.capped)];
        let ends = Counts("reason", ends.iter().map(|(why, count)| (*why, load(count))).collect());
        let (name, what) = ("http_connections_closed", "Connections that were closed early, by why");
        ends.encode(encoder.encode_descriptor(name, what, None, MetricType::Counter)?)?;
        let what = "Seconds from the head of a request to its answer";
        let name = "http_request_seconds";
        Latencies(&metrics.latency).encode(encoder.encode_descriptor(
            name,
            what,
            None,
            MetricType::Histogram,
        )?)?;
        let count = |n: &AtomicUsize| u64::try_from(n.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        let mut gauges = vec![
            ("http_connections", "Connections open", count(&metrics.connections.open)),
            ("http_connections_most", "Connections that may be open", count(&metrics.connections.most)),
            ("http_requests_busy", "Requests being served", count(&metrics.busy)),
            ("http_streams", "Event streams open", count(&metrics.streams)),
        ];
        gauges.extend(self.gauges.read());
        for (name, what, value) in gauges {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            encoder.encode_descriptor(name, what, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}
