//! What the warden counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sluice_shared::ids::SaleId;

/// Labels: sale and equation.
type OfEquation = [(&'static str, String); 2];

/// Equations whose drift is measured, and orders without a row.
const EQUATIONS: [&str; 3] = ["R1", "X2", "unwritten"];

/// What the warden counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// 1 in the process that leads.
    pub leading: Gauge,
    /// Segments whose lease is renewed.
    pub serving: Gauge,
    /// Segments that do not sell because they are being re-opened, or do not fit their books.
    pub frozen_segments: Gauge,
    /// Segments that the last round of the reconciler could not read.
    pub unread_segments: Gauge,
    /// Sales of Redis that the books do not know.
    pub unknown_sales: Gauge,
    /// Sales that ended and are not closed.
    pub ended_sales: Gauge,
    /// Edges that re-openings wait for.
    pub waiting_for_edges: Gauge,
    /// Registered edges that are not heard of.
    pub silent_edges: Gauge,
    /// Scripts that Redis keeps; it forgets none before it restarts.
    pub scripts: Gauge,
    /// What they take of its memory, beside `maxmemory`.
    pub script_bytes: Gauge,
    /// Edges that were struck off.
    pub struck: Counter,
    /// Re-openings that came to their end.
    pub reopenings: Counter,
    /// Segments that had lost data and were restored from the books.
    pub restored: Counter,
    /// Times that RabbitMQ had lost what was declared in it.
    pub redeclared: Counter,
    /// Accepted orders without a row that were published again.
    pub republished: Counter,
    /// Releases that were asked for again.
    pub released_again: Counter,
    /// Changes of orders that Redis did not know and was told again.
    pub settled_again: Counter,
    /// Rounds that came to their end, by the task: `sales`, `edges` or `reconcile`.
    rounds: Family<[(&'static str, &'static str); 1], Counter>,
    /// When the last round of the reconciler ended that looked at every sale that sells, or is closed: Unix
    /// time.
    pub last_round: Family<[(&'static str, &'static str); 1], Gauge<f64, AtomicU64>>,
    /// By how much an equation of the books is off, 0 at rest.
    pub drift: Family<OfEquation, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let warden = registry.sub_registry_with_prefix("warden");
        warden.register("leading", "Whether this process leads: 1 or 0", metrics.leading.clone());
        warden.register("serving_segments", "Segments whose lease is renewed", metrics.serving.clone());
        warden.register("frozen_segments", "Segments that do not sell", metrics.frozen_segments.clone());
        warden.register(
            "unread_segments",
            "Segments that the reconciler could not read",
            metrics.unread_segments.clone(),
        );
        let help =
            "Sales of Redis that PostgreSQL does not know: they are left as they are, and sell nothing";
        warden.register("unknown_sales", help, metrics.unknown_sales.clone());
        warden.register("ended_sales", "Sales that ended and are not closed", metrics.ended_sales.clone());
        warden.register(
            "waiting_for_edges",
            "Edges that re-openings wait for",
            metrics.waiting_for_edges.clone(),
        );
        warden.register("silent_edges", "Registered edges not heard of", metrics.silent_edges.clone());
        warden.register("redis_scripts", "Scripts that Redis keeps", metrics.scripts.clone());
        warden.register("redis_script_bytes", "Memory of these scripts", metrics.script_bytes.clone());
        warden.register("struck_edges", "Edges that were struck off", metrics.struck.clone());
        warden.register("reopenings", "Re-openings that came to their end", metrics.reopenings.clone());
        warden.register("restored_segments", "Segments restored from the books", metrics.restored.clone());
        warden.register("topology_repairs", "Times RabbitMQ was declared anew", metrics.redeclared.clone());
        warden.register("republished_orders", "Orders published again", metrics.republished.clone());
        warden.register("released_again", "Releases asked for again", metrics.released_again.clone());
        warden.register("settled_again", "Changes of orders told again", metrics.settled_again.clone());
        let help = "Rounds of the warden's tasks that came to their end: of sales, edges and the reconciler";
        warden.register("rounds", help, metrics.rounds.clone());
        warden.register(
            "last_round_timestamp_seconds",
            "When the last whole round of the reconciler ended, by the kind of sales",
            metrics.last_round.clone(),
        );
        warden.register("drift", "By how much an equation of the books is off", metrics.drift.clone());
        metrics
    }

    /// A round of a task has come to its end.
    pub fn round(&self, task: &'static str) {
        self.rounds.get_or_create(&[("task", task)]).inc();
    }

    /// A sale is gone: nothing more is told of it.
    pub fn forget(&self, sale: &SaleId) {
        for equation in EQUATIONS {
            self.drift.remove(&[("sale", sale.to_string()), ("equation", equation.to_owned())]);
        }
    }

    /// What only a leader knows is told by the leader alone.
    pub fn follows(&self) {
        let of_leader = [
            &self.leading,
            &self.serving,
            &self.frozen_segments,
            &self.unread_segments,
            &self.unknown_sales,
            &self.ended_sales,
            &self.waiting_for_edges,
            &self.silent_edges,
            &self.scripts,
            &self.script_bytes,
        ];
        for gauge in of_leader {
            gauge.set(0);
        }
        self.last_round.clear();
        self.drift.clear();
    }
}
