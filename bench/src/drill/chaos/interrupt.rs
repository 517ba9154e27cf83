//! Ctrl-C and SIGTERM: the drill ends in order, so that what it stopped comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody wants the drill to end.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on, until the process ends. The second signal ends it at once.
    pub(super) fn listen() -> Result<Self> {
        let interrupt = Self(Arc::default());
        let came = interrupt.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            runtime.block_on(async {
                let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
                let [Ok(mut keys), Ok(mut end)] = kinds.map(signal) else { return };
                loop {
                    tokio::select! {
                        _ = keys.recv() => {}
                        _ = end.recv() => {}
                    }
                    if came.swap(true, Ordering::AcqRel) {
                        eprintln!("sluice-bench: ended at once: ./dev up brings back what was stopped");
                        std::process::exit(130);
                    }
                    eprintln!("sluice-bench: ends after this round, and brings back what was stopped");
                }
            });
        })?;
        Ok(interrupt)
    }

    /// Whether a signal came.
    pub(super) fn came(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
