//! Hands held orders to the broker, in the order of acceptance, and lets go of what it confirmed.
//! Buyers never wait for it: while the broker is away or blocked, orders stay held.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rand::RngExt;
use sluice_protocol::edge::departure::Departure;
use sluice_protocol::edge::held::Ticket;
use sluice_shared::amqp::{AmqpError, Link, Outgoing, Publisher};
use sluice_shared::failpoint;
use sluice_shared::topology::{ORDERS, write_key};

use super::core::Core;
use super::desk::until;
use super::erase;

/// Messages taken from the held orders, or confirms noted, in one go.
const BULK: usize = 256;
/// A full window is refilled from so much room on: one message at a time would wake everybody for each.
const REFILL: usize = 128;
/// How often a quiet connection is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long a connection that is not blocked may confirm nothing until it is given up.
const STALL: Duration = Duration::from_secs(15);
/// Between two attempts to connect: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long connecting may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connects, publishes, connects again; for as long as the engine runs.
pub(crate) async fn run(core: Arc<Core>, name: String) {
    let keys: Vec<String> = (0..core.config.shards.max(1)).map(write_key).collect();
    let mut pause = BACK_OFF.0;
    loop {
        let connect = tokio::time::timeout(HANDSHAKE, connect(&core.config.amqp_url, &name)).await;
        match connect {
            Ok(Ok((link, publisher))) => {
                tracing::info!("connected to rabbitmq");
                show(&core, true, false);
                core.spares().broken(Instant::now());
                let mut session = Session { core: &core, keys: &keys, link, publisher, confirmed: 0 };
                let broken_down = session.link.broken_down();
                let why = tokio::select! {
                    why = session.serve() => why,
                    () = broken_down => "its client has broken down",
                };
                show(&core, false, false);
                core.held().broken();
                core.spares().broken(Instant::now());
                core.metrics.unconfirmed.set(0);
                tracing::warn!(why, "rabbitmq is gone; orders stay held and go out later");
                if session.confirmed > 0 {
                    pause = BACK_OFF.0;
                }
                session.link.close().await;
            }
            Ok(Err(why)) => tracing::warn!(%why, "rabbitmq cannot be reached; orders stay held"),
            Err(_) => tracing::warn!("rabbitmq does not answer; orders stay held"),
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(BACK_OFF.1);
    }
}

async fn connect(url: &str, name: &str) -> Result<(Link, Publisher), AmqpError> {
    let link = Link::connect(url, name).await?;
    let publisher = link.publisher().await?;
    Ok((link, publisher))
}

fn show(core: &Core, connected: bool, blocked: bool) {
    core.connected.store(connected, Ordering::Relaxed);
    core.blocked.store(blocked, Ordering::Relaxed);
    core.metrics.connected.set(i64::from(connected));
    core.metrics.blocked.set(i64::from(blocked));
}

/// One connection's time.
struct Session<'a> {
    core: &'a Core,
    keys: &'a [String],
    link: Link,
    publisher: Publisher,
    confirmed: u64,
}

impl Session<'_> {
    /// Publishes until the connection is of no use any more; answers why.
    async fn serve(&mut self) -> &'static str {
        let core = self.core;
        let (mut blocked, mut confirms) = (self.link.blocked(), FuturesUnordered::new());
        let (mut look, mut heard) = (tokio::time::interval(LOOK), Instant::now());
        let mut departure = Departure::default();
        // What was held before, first of all.
        departure.at_once(Instant::now());
        let mut said = Vec::with_capacity(BULK);
        let window = core.config.amqp_inflight.max(1);
        let enough = window - REFILL.min(window.div_ceil(2));
        loop {
            while departure.is_due(Instant::now()) && !*blocked.borrow() && confirms.len() <= enough {
                let room = window - confirms.len();
                let jobs = core.held().take(room.min(BULK), Instant::now());
                if jobs.is_empty() {
                    departure.left();
                }
                for (ticket, lane, parcel) in jobs {
                    let (key, id) = (self.keys[lane].as_str(), parcel.order.to_string());
                    let message = Outgoing {
                        exchange: ORDERS,
                        key,
                        id: &id,
                        kind: "order.accepted",
                        sale: Some(parcel.segment.sale.as_str()),
                        body: &parcel.body,
                        ..Outgoing::default()
                    };
                    failpoint::reach("F7.before-publish");
                    let Ok(confirm) = self.publisher.publish(message).await else { return "publish failed" };
                    confirms.push(confirm.map(move |said| (ticket, said)));
                }
            }
            core.metrics.unconfirmed.set(super::metrics::number(confirms.len()));
            tokio::select! {
                biased;
                Some(first) = confirms.next(), if !confirms.is_empty() => {
                    said.push(first);
                    while said.len() < BULK && let Some(Some(next)) = confirms.next().now_or_never() {
                        said.push(next);
                    }
                    heard = Instant::now();
                    if !self.note(&mut said) { return "connection broken" }
                }
                () = core.publish.notified() => departure.at_once(Instant::now()),
                () = core.publish_soon.notified(), if !departure.is_set() => departure.soon(Instant::now()),
                () = until(departure.to_come(Instant::now())) => {}
                changed = blocked.changed() => {
                    if changed.is_err() { return "connection closed" }
                    show(core, true, *blocked.borrow());
                    heard = Instant::now();
                }
                _ = look.tick() => {
                    // What came back goes out again after a rest.
                    departure.at_once(Instant::now());
                    if !self.link.is_up() { return "connection closed" }
                    if confirms.is_empty() || *blocked.borrow() { heard = Instant::now() }
                    if heard.elapsed() > STALL { return "no confirm comes" }
                }
            }
        }
    }

    /// Notes what the broker said; `false` when it can say no more.
    fn note(&mut self, said: &mut Vec<(Ticket, Result<(), AmqpError>)>) -> bool {
        failpoint::reach("F8.before-confirm");
        let core = self.core;
        let (mut confirmed, mut up) = (Vec::with_capacity(said.len()), true);
        for (ticket, word) in said.drain(..) {
            match word {
                Ok(()) => confirmed.push(ticket),
                Err(AmqpError::Returned(why)) => self.failed(ticket, "returned", &why),
                Err(AmqpError::Refused) => self.failed(ticket, "refused", "its queue is full"),
                Err(AmqpError::Broken(_) | AmqpError::Topology(_) | AmqpError::Silent(_)) => up = false,
            }
        }
        if !confirmed.is_empty() {
            self.confirmed += confirmed.len() as u64;
            core.metrics.published_by("confirmed", confirmed.len() as u64);
            let (parcels, waiters) = {
                // In one step: a re-opening that looks meanwhile finds each order held or copied.
                let mut held = core.held();
                let (parcels, waiters) = held.confirmed(&confirmed);
                core.spares().keep(&parcels, Instant::now());
                (parcels, waiters)
            };
            for waiter in waiters {
                // An error means that the buyer has gone: there is nobody to tell.
                let _ = waiter.send(());
            }
            failpoint::reach("F9.after-confirm");
            erase::owe(core, &parcels);
        }
        up
    }

    fn failed(&self, ticket: Ticket, word: &'static str, why: &str) {
        self.core.metrics.published_by(word, 1);
        if self.core.held().failed(ticket, Instant::now()) {
            tracing::warn!(word, why, "a write queue does not take orders; it is tried again");
        }
    }
}
