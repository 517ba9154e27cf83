//! Logs: one line of JSON an event on standard error, level by `SLUICE_LOG` (default `info`).

use tracing_subscriber::EnvFilter;

/// Starts logging for this process; a second call changes nothing.
pub fn start() {
    // pingora logs every refused request at error level through `log`; refusals are no errors. Nor is
    // a kept connection that is still being let go of, for which it opens another.
    let default = "info,pingora_core=warn,pingora_core::connectors=off,pingora_proxy=warn,lapin=error";
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        .with_env_filter(filter);
    // Tests start it more than once in a process.
    let _ = subscriber.try_init();
}
