//! The warden: keeps what sells in agreement with what is true.
//!
//! Two processes of the `reconcile` role run; one leads ([`lead`](sluice_protocol::warden::lead)). Only the leader works, in tasks
//! that do not wait for each other:
//!
//! - [`leases`] renews the leadership and the right to sell of every open segment. It needs Redis
//!   only, so that neither PostgreSQL nor RabbitMQ can stop a sale, and it lives through a change of
//!   leaders.
//! - [`segments`] brings sales from PostgreSQL into Redis, and notices when Redis is not the one that
//!   was opened: then [`reopen`] goes the whole way of [`reopening`](sluice_protocol::warden::reopening), to be sure that nothing accepted
//!   is lost and nothing is sold twice; what Redis has lost, [`restore`](mod@restore) puts back.
//! - [`roll`] keeps the [`register`](sluice_protocol::warden::register) of edges; `striking` takes silent ones out of it.
//! - [`broker`] declares again what RabbitMQ has lost.
//! - [`reconcile`] publishes what has no row, releases what is dead, tells again what Redis does not know
//!   ([`behind`](mod@behind)), and measures drift.

pub mod behind;
pub mod broker;
pub mod doubts;
pub mod image;
pub mod leases;
pub mod mark;
pub mod outlet;
pub mod projection;
pub mod reconcile;
pub mod reopen;
mod restore;
pub mod roll;
pub mod scan;
pub mod segments;
mod striking;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_shared::ids::InstanceId;
use sluice_shared::keys::{SALES, Segment};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::SaleView;
use sluice_shared::script::{Leased, WardenScripts};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::metrics::warden::Metrics;

use crate::process::Context;
use doubts::Doubts;

/// Why a round of the warden was cut short; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Redis.
    #[error(transparent)]
    Redis(#[from] Fault),
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// RabbitMQ.
    #[error(transparent)]
    Amqp(#[from] sluice_shared::amqp::AmqpError),
    /// Something that is not where it should be.
    #[error("{0}")]
    Odd(String),
}

impl Trouble {
    /// Whether it may be of one segment alone, such as a key of another type: the others go on.
    fn is_local(&self) -> bool {
        match self {
            Self::Odd(_) => true,
            Self::Redis(fault) => fault.is_local(),
            Self::Store(_) | Self::Amqp(_) => false,
        }
    }
}

/// Pages of segments that are restored, under way at once, over all segments.
const RESTORING: usize = 8;
/// After a turn that ended before its time.
const AGAIN: Duration = Duration::from_millis(500);

/// What the leader's tasks share.
#[derive(Debug)]
pub struct Warden {
    context: Context,
    scripts: WardenScripts,
    floor: Mutex<Floor>,
    // Held while leases are being renewed: a segment that is taken off the floor is renewed no more
    // once this was free.
    renewing: tokio::sync::Mutex<()>,
    doubts: Doubts,
    /// Room for pages of segments that are restored: leases are renewed over the same connection.
    restoring: Arc<Semaphore>,
}

/// What may sell, and through whom.
#[derive(Debug, Default)]
struct Floor {
    serving: BTreeMap<Segment, u64>,
    /// How many edges each re-opening waits for.
    waiting: BTreeMap<Segment, usize>,
    admitted: BTreeSet<InstanceId>,
}

impl Warden {
    /// A warden of this process.
    pub fn new(context: Context) -> Arc<Self> {
        Arc::new(Self {
            context,
            scripts: WardenScripts::default(),
            floor: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
            doubts: Doubts::default(),
            restoring: Arc::new(Semaphore::new(RESTORING)),
        })
    }

    /// The leader's work; ends only when a part of it has broken down. Dropping it stops everything that it
    /// began.
    pub async fn work(self: &Arc<Self>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(segments::run(self.clone()));
        tasks.spawn(roll::run(self.clone()));
        tasks.spawn(broker::run(self.clone()));
        tasks.spawn(reconcile::run(self.clone()));
        // The others are of no use without it: end the turn, and lead again from the start.
        if let Some(ended) = tasks.join_next().await {
            let error = ended.err().map(|error| error.to_string());
            tracing::error!(?error, "a task of the warden broke down");
        }
        drop(tasks);
        tokio::time::sleep(AGAIN).await;
    }

    fn redis(&self) -> &Redis {
        &self.context.redis
    }

    fn metrics(&self) -> &Metrics {
        &self.context.metrics.warden
    }

    fn lease_span(&self) -> Duration {
        self.context.config.reconcile.lease
    }

    fn floor<T>(&self, change: impl FnOnce(&mut Floor) -> T) -> T {
        change(&mut self.floor.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Renews the lease of a segment for `span`, admitting and striking off edges with it.
    async fn lease(
        &self,
        segment: &Segment,
        epoch: u64,
        span: Duration,
        admit: &[InstanceId],
        strike: &[InstanceId],
    ) -> Result<Leased, Fault> {
        let (scripts, redis) = (&self.scripts, self.redis());
        match scripts.lease(redis, segment, epoch, span, admit, strike).await {
            Err(Fault::NoScript { .. }) => {
                scripts.load(redis).await?;
                scripts.lease(redis, segment, epoch, span, admit, strike).await
            }
            answer => answer,
        }
    }

    /// Takes a segment off the floor for good: no renewal of its lease is under way afterwards.
    async fn take_off(&self, segment: &Segment) {
        self.floor(|floor| floor.serving.remove(segment));
        drop(self.renewing.lock().await);
    }

    /// The sales as Redis has them.
    async fn views(&self) -> Result<Vec<SaleView>, Fault> {
        let texts: Vec<String> = self.redis().run("reading the sales", cmd("HVALS").arg(SALES)).await?;
        Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }
}
