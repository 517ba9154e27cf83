//! What a worker process counts; one registry, registered once. Labels come from closed sets only.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub mod api;
pub mod warden;

/// A kind of work and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Job {
    /// The role, or the queue that it reads.
    pub job: &'static str,
    /// A word from a closed set.
    pub outcome: &'static str,
}

/// A kind of work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobName {
    /// The role, or the queue that it reads.
    pub job: &'static str,
}

/// What became of accepted orders.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `written`, `repeated`, `fenced`, `failed` or `parked`.
    pub outcome: &'static str,
}

type Spans = Family<JobName, Histogram, fn() -> Histogram>;

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    orders: Family<Outcome, Counter>,
    jobs: Family<Job, Counter>,
    processing_time: Spans,
    transaction_duration: Spans,
    queue_size: Family<JobName, Gauge>,
    retry_count: Family<JobName, Counter>,
    put_off: Family<JobName, Counter>,
    restarts: Family<JobName, Counter>,
    pool_usage: Gauge,
    pool_size: Gauge,
    /// The back office's.
    pub api: api::Metrics,
    /// The warden's.
    pub warden: warden::Metrics,
}

fn histogram() -> Histogram {
    // 0.5 ms to 16 s.
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Arc<Self> {
        let mut registry = sluice_shared::metrics::registry();
        let orders = Family::default();
        registry.register("orders", "Accepted orders, by what became of them", orders.clone());
        let jobs = Family::default();
        registry.register("jobs", "Pieces of work, by kind and outcome", jobs.clone());
        let spans = || Spans::new_with_constructor(histogram);
        let processing_time = spans();
        let help = "Time that a piece of work took, in seconds";
        registry.register("job_processing_time_seconds", help, processing_time.clone());
        let transaction_duration = spans();
        let help = "Time that a transaction of the books took, in seconds";
        registry.register("transaction_duration_seconds", help, transaction_duration.clone());
        let queue_size = Family::default();
        registry.register("job_queue_size", "Pieces of work that wait", queue_size.clone());
        let retry_count = Family::default();
        registry.register("job_retry_count", "Pieces of work put off to be tried again", retry_count.clone());
        let put_off = Family::default();
        registry.register("job_messages_put_off", "Messages handed to a retry queue", put_off.clone());
        let restarts = Family::default();
        registry.register("role_restarts", "Times that a role ended with an error", restarts.clone());
        let pool_usage = Gauge::default();
        registry.register("connection_pool_usage", "Connections to PostgreSQL in use", pool_usage.clone());
        let pool_size = Gauge::default();
        registry.register(
            "connection_pool_size",
            "Connections to PostgreSQL that are open",
            pool_size.clone(),
        );
        let api = api::Metrics::new(&mut registry);
        let warden = warden::Metrics::new(&mut registry);
        Arc::new(Self {
            registry,
            orders,
            jobs,
            processing_time,
            transaction_duration,
            queue_size,
            retry_count,
            put_off,
            restarts,
            pool_usage,
            pool_size,
            api,
            warden,
        })
    }

    /// Accepted orders came to an end of this kind.
    pub fn orders(&self, outcome: &'static str, n: usize) {
        self.orders.get_or_create(&Outcome { outcome }).inc_by(n as u64);
    }

    /// How many accepted orders came to an end of this kind.
    pub fn orders_so_far(&self, outcome: &'static str) -> u64 {
        self.orders.get_or_create(&Outcome { outcome }).get()
    }

    /// A piece of work was handled.
    pub fn job(&self, job: &'static str, outcome: &'static str, took: Duration) {
        self.jobs.get_or_create(&Job { job, outcome }).inc();
        self.processing_time.get_or_create(&JobName { job }).observe(took.as_secs_f64());
    }

    /// A piece of work was put off.
    pub fn retry(&self, job: &'static str) {
        self.retry_count.get_or_create(&JobName { job }).inc();
    }

    /// A message was handed to a retry queue.
    pub fn put_off(&self, job: &'static str) {
        self.put_off.get_or_create(&JobName { job }).inc();
    }

    /// A transaction was carried out.
    pub fn transaction(&self, job: &'static str, took: Duration) {
        self.transaction_duration.get_or_create(&JobName { job }).observe(took.as_secs_f64());
    }

    /// So much work waits.
    pub fn waiting(&self, job: &'static str, n: u64) {
        self.queue_size.get_or_create(&JobName { job }).set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    /// A role ended with an error.
    pub fn restart(&self, job: &'static str) {
        self.restarts.get_or_create(&JobName { job }).inc();
    }

    /// OpenMetrics text, with the connections to PostgreSQL that are in use, and that are open.
    pub fn render(&self, (used, open): (u32, u32)) -> String {
        self.pool_usage.set(i64::from(used));
        self.pool_size.set(i64::from(open));
        sluice_shared::metrics::render(&self.registry)
    }
}
