//! What an operator sees of the engine.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A label out of a closed list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// A label out of a closed list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// The engine's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) held: Gauge,
    pub(crate) spares: Gauge,
    pub(crate) recalled: Counter,
    pub(crate) lag: Gauge<f64, AtomicU64>,
    pub(crate) unconfirmed: Gauge,
    pub(crate) connected: Gauge,
    pub(crate) blocked: Gauge,
    pub(crate) swept: Counter,
    pub(crate) erased: Counter,
    pub(crate) journal: Gauge,
    pub(crate) batches: Counter,
    pub(crate) batch_size: Histogram,
    pub(crate) call: Histogram,
    pub(crate) frozen: Gauge,
    pub(crate) sales: Gauge,
    pub(crate) whole_lists: Counter,
    pub(crate) skew: Gauge<f64, AtomicU64>,
    published: Family<Outcome, Counter>,
    faults: Family<Outcome, Counter>,
    latches: Family<State, Gauge>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            held: Gauge::default(),
            spares: Gauge::default(),
            recalled: Counter::default(),
            lag: Gauge::default(),
            unconfirmed: Gauge::default(),
            connected: Gauge::default(),
            blocked: Gauge::default(),
            swept: Counter::default(),
            erased: Counter::default(),
            journal: Gauge::default(),
            batches: Counter::default(),
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            call: Histogram::new(exponential_buckets(0.000_1, 2.0, 14)),
            frozen: Gauge::default(),
            sales: Gauge::default(),
            whole_lists: Counter::default(),
            skew: Gauge::default(),
            published: Family::default(),
            faults: Family::default(),
            latches: Family::default(),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, to: &mut Registry) {
        let relay = to.sub_registry_with_prefix("relay");
        relay.register("held", "Accepted orders that the broker has not confirmed", self.held.clone());
        relay.register(
            "spare_copies",
            "Copies kept of orders that the broker has confirmed",
            self.spares.clone(),
        );
        relay.register(
            "recalled",
            "Copies published again, because Redis had lost their orders",
            self.recalled.clone(),
        );
        relay.register(
            "lag_seconds",
            "Age in seconds of the oldest accepted order that the broker has not confirmed",
            self.lag.clone(),
        );
        relay.register("unconfirmed", "Messages sent that wait for their confirm", self.unconfirmed.clone());
        relay.register("published", "Order messages by what the broker said", self.published.clone());
        relay.register("swept", "Journal entries taken over from an edge that left them", self.swept.clone());
        relay.register("erased", "Journal entries deleted after the confirm", self.erased.clone());
        relay.register("journal", "Journal entries of all sales, as last swept", self.journal.clone());
        let amqp = to.sub_registry_with_prefix("amqp");
        amqp.register("connected", "Whether the broker is connected", self.connected.clone());
        amqp.register("blocked", "Whether the broker blocks publishers", self.blocked.clone());
        let reserve = to.sub_registry_with_prefix("reserve");
        reserve.register(
            "batches",
            "Calls of the script that takes units, each for a batch of orders",
            self.batches.clone(),
        );
        reserve.register(
            "batch_size",
            "Orders in one call of the script that takes units",
            self.batch_size.clone(),
        );
        reserve.register(
            "call_seconds",
            "Seconds that a call of the script that takes units took",
            self.call.clone(),
        );
        reserve.register(
            "faults",
            "Calls of the script that takes units without a good answer, by outcome",
            self.faults.clone(),
        );
        let what = "How far this machine's clock is ahead of Redis', which sales go by";
        to.sub_registry_with_prefix("clock").register("skew_seconds", what, self.skew.clone());
        let sales = to.sub_registry_with_prefix("sales");
        sales.register("live", "Sales that this edge knows", self.sales.clone());
        let what = "Times that the list was read as a whole, not only what has changed";
        sales.register("whole_lists", what, self.whole_lists.clone());
        sales.register("frozen_segments", "Segments that sell nothing for now", self.frozen.clone());
        sales.register("latches", "SKUs by the state of their sold-out latch", self.latches.clone());
    }

    /// Messages, by what became of them.
    pub(crate) fn published_by(&self, outcome: &'static str, count: u64) {
        self.published.get_or_create(&Outcome { outcome }).inc_by(count);
    }

    /// One batch that the script did not answer, by why.
    pub(crate) fn fault(&self, outcome: &'static str) {
        self.faults.get_or_create(&Outcome { outcome }).inc();
    }

    /// How many SKUs are latched in this way.
    pub(crate) fn latches(&self, state: &'static str, count: usize) {
        self.latches.get_or_create(&State { state }).set(number(count));
    }
}

/// A count as a gauge takes it.
pub(crate) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
