//! The `reconcile` role: the [`warden`](crate::warden). Two processes run it, and one of them leads.

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::process::{Context, Stop};
use crate::warden::{Warden, leases};

/// Runs until told to stop.
pub async fn run(context: Context, mut stop: Stop) -> anyhow::Result<()> {
    let warden = Warden::new(context);
    let (tell, mut leading) = watch::channel(false);
    let mut renewing = JoinSet::new();
    renewing.spawn(leases::run(warden.clone(), tell, stop.clone()));
    while !*stop.borrow() {
        tokio::select! {
            turn = leading.wait_for(|leads| *leads) => { turn?; }
            _ = stop.changed() => break,
        }
        tokio::select! {
            () = warden.work() => {}
            turn = leading.wait_for(|leads| !*leads) => { turn?; }
            _ = stop.changed() => break,
        }
    }
    while let Some(ended) = renewing.join_next().await {
        ended?;
    }
    Ok(())
}
