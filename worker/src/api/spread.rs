//! After a change: wait until the warden has put it on the shelf and every live edge goes by it.

use std::time::Duration;

use sluice_shared::keys;
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::{Heartbeat, SaleStep, SaleView};
use tokio::time::{sleep, timeout};

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
    match timeout(api.edge_wait, spread(&api.redis, row)).await {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => {
            tracing::warn!(sale = %row.sale, %fault, "whether edges know the change is not known");
        }
        Err(_) => tracing::warn!(sale = %row.sale, cfg = row.cfg, "not every edge knows the change yet"),
    }
}

async fn spread(redis: &Redis, row: &SaleRow) -> Result<(), Fault> {
    while !is_on_the_shelf(redis, row).await? {
        sleep(LOOK).await;
    }
    // The warden counts the generation together with writing the view, and an edge reads the generation
    // before the list: an edge that tells this generation, or a later one, has read the view.
    let generation: Option<u64> =
        redis.run("reading the generation", cmd("GET").arg(keys::GENERATION)).await?;
    while !all_know(redis, generation.unwrap_or(0)).await? {
        sleep(LOOK).await;
    }
    Ok(())
}

async fn is_on_the_shelf(redis: &Redis, row: &SaleRow) -> Result<bool, Fault> {
    let mut read = cmd("HGET");
    read.arg(keys::SALES).arg(row.sale.as_str());
    let view: Option<String> = redis.run("looking at the sale's view", &read).await?;
    let view = view.and_then(|view| serde_json::from_str::<SaleView>(&view).ok());
    Ok(view.is_some_and(|view| view.cfg >= row.cfg))
}

async fn all_know(redis: &Redis, generation: u64) -> Result<bool, Fault> {
    let mut read = cmd("HVALS");
    read.arg(keys::EDGES);
    let edges: Vec<String> = redis.run("reading the edges", &read).await?;
    let now = redis.time().await?;
    let mut edges = edges.iter().filter_map(|text| serde_json::from_str::<Heartbeat>(text).ok());
    let knows = |edge: Heartbeat| edge.gone || now.0 - edge.at.0 >= LIVE_MS || edge.generation >= generation;
    Ok(edges.all(knows))
}
