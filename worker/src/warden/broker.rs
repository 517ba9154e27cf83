//! Keeps RabbitMQ as the [topology](sluice_shared::topology) describes it.
//!
//! A broker whose data was lost comes back empty, and nobody else may declare anything in it. What was
//! confirmed before is lost with it: orders that are in Redis and have no row yet, and what the books
//! told and Redis does not know yet. So the reconciler is told to look at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::amqp::{AmqpError, Link};
use sluice_shared::topology::Topology;
use tokio::time::{sleep, timeout};

use super::Warden;
use crate::command::topology::management::Management;
use crate::command::topology::put_policies;

/// How often everything is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// A broker that does not answer within this time is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(250);
/// Between two attempts to set the policies, which limit the queues but move nothing.
const POLICIES_AGAIN: Duration = Duration::from_secs(10);

/// Works until it is dropped.
pub async fn run(warden: Arc<Warden>) {
    let topology = Topology::new(warden.context.config.orders.shards);
    let mut keeper = Keeper { warden, topology, limited: None };
    let mut held_up = false;
    loop {
        let Err(error) = keeper.keep(&mut held_up).await;
        if !held_up {
            tracing::warn!(%error, "rabbitmq is away, or cannot be kept as described");
        }
        held_up = true;
        sleep(AGAIN).await;
    }
}

struct Keeper {
    warden: Arc<Warden>,
    topology: Topology,
    /// Whether the policies are set in the broker as it is, or when that was last tried.
    limited: Option<(bool, Instant)>,
}

impl Keeper {
    /// Looks after one connection's broker until the connection breaks.
    async fn keep(&mut self, held_up: &mut bool) -> Result<std::convert::Infallible, AmqpError> {
        let context = &self.warden.context;
        let name = format!("{} topology", context.who);
        let link = in_time(Link::connect(context.config.amqp.url.reveal(), &name)).await?;
        loop {
            if let Err(missing) = in_time(link.check(&self.topology)).await {
                if !missing.is_not_found() {
                    return Err(missing);
                }
                tracing::error!(%missing, "rabbitmq has lost what was declared: it is declared again");
                in_time(link.declare(&self.topology)).await?;
                self.limited = None;
                self.warden.metrics().redeclared.inc();
                self.warden.doubts.note_all();
            }
            *held_up = false;
            self.limit().await;
            sleep(LOOK).await;
        }
    }

    /// Sets the policies, once for a broker.
    async fn limit(&mut self) {
        if self.limited.is_some_and(|(done, at)| done || at.elapsed() < POLICIES_AGAIN) {
            return;
        }
        let config = &self.warden.context.config.amqp;
        let set = match Management::of(config.management_url.reveal(), config.url.reveal()) {
            Ok(management) => put_policies(&management, &self.topology).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &set {
            tracing::warn!(error = format!("{error:#}"), "the limits of the queues cannot be set");
        }
        self.limited = Some((set.is_ok(), Instant::now()));
    }
}

async fn in_time<T>(ask: impl Future<Output = Result<T, AmqpError>>) -> Result<T, AmqpError> {
    timeout(PATIENCE, ask).await.unwrap_or(Err(AmqpError::Silent(PATIENCE)))
}
