//! What every part of the engine shares.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_protocol::edge::dues::Dues;
use sluice_protocol::edge::held;
use sluice_protocol::edge::room::Room;
use sluice_protocol::edge::spares::Spares;
use sluice_shared::clock::ServerClock;
use sluice_shared::ids::InstanceId;
use tokio::sync::{Notify, oneshot};

use super::EngineConfig;
use super::bell::Rung;
use super::metrics::Metrics;

/// Tells a buyer that the broker has his order.
pub(crate) type Waiter = oneshot::Sender<()>;
/// The orders that this edge holds.
pub(crate) type Held = held::Held<Waiter>;

/// Shared by all tasks of the engine.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: EngineConfig,
    pub(crate) instance: InstanceId,
    pub(crate) clock: ServerClock,
    pub(crate) room: Room,
    pub(crate) metrics: Metrics,
    held: Mutex<Held>,
    dues: Mutex<Dues>,
    spares: Mutex<Spares>,
    /// There is something to publish, and somebody waits for it.
    pub(crate) publish: Notify,
    /// There is something to publish, for which nobody waits.
    pub(crate) publish_soon: Notify,
    /// There is something to delete from a journal.
    pub(crate) erase: Notify,
    /// The sale list may have changed.
    pub(crate) refresh: Notify,
    /// The warden waits for a sign of life.
    pub(crate) beat: Notify,
    /// Somebody wants to hear of a sale's orders.
    pub(crate) listen: Notify,
    /// The broker is connected.
    pub(crate) connected: AtomicBool,
    /// The broker blocks publishers.
    pub(crate) blocked: AtomicBool,
    /// The engine is stopping.
    pub(crate) draining: AtomicBool,
    /// The warden has registered this instance.
    pub(crate) admitted: AtomicBool,
    /// This instance was admitted and could sell, once.
    pub(crate) started: AtomicBool,
    /// This machine's clock is too far from Redis'.
    pub(crate) doubts_clocks: AtomicBool,
    /// Why Redis has refused to write, last time.
    refusal: Mutex<Option<String>>,
    /// What was told of the sale list since it was read.
    rung: Mutex<Rung>,
    born: Instant,
    contact: AtomicU64,
}

impl Core {
    pub(crate) fn new(config: EngineConfig, instance: InstanceId, metrics: Metrics) -> Self {
        Self {
            room: Room::new(config.held_max),
            held: Mutex::new(Held::new(config.shards)),
            dues: Mutex::default(),
            spares: Mutex::new(Spares::new(config.spare_max, config.spare_for)),
            clock: ServerClock::default(),
            publish: Notify::new(),
            publish_soon: Notify::new(),
            erase: Notify::new(),
            refresh: Notify::new(),
            beat: Notify::new(),
            listen: Notify::new(),
            connected: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            admitted: AtomicBool::new(false),
            started: AtomicBool::new(false),
            doubts_clocks: AtomicBool::new(false),
            refusal: Mutex::default(),
            rung: Mutex::default(),
            born: Instant::now(),
            contact: AtomicU64::new(u64::MAX),
            config,
            instance,
            metrics,
        }
    }

    /// The orders held. Never kept over an await.
    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The journal entries to delete. Never kept over an await.
    pub(crate) fn dues(&self) -> MutexGuard<'_, Dues> {
        self.dues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies of what was confirmed. Never kept over an await.
    pub(crate) fn spares(&self) -> MutexGuard<'_, Spares> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was told of the sale list. Never kept over an await.
    pub(crate) fn rung(&self) -> MutexGuard<'_, Rung> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sale list has to be read as a whole.
    pub(crate) fn read_all(&self) {
        self.rung().lost();
        self.refresh.notify_one();
    }

    /// Why Redis refuses to write, where it does.
    pub(crate) fn refusal(&self) -> MutexGuard<'_, Option<String>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Redis answered just now.
    pub(crate) fn touch(&self) {
        let age = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.contact.store(age, Ordering::Relaxed);
    }

    /// How long this edge has run.
    pub(crate) fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// How long ago Redis answered; `None` when it never did.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let last = self.contact.load(Ordering::Relaxed);
        (last != u64::MAX).then(|| self.born.elapsed().saturating_sub(Duration::from_millis(last)))
    }

    /// Whether the broker takes messages now.
    pub(crate) fn publishes(&self) -> bool {
        self.connected.load(Ordering::Relaxed) && !self.blocked.load(Ordering::Relaxed)
    }
}
