//! How roles begin and end in a worker process.

pub mod api;
pub mod orders;
pub mod outbox;
pub mod reconcile;
pub mod saga;
pub mod timeout;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, Role};
use crate::process::{Context, Stop, keep};
use crate::status;

/// Runs a role until it is told to stop, or until something is wrong.
async fn run(role: Role, context: Context, stop: Stop) -> anyhow::Result<()> {
    match role {
        Role::Orders => orders::run(context, stop).await,
        Role::Outbox => outbox::run(context, stop).await,
        Role::Saga => saga::run(context, stop).await,
        Role::Timeout => timeout::run(context, stop).await,
        Role::Api => api::run(context, stop).await,
        Role::Reconcile => reconcile::run(context, stop).await,
    }
}

/// Runs roles until SIGTERM or SIGINT, then lets them finish what they have begun; a second signal
/// ends the process at once. Answers the exit code.
pub async fn serve(roles: &[Role], config: Config) -> u8 {
    let grace = config.grace;
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tracing::error!("signals cannot be handled here");
        return 1;
    };
    let context = match Context::new(config) {
        Ok(context) => context,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the process cannot be prepared");
            return 1;
        }
    };
    let (tell, stop) = watch::channel(false);
    let mut running = JoinSet::new();
    for role in roles {
        let (role, context, stop) = (*role, context.clone(), stop.clone());
        let (metrics, stopped) = (context.metrics.clone(), stop.clone());
        let make = move || run(role, context.clone(), stop.clone());
        running.spawn(keep(role.as_str(), metrics, stopped, make));
    }
    if let Some(listen) = context.config.status {
        let (metrics, stopped, context) = (context.metrics.clone(), stop.clone(), context.clone());
        let make = move || status::serve(listen, context.clone(), stop.clone());
        running.spawn(keep("status", metrics, stopped, make));
    }
    let names: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
    tracing::info!(who = &*context.who, name = context.config.name, roles = names.join(" "), "started");
    let signalled = async |terminate: &mut Signal, interrupt: &mut Signal| {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    signalled(&mut terminate, &mut interrupt).await;
    tracing::info!("stopping");
    tell.send_replace(true);
    let finished = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = finished => {
            context.store.close().await;
            tracing::info!("stopped");
            0
        }
        () = tokio::time::sleep(grace) => {
            tracing::warn!("not everything was finished in time");
            1
        }
        () = signalled(&mut terminate, &mut interrupt) => 1,
    }
}
