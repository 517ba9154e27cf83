//! Deletes from the journal what the broker has confirmed: in bulk, off the buyers' path, until done.

use std::sync::Arc;
use std::time::Duration;

use sluice_protocol::edge::dues::BULK;
use sluice_protocol::edge::held::Parcel;
use sluice_shared::failpoint;
use sluice_shared::keys::Segment;
use sluice_shared::redis::{Redis, cmd};

use super::core::Core;

/// How long the first entry waits for company.
const LINGER: Duration = Duration::from_millis(20);
/// How long after a fault the next attempt is made.
const AGAIN: Duration = Duration::from_millis(100);

/// Notes what was confirmed.
pub(crate) fn owe(core: &Core, parcels: &[Arc<Parcel>]) {
    let mut dues = core.dues();
    for parcel in parcels {
        dues.add(&parcel.segment, parcel.entry);
    }
    drop(dues);
    core.erase.notify_one();
}

/// Deletes what is due, for as long as the engine runs.
pub(crate) async fn run(core: Arc<Core>, redis: Redis) {
    loop {
        if core.dues().count() == 0 {
            core.erase.notified().await;
        }
        if core.dues().count() < BULK {
            tokio::time::sleep(LINGER).await;
        }
        let bulks = core.dues().next();
        let mut fault = None;
        for (segment, entries) in bulks {
            failpoint::reach("F9.before-erase");
            match erase(&redis, &segment, &entries).await {
                Ok(()) => {
                    failpoint::reach("F9.after-erase");
                    core.dues().done(&segment, &entries);
                    core.metrics.erased.inc_by(entries.len() as u64);
                }
                Err(why) => fault = Some(why),
            }
        }
        if let Some(why) = fault {
            tracing::debug!(%why, "journal entries stay for now");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn erase(
    redis: &Redis,
    segment: &Segment,
    entries: &[(u64, u64)],
) -> Result<(), sluice_shared::redis::Fault> {
    let mut command = cmd("XDEL");
    command.arg(segment.journal());
    for (epoch, seq) in entries {
        command.arg(format!("{epoch}-{seq}"));
    }
    redis.run::<u64>("deleting journal entries", &command).await.map(|_| ())
}
