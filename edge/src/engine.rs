//! What lies behind the last filter: sales as Redis tells them, group commit of reservations, orders
//! held until the broker has them, and the edge's place in the register.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::registry::Registry;
use sluice_shared::clock::{Millis, ServerClock};
use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Record};
use sluice_shared::redis::{Fault, Redis, cmd};
pub use sluice_shared::script::{Answer, Ask};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

mod beat;
mod bell;
mod collection;
mod core;
mod desk;
mod erase;
mod follow;
mod latch;
mod metrics;
mod ready;
mod register;
mod relay;
mod reply;
mod sales;
mod stock;
mod sweep;

use core::Core;
use follow::Topics;
use register::Seat;
use sales::Book;

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
    /// Confirmed orders of which a copy is kept, at the most.
    pub spare_max: usize,
    /// How long a copy is kept after the confirm.
    pub spare_for: Duration,
    /// Age at which a journal entry is published by whoever sees it.
    pub sweep_after: Duration,
    /// Event streams that may be open.
    pub streams_max: usize,
    /// How far this machine's clock may be from Redis'.
    pub skew_max: Duration,
    /// How long a subscription is listened to until the next one takes its place.
    pub listen_for: Duration,
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
        /// Epoch of the reply that took them.
        epoch: u64,
        /// Place in the segment's sequence.
        seq: u64,
        /// When they were taken, by Redis' clock.
        at: Millis,
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
    /// The sale list has not been read yet, or no warden has admitted this edge so far.
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

/// How long a stopping engine waits for the broker.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long everything but a purchase may wait for Redis.
const PATIENT: Duration = Duration::from_secs(2);
/// Orders that the workers write in a second, at least.
const WRITTEN_A_SECOND: u32 = 5_000;
/// How long RabbitMQ is likely to stay away, once it is.
const OUTAGE_SECONDS: u32 = 30;

/// The engine of one edge process.
#[derive(Debug)]
pub struct Engine {
    core: Arc<Core>,
    seat: Arc<Seat>,
    book: Arc<Book>,
    topics: Arc<Topics>,
    running: Arc<OnceLock<Running>>,
}

/// What exists only while the engine runs.
#[derive(Debug)]
struct Running {
    handle: Handle,
    redis: Redis,
}

impl Engine {
    /// Takes the lock file; talks to nobody yet.
    pub fn new(config: EngineConfig, registry: &mut Registry) -> anyhow::Result<Arc<Self>> {
        Redis::check_url(&config.redis_url)?;
        let seat = Seat::take(&config.state_dir, &config.name)?;
        let topics = Arc::new(Topics::new(config.streams_max));
        let metrics = metrics::Metrics::new(registry);
        let core = Arc::new(Core::new(config, seat.instance.clone(), metrics));
        let (book, running) = (Arc::default(), Arc::default());
        Ok(Arc::new(Self { core, seat: Arc::new(seat), book, topics, running }))
    }

