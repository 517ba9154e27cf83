//! What the back office counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    pub(crate) path: &'static str,
    pub(crate) method: &'static str,
    pub(crate) status: u16,
}

/// What the api counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) answers: Family<Answered, Counter>,
    pub(crate) notices: Desk,
    pub(crate) cancels: Desk,
    pub(crate) look_ups: Desk,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        let answers = Family::default();
        let help = "Answers of the back office by route and status";
        registry.register("api_answers", help, answers.clone());
        Self {
            answers,
            notices: Desk::new(registry, "payment_notices"),
            cancels: Desk::new(registry, "cancels"),
            look_ups: Desk::new(registry, "look_ups"),
        }
    }
}

/// What a desk counts.
#[derive(Debug, Clone)]
pub struct Desk {
    pub(crate) waiting: Gauge,
    pub(crate) aside: Gauge,
    pub(crate) group: Histogram,
}

impl Desk {
    /// Registers everything under the name of what is asked for: `payment_notices`.
    pub fn new(registry: &mut Registry, name: &'static str) -> Self {
        // 1 to 256.
        let group = Histogram::new(exponential_buckets(1.0, 2.0, 9));
        let (waiting, aside) = (Gauge::default(), Gauge::default());
        let words = name.replace('_', " ");
        registry.register(format!("api_{name}_waiting"), format!("How many {words} wait"), waiting.clone());
        let help = format!("How many {words} wait for what somebody else has locked");
        registry.register(format!("api_{name}_aside"), help, aside.clone());
        registry.register(format!("api_{name}_group"), format!("Sizes of groups of {words}"), group.clone());
        Self { waiting, aside, group }
    }
}
