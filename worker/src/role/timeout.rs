//! The `timeout` role: orders that are not paid in time expire.
//!
//! The delay queue in Redis tells when to look, PostgreSQL decides by its own clock, and the sweep
//! finds whatever the queue has lost. Any number of processes may do this at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::failpoint;

use crate::process::{Context, Stop, keep};
use crate::saga::deadlines::Deadlines;

/// How often the queue is asked while nothing is due.
const LOOK: Duration = Duration::from_millis(200);

/// Runs until told to stop; neither part needs the other.
pub async fn run(context: Context, stop: Stop) -> anyhow::Result<()> {
    let deadlines = Arc::new(Deadlines::new(context.redis.clone(), context.store.clone()));
    let (metrics, stopped) = (context.metrics.clone(), stop.clone());
    let queue = {
        let (context, stop) = (context.clone(), stop.clone());
        move || queue(context.clone(), deadlines.clone(), stop.clone())
    };
    let sweep = {
        let stop = stop.clone();
        move || sweep(context.clone(), stop.clone())
    };
    tokio::join!(
        keep("deadlines", metrics.clone(), stopped.clone(), queue),
        keep("sweep", metrics, stopped, sweep)
    );
    Ok(())
}

async fn queue(context: Context, deadlines: Arc<Deadlines>, mut stop: Stop) -> anyhow::Result<()> {
    // Also after an error: what went wrong may have cost the queue or its scripts.
    let known = deadlines.rebuild().await?;
    tracing::info!(known, "deadlines are noted");
    while !*stop.borrow() {
        if context.store.bounded(expire_due(&context, &deadlines)).await? == 0 {
            pause(LOOK, &mut stop).await;
        }
    }
    Ok(())
}

/// Expires what the queue says is due; answers how many orders it named.
async fn expire_due(context: &Context, deadlines: &Deadlines) -> anyhow::Result<usize> {
    let timeout = &context.config.timeout;
    let claim = deadlines.claim(timeout.lease, timeout.claim_max).await?;
    if claim.is_empty() {
        return Ok(0);
    }
    failpoint::reach("F76.after-claim");
    let began = Instant::now();
    let expired = context.store.expire(&claim.orders).await?;
    failpoint::reach("F76.before-finish");
    // Not due by PostgreSQL's clock yet, or held by somebody who may be paying it right now.
    let later = context.store.deadlines(&claim.orders).await?;
    deadlines.finish(&claim, &later).await?;
    if !expired.is_empty() {
        context.metrics.job("expire", "done", began.elapsed());
        tracing::info!(orders = expired.len(), "expired");
    }
    // Orders that only have to be looked at again are no reason to look at once.
    Ok(claim.orders.len() - later.len())
}

async fn sweep(context: Context, mut stop: Stop) -> anyhow::Result<()> {
    let timeout = &context.config.timeout;
    while !*stop.borrow() {
        let began = Instant::now();
        let store = &context.store;
        let overdue = store.bounded(store.overdue(timeout.claim_max)).await?;
        let expired =
            if overdue.is_empty() { overdue } else { store.bounded(store.expire(&overdue)).await? };
        if expired.is_empty() {
            pause(timeout.sweep, &mut stop).await;
            continue;
        }
        context.metrics.job("expire", "swept", began.elapsed());
        tracing::info!(orders = expired.len(), "expired by the sweep");
    }
    Ok(())
}

async fn pause(span: Duration, stop: &mut Stop) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = tokio::time::sleep(span) => {}
    }
}
