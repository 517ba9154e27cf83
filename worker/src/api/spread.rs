//! After a change: wait until the warden has put it on the shelf and every live edge goes by it.

use std::time::Duration;

use sluice_shared::keys;
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::{Heartbeat, SaleStep, SaleView};
use tokio::time::{Instant, sleep};

use super::Api;
use crate::store::sales::SaleRow;

/// An edge that has been silent for longer is not waited for: it refuses by itself, or is dead.
const LIVE_MS: i64 = 2000;
/// How often Redis is asked.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until every live edge knows this version of the sale, but never longer than configured: the
/// change is committed in any case, and an edge that is late is caught by `meta`.
pub async fn until_edges_know(api: &Api, row: &SaleRow) {
    if row.step == SaleStep::Created {
        return;
    }
    let end = Instant::now() + api.edge_wait;
    loop {
        match known(&api.redis, row).await {
            Ok(true) => return,
            Ok(false) if Instant::now() < end => sleep(LOOK).await,
            Ok(false) => {
                tracing::warn!(sale = %row.sale, cfg = row.cfg, "not every edge knows the change yet");
                return;
            }
            Err(fault) => {
                tracing::warn!(sale = %row.sale, %fault, "whether edges know the change is not known");
                return;
            }
        }
    }
}

async fn known(redis: &Redis, row: &SaleRow) -> Result<bool, Fault> {
    let mut view = cmd("HGET");
    view.arg(keys::SALES).arg(row.sale.as_str());
    let view: Option<String> = redis.run("looking at the sale's view", &view).await?;
    let view = view.and_then(|view| serde_json::from_str::<SaleView>(&view).ok());
    if view.is_none_or(|view| view.cfg < row.cfg) {
        return Ok(false);
    }
    // Read after the view: this generation has it.
    let mut generation = cmd("GET");
    generation.arg(keys::GENERATION);
    let generation: Option<u64> = redis.run("reading the generation", &generation).await?;
    let mut edges = cmd("HVALS");
    edges.arg(keys::EDGES);
    let edges: Vec<String> = redis.run("reading the edges", &edges).await?;
    let now = redis.time().await?;
    let late = edges
        .iter()
        .filter_map(|text| serde_json::from_str::<Heartbeat>(text).ok())
        .any(|edge| now.0 - edge.at.0 < LIVE_MS && edge.generation < generation.unwrap_or(0));
    Ok(!late)
}
