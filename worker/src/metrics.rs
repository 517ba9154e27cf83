//! What a worker process counts; one registry, registered once.

use std::sync::Arc;

use prometheus_client::registry::Registry;

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The back office's.
    pub api: crate::api::Metrics,
    /// The warden's.
    pub warden: crate::warden::Metrics,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Arc<Self> {
        let mut registry = sluice_shared::metrics::registry();
        let api = crate::api::Metrics::new(&mut registry);
        let warden = crate::warden::Metrics::new(&mut registry);
        Arc::new(Self { registry, api, warden })
    }

    /// OpenMetrics text.
    pub fn render(&self) -> String {
        sluice_shared::metrics::render(&self.registry)
    }
}
