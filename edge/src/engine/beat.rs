//! The sign of life: what the warden asks, and what this edge answers; for a re-opening, see
//! [`collection`](super::collection).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluice_shared::keys::{EDGES, GENERATION, REGISTER};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::Heartbeat;

use super::collection::Collection;
use super::core::Core;
use super::register::Seat;
use super::sales::Book;

/// Between two signs of life.
const EVERY: Duration = Duration::from_millis(500);
/// The same while a re-opening waits for us, or the sale list is behind.
const HASTE: Duration = Duration::from_millis(100);

/// Beats for as long as the engine runs.
pub(crate) async fn run(core: Arc<Core>, book: Arc<Book>, seat: Arc<Seat>, redis: Redis, hot: Redis) {
    let (mut collection, mut behind) = (Collection::default(), None);
    loop {
        // By the buyers' connection: it is mended before they need it, and counts when it is not.
        match hot.time().await {
            Ok(now) => {
                core.touch();
                core.clock.observe(now);
            }
            Err(why) => tracing::debug!(%why, "redis does not answer"),
        }
        let soon = match beat(&core, &book, &seat, &redis, &mut collection, &mut behind).await {
            Ok(soon) => {
                *core.refusal() = None;
                soon
            }
            Err(why) => {
                if let Fault::Refused { why, .. } = &why {
                    *core.refusal() = Some(why.clone());
                }
                tracing::debug!(%why, "no sign of life given");
                false
            }
        };
        measure(&core, &book);
        let pause = if soon { HASTE } else { EVERY };
        // Woken early when the sale list changed: somebody waits until every edge knows it.
        let _ = tokio::time::timeout(pause, core.beat.notified()).await;
    }
}

/// One beat; answers whether the next one shall come soon. `behind` is the generation of the sale list that
/// was found behind Redis' by the last one.
async fn beat(
    core: &Core,
    book: &Book,
    seat: &Seat,
    redis: &Redis,
    collection: &mut Collection,
    behind: &mut Option<Option<u64>>,
) -> Result<bool, Fault> {
    let doing = "looking for the warden's wishes";
    let (generation, registered) = (cmd("GET").arg(GENERATION).to_owned(), in_register(seat));
    let (generation, reopening, admitted) = tokio::try_join!(
        redis.run::<Option<u64>>(doing, &generation),
        collection.look(core, redis),
        redis.run::<bool>(doing, &registered),
    )?;
    core.admitted.store(admitted, Ordering::Relaxed);
    let sales = book.now();
    if admitted && sales.generation.is_some() && !sales.all().any(|sale| sale.frozen()) {
        core.started.store(true, Ordering::Relaxed);
    }
    // Any other generation: a Redis that was restored counts from its start again. Where the bell has
    // told of it, the list is being read, and another one soon.
    let known = book.now().generation;
    let late = generation.is_some() && generation != known;
    if late && *behind == Some(known) {
        core.read_all();
    }
    *behind = late.then_some(known);
    give(&sign(core, book, seat, collection), redis).await?;
    Ok(reopening || late)
}

fn in_register(seat: &Seat) -> sluice_shared::redis::Cmd {
    cmd("HEXISTS").arg(REGISTER).arg(seat.instance.as_str()).to_owned()
}

fn sign(core: &Core, book: &Book, seat: &Seat, collection: &Collection) -> Heartbeat {
    let held = core.held();
    Heartbeat {
        instance: seat.instance.clone(),
        name: core.config.name.clone(),
        lock: seat.lock.clone(),
        start: seat.start,
        at: core.clock.now(),
        generation: book.now().generation.unwrap_or(0),
        held: held.count() as u64,
        draining: core.draining.load(Ordering::Relaxed),
        gone: false,
        closed: collection.answers(&held),
        broker: core.connected.load(Ordering::Relaxed),
    }
}

/// A last sign, until Redis has it: nothing is held, nobody need wait for this instance. It stays until a
/// warden has read it.
pub(crate) async fn leave(core: &Core, book: &Book, seat: &Seat, redis: &Redis) {
    let last = Heartbeat { gone: true, ..sign(core, book, seat, &Collection::default()) };
    while let Err(why) = give(&last, redis).await {
        tracing::debug!(%why, "could not take leave");
        tokio::time::sleep(HASTE).await;
    }
}

async fn give(sign: &Heartbeat, redis: &Redis) -> Result<(), Fault> {
    let text = serde_json::to_string(sign).unwrap_or_default();
    let mut set = cmd("HSET");
    set.arg(EDGES).arg(sign.instance.as_str()).arg(text);
    redis.run::<u64>("giving a sign of life", &set).await.map(drop)
}

fn measure(core: &Core, book: &Book) {
    let (metrics, sales) = (&core.metrics, book.now());
    let (held, oldest) = {
        let held = core.held();
        (held.count(), held.oldest())
    };
    metrics.held.set(super::metrics::number(held));
    let spares = {
        let mut spares = core.spares();
        spares.trim(Instant::now());
        spares.count()
    };
    metrics.spares.set(super::metrics::number(spares));
    metrics.lag.set(oldest.map_or(0.0, |since| Instant::now().duration_since(since).as_secs_f64()));
    let most = i64::try_from(core.config.skew_max.as_millis()).unwrap_or(i64::MAX);
    core.doubts_clocks.store(core.clock.skew_ms().abs() > most, Ordering::Relaxed);
    metrics.skew.set(core.clock.skew_ms() as f64 / 1000.0);
    let frozen = sales.all().map(|sale| sale.frozen_segments()).sum();
    metrics.frozen.set(super::metrics::number(frozen));
    let mut latches = [0; 3];
    for sale in sales.all() {
        latches.iter_mut().zip(sale.latch().counts()).for_each(|(sum, count)| *sum += count);
    }
    for (word, count) in ["shut", "empty", "selling"].into_iter().zip(latches) {
        metrics.latches(word, count);
    }
}
