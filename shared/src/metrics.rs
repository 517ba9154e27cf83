//! One registry a process, and the text that Prometheus scrapes.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Content type of [`render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry whose metrics are all called `sluice_…`.
pub fn registry() -> Registry {
    Registry::with_prefix("sluice")
}

/// The metrics as OpenMetrics text.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail; a metric that could not be written is left out.
    let _ = encode(&mut text, registry);
    text
}