    /// Works until stopped *and* everything held is confirmed, or 5 s have passed. Purchases are
    /// answered until the end.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let (core, book) = (&self.core, &self.book);
        let config = &core.config;
        let connect = |deadline| Redis::lazy(&config.redis_url, deadline);
        let (hot, cold) = match (connect(config.redis_deadline), connect(PATIENT)) {
            (Ok(hot), Ok(cold)) => (hot, cold),
            (Err(why), _) | (_, Err(why)) => return tracing::error!(%why, "the engine cannot run"),
        };
        if self.running.set(Running { handle: Handle::current(), redis: cold.clone() }).is_err() {
            return tracing::error!("the engine runs already, or did");
        }
        let mut tasks = JoinSet::new();
        let seat = Arc::clone(&self.seat);
        tasks.spawn(sales::run(Arc::clone(core), Arc::clone(book), cold.clone(), hot.clone()));
        tasks.spawn(beat::run(Arc::clone(core), Arc::clone(book), seat, cold.clone(), hot));
        tasks.spawn(stock::run(Arc::clone(core), Arc::clone(book), cold.clone()));
        tasks.spawn(sweep::run(Arc::clone(core), Arc::clone(book), cold.clone()));
        tasks.spawn(erase::run(Arc::clone(core), cold.clone()));
        tasks.spawn(relay::run(Arc::clone(core), connection_name()));
        tasks.spawn(follow::list(Arc::clone(core)));
        tasks.spawn(follow::orders(Arc::clone(core), Arc::clone(book), Arc::clone(&self.topics)));
        // An error means that the sender was dropped: treat it as a stop.
        let _ = stop.wait_for(|stopped| *stopped).await;
        core.draining.store(true, Ordering::Relaxed);
        core.beat.notify_one();
        // Either way the desks close then, and only what they had asked for comes on top.
        let _ = tokio::time::timeout(FAREWELL, self.settle()).await;
        book.close();
        let _ = tokio::time::timeout(config.redis_deadline * 2, self.settle()).await;
        tasks.shutdown().await;
        // What is still to be deleted from a journal is confirmed; anybody's sweep deletes it.
        let held = core.room.taken();
        if held > 0 {
            return tracing::warn!(held, "stopped with orders unconfirmed; the journal has them");
        }
        // Until this edge says that it is gone, a re-opening waits for it.
        let leave = beat::leave(core, book, &self.seat, &cold);
        if tokio::time::timeout(FAREWELL, leave).await.is_err() {
            tracing::warn!("could not take leave; the wardens will find this edge silent");
        }
    }

    /// Comes back once nothing is asked, held or to be deleted.
    async fn settle(&self) {
        while self.core.room.taken() > 0 || self.core.dues().count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Redis' clock, by which windows are judged.
    pub fn clock(&self) -> &ServerClock {
        &self.core.clock
    }

    /// A sale by its id.
    pub fn sale(&self, id: &str) -> Option<Arc<LiveSale>> {
        self.book.sale(id)
    }

    /// Whether the sale list has been read: before, a sale that is not found may exist.
    pub fn knows_sales(&self) -> bool {
        self.book.now().generation.is_some()
    }

    /// A sale by its number in order ids.
    pub fn sale_by_number(&self, number: u32) -> Option<Arc<LiveSale>> {
        self.book.by_number(number)
    }

    /// Takes units for an order; what is answered as accepted is held before.
    pub async fn reserve(&self, sale: &LiveSale, ask: Ask) -> Outcome {
        let Some(place) = self.core.room.take() else { return Outcome::Overloaded };
        match sale.desk(&ask.user) {
            Some(desk) => desk.reserve(ask, place).await,
            None => Outcome::Unavailable,
        }
    }

    /// Seconds within which an order that is accepted now is likely to be written.
    pub fn estimate(&self) -> u32 {
        let waiting = u32::try_from(self.core.room.taken()).unwrap_or(u32::MAX) / WRITTEN_A_SECOND;
        waiting + if self.core.publishes() { 1 } else { OUTAGE_SECONDS }
    }

    /// The record of an order; `None` where Redis does not know the sale or the order.
    pub async fn record(&self, order: &OrderId) -> Result<Option<Record>, EngineFault> {
        self.reader().record(order).await
    }

    /// Whether there is certainly no such order: its sale is served here, and the script, which a Redis
    /// that may have lost orders does not answer, has no record of it.
    pub async fn lacks(&self, order: &OrderId) -> bool {
        let Some(sale) = self.book.by_number(order.sale).filter(|sale| !sale.frozen()) else { return false };
        let Some(desk) = sale.desks().get(usize::from(order.segment)) else { return true };
        match self.core.room.take() {
            Some(place) => desk.lacks(order.uuid, place).await,
            None => false,
        }
    }

    /// Whether this machine's clock and Redis' are so far apart that one of them must be wrong.
    pub fn doubts_clocks(&self) -> bool {
        self.core.doubts_clocks.load(Ordering::Relaxed)
    }

    /// Follows an order; `None` when too many are followed, or its sale is not known here.
    pub fn follow(&self, order: &OrderId) -> Option<Follower> {
        let sale = self.book.by_number(order.sale)?.view.sale.clone();
        Follower::new(&self.topics, *order, sale, self.reader())
    }

    fn reader(&self) -> Reader {
        let (book, running) = (Arc::clone(&self.book), Arc::clone(&self.running));
        Reader { book, running, deadline: self.core.config.redis_deadline }
    }

    /// Whether this edge has been able to sell: it is admitted, and no sale was frozen.
    pub fn has_started(&self) -> bool {
        self.core.started.load(Ordering::Relaxed)
    }
}

/// Reads records from whatever runtime it is asked in.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    book: Arc<Book>,
    running: Arc<OnceLock<Running>>,
    deadline: Duration,
}

impl Reader {
    async fn record(&self, order: &OrderId) -> Result<Option<Record>, EngineFault> {
        let Running { handle, redis } = self.running.get().ok_or(EngineFault::NotRunning)?;
        let Some(segment) = self.book.segment(order) else { return Ok(None) };
        let doing = "reading a record";
        let (redis, deadline) = (redis.clone(), self.deadline);
        let get = cmd("HGET").arg(segment.orders()).arg(order.field()).to_owned();
        // The client's own tasks belong to the engine's runtime, not to the one that asks.
        let read = handle.spawn(async move {
            let late = |_| Fault::Unknown { doing, why: "too late".to_owned() };
            let read = async {
                match redis.run::<Option<String>>(doing, &get).await {
                    // The next command goes over a new connection, and to read twice changes nothing.
                    Err(Fault::Unknown { .. }) => redis.run(doing, &get).await,
                    read => read,
                }
            };
            tokio::time::timeout(deadline, read).await.map_err(late).flatten()
        });
        let Some(text) = read.await.map_err(|_| EngineFault::NotRunning)?? else { return Ok(None) };
        let torn = || Fault::Unreadable { doing, why: "a torn record".to_owned() };
        Ok(Some(Record::parse(&text).ok_or_else(torn)?))
    }
}

/// What operators read in the broker's management UI.
fn connection_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "?".to_owned());
    format!("sluice-edge@{}#{} relay", host.trim(), std::process::id())
}
