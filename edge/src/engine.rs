//! What lies behind the last filter: sales as Redis tells them, group commit of reservations, orders
//! held until the broker has them, and the edge's place in the register.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use sluice_shared::clock::ServerClock;
use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Record};
use sluice_shared::redis::Fault;
pub use sluice_shared::script::{Answer, Ask};

mod follow;
mod sales;

pub use follow::Follower;
pub use sales::{LiveSale, PublicState};

/// What the engine is told at its start.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Name of this edge; its lock file is `<state_dir>/<name>.lock`.
    pub name: String,
    /// Where the lock file lives.
    pub state_dir: PathBuf,
    /// Redis.
    pub redis_url: String,
    /// How long a buyer waits for Redis.
    pub redis_deadline: Duration,
    /// RabbitMQ.
    pub amqp_url: String,
    /// Messages that may wait for their confirm.
    pub amqp_inflight: usize,
    /// Write queues that orders are spread over.
    pub shards: u16,
    /// Orders in one call of the script, at the most.
    pub batch_max: usize,
    /// Calls of the script that may be out for one segment.
    pub batches_inflight: usize,
    /// Orders that may wait for a call, for one segment.
    pub queue_max: usize,
    /// Orders that may be held for the broker.
    pub held_max: usize,
    /// Age at which a journal entry is published by whoever sees it.
    pub sweep_after: Duration,
    /// Event streams that may be open.
    pub streams_max: usize,
}

/// What became of one reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The units are taken, now or by an earlier request of the same token.
    Accepted {
        /// The present state of the order.
        state: OrderState,
        /// Whether an earlier request took them.
        replayed: bool,
        /// Epoch of the reply that says so.
        epoch: u64,
        /// Place in the segment's sequence.
        seq: u64,
    },
    /// The script refused; never `Ok` or `Replay`.
    Refused(Answer),
    /// The sale is frozen; nothing was done.
    Frozen,
    /// A limit is reached; nothing was done.
    Overloaded,
    /// Nobody knows; the same token will tell.
    Unavailable,
}

/// Whether traffic should come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyState {
    /// The sale list has not been read yet.
    Starting,
    /// Yes.
    Ready,
    /// Stopping.
    Draining,
    /// Redis has not answered for two seconds.
    NoRedis,
}

/// Readiness, and what is not well although traffic may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether traffic should come here.
    pub state: ReadyState,
    /// What is not well, for operators.
    pub reasons: Vec<String>,
}

/// Why the engine cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    /// Redis gave no good answer.
    #[error(transparent)]
    Redis(#[from] Fault),
    /// The engine has not started or has ended.
    #[error("the engine is not running")]
    NotRunning,
}

/// The engine of one edge process.
#[derive(Debug)]
pub struct Engine {
    clock: ServerClock,
}

impl Engine {
    /// Takes the lock file; talks to nobody yet.
    pub fn new(_config: EngineConfig, _registry: &mut Registry) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self { clock: ServerClock::default() }))
    }

    /// Works until stopped *and* everything held is confirmed, or 5 s have passed.
    pub async fn run(self: Arc<Self>, mut stop: tokio::sync::watch::Receiver<bool>) {
        let _ = stop.wait_for(|stopped| *stopped).await;
    }

    /// Redis' clock, by which windows are judged.
    pub fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// A sale by its id.
    pub fn sale(&self, _id: &str) -> Option<Arc<LiveSale>> {
        None
    }

    /// A sale by its number in order ids.
    pub fn sale_by_number(&self, _number: u32) -> Option<Arc<LiveSale>> {
        None
    }

    /// Takes units for an order; what is answered as accepted is held before.
    pub async fn reserve(&self, _sale: &LiveSale, _ask: Ask) -> Outcome {
        Outcome::Unavailable
    }

    /// The record of an order; `None` where Redis does not know the sale or the order.
    pub async fn record(&self, _order: &OrderId) -> Result<Option<Record>, EngineFault> {
        Err(EngineFault::NotRunning)
    }

    /// Follows an order; `None` when too many are followed.
    pub fn follow(&self, _order: &OrderId) -> Option<Follower> {
        None
    }

    /// Whether traffic should come here.
    pub fn readiness(&self) -> Readiness {
        Readiness { state: ReadyState::Starting, reasons: Vec::new() }
    }
}
