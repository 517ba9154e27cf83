//! The one loop that reads a queue of events: decode and handle is the handler's, everything after
//! that is done here. What is there already is handled together.
//!
//! A message that fails goes down the retry ladder, a step a time, and is parked at its end. One that
//! only has to wait (a frozen sale, a server that is away) stays in this process for a while and is
//! tried again, every second or as its handler says. Where too many wait, those that wait longest do so
//! in RabbitMQ, without having failed: joined to few messages, in the retry queue that fits their time.
//! Nothing is given back to its queue: the broker counts that as a failure.

mod room;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::FutureExt;
use sluice_shared::amqp::{Consumer, Delivery, Link, Outgoing, Sender};
use sluice_shared::topology::{LADDER, RETRY, WAITING};

use crate::parking::park;
use crate::process::{Context, Stop};
use crate::store::StoreError;
use room::Room;

/// Messages that are handled together, at the most.
const GROUP_MAX: usize = 32;
/// How long until a message is tried again that waits for something that may come at any moment.
const AGAIN: Duration = Duration::from_secs(1);

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done, now or before.
    Done,
    /// It failed and may succeed another time.
    Retry(String),
    /// It failed for good.
    Dead(String),
    /// It has to wait; nothing is wrong with it.
    Later {
        /// What for.
        why: String,
        /// How long.
        pause: Duration,
    },
}

impl Outcome {
    /// It has to wait for something that may come at any moment.
    pub fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), pause: AGAIN }
    }
}

/// Who handles the messages of a queue.
pub trait Handler {
    /// The queue.
    const QUEUE: &'static str;
    /// How the consumer is called in the management UI.
    const TAG: &'static str;
    /// Whether a message is tried for ever: it stays on the ladder's last step.
    const NEVER_GIVES_UP: bool;

    /// Handles messages; answers the outcome of each, in their order. Once more is as good as once.
    fn handle(&self, group: &[Delivery]) -> impl Future<Output = Vec<Outcome>> + Send;

    /// Bodies that ask together for what these messages ask for, fewer of them where that can be.
    fn join(group: &[Delivery]) -> Vec<Vec<u8>> {
        group.iter().map(|delivery| delivery.body.clone()).collect()
    }
}

/// Whether a message has been on every step of the ladder: it is its last attempt, or one of many
/// where nothing is given up.
pub fn is_last(delivery: &Delivery) -> bool {
    usize::try_from(delivery.attempt).unwrap_or(usize::MAX) >= LADDER.len()
}

/// Runs until told to stop, or until the connection breaks.
pub async fn run<H: Handler>(context: &Context, handler: &H, mut stop: Stop) -> anyhow::Result<()> {
    let name = format!("{} {}", context.who, H::TAG);
    let link = Link::connect(context.config.amqp.url.reveal(), &name).await?;
    let tag = format!("{}@{}", H::TAG, context.place());
    let prefetch = context.config.saga_prefetch;
    let consumer = link.consumer(H::QUEUE, &tag, prefetch).await?;
    let sender = Sender::new(context.config.amqp.url.reveal(), format!("{name} retries"));
    let mut reader = Reader { context, handler, sender, consumer, room: Room::new(prefetch / 2) };
    let broken_down = link.broken_down();
    let done = tokio::select! {
        done = reader.run(&mut stop) => done,
        () = broken_down => Err(anyhow::anyhow!("the client of rabbitmq has broken down")),
    };
    reader.consumer.close().await;
    link.close().await;
    done
}

struct Reader<'a, H> {
    context: &'a Context,
    handler: &'a H,
    sender: Sender,
    consumer: Consumer,
    room: Room,
}

impl<H: Handler> Reader<'_, H> {
    async fn run(&mut self, stop: &mut Stop) -> anyhow::Result<()> {
        loop {
            let now = Instant::now();
            let mut group = self.room.due(now, GROUP_MAX);
            if group.is_empty() {
                let next_due = self.room.next_due().unwrap_or(now + Duration::from_secs(3600));
                let next = tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => return Ok(()),
                    next = self.consumer.next() => next,
                    () = tokio::time::sleep_until(next_due.into()) => continue,
                };
                group.push(next.context("the queue is gone")??);
            }
            while group.len() < GROUP_MAX
                && let Some(next) = self.consumer.next().now_or_never()
            {
                group.push(next.context("the queue is gone")??);
            }
            if *stop.borrow() {
                return Ok(());
            }
            self.handle(group).await?;
        }
    }

    async fn handle(&mut self, group: Vec<Delivery>) -> anyhow::Result<()> {
        let began = Instant::now();
        let handled = async { Ok::<_, StoreError>(self.handler.handle(&group).await) };
        let handled = self.context.store.bounded(handled).await;
        let outcomes = handled.unwrap_or_else(|late| vec![Outcome::later(late.to_string()); group.len()]);
        let took = began.elapsed();
        let mut elsewhere: BTreeMap<(&str, u32), Vec<Delivery>> = BTreeMap::new();
        for (delivery, outcome) in group.into_iter().zip(outcomes) {
            if let Some((delivery, pause)) = self.conclude(delivery, outcome, took).await? {
                elsewhere.entry((waiting_step(pause), delivery.attempt)).or_default().push(delivery);
            }
        }
        for ((step, attempt), group) in elsewhere {
            let key = format!("{step}.{}", H::QUEUE);
            for body in H::join(&group) {
                let Some(first) = group.first() else { break };
                let message = Outgoing { attempt, body: &body, ..Outgoing::again(first, RETRY, &key) };
                self.hand_over(message).await?;
            }
            for delivery in group {
                self.end(delivery.tag).await?;
            }
        }
        self.context.metrics.waiting(H::TAG, self.room.len() as u64);
        Ok(())
    }

    /// Does what an outcome asks for; answers a message that has to wait elsewhere, and how long.
    async fn conclude(
        &mut self,
        delivery: Delivery,
        outcome: Outcome,
        took: Duration,
    ) -> anyhow::Result<Option<(Delivery, Duration)>> {
        let word = match &outcome {
            Outcome::Done => "done",
            Outcome::Retry(_) => "retry",
            Outcome::Dead(_) => "parked",
            Outcome::Later { .. } => "later",
        };
        self.context.metrics.job(H::TAG, word, took);
        match outcome {
            Outcome::Done => self.end(delivery.tag).await?,
            Outcome::Retry(why) => self.retry(delivery, &why).await?,
            Outcome::Dead(why) => self.park(delivery, &why).await?,
            Outcome::Later { why, pause } => {
                tracing::debug!(queue = H::QUEUE, why, "a message waits");
                self.context.metrics.retry(H::TAG);
                return Ok(self.room.hold(delivery, pause, Instant::now()));
            }
        }
        Ok(None)
    }

    async fn retry(&mut self, delivery: Delivery, why: &str) -> anyhow::Result<()> {
        let failed = usize::try_from(delivery.attempt).unwrap_or(usize::MAX);
        if is_last(&delivery) && !H::NEVER_GIVES_UP {
            return self.park(delivery, &format!("failed {} times, at last: {why}", failed + 1)).await;
        }
        tracing::warn!(queue = H::QUEUE, id = delivery.id, attempt = failed + 1, why, "a message failed");
        self.context.metrics.retry(H::TAG);
        let (step, attempt) = (LADDER[failed.min(LADDER.len() - 1)].0, delivery.attempt.saturating_add(1));
        self.put_off(delivery, step, attempt, why).await
    }

    /// Puts a message off to a step of the ladder.
    async fn put_off(
        &mut self,
        delivery: Delivery,
        step: &str,
        attempt: u32,
        why: &str,
    ) -> anyhow::Result<()> {
        let key = format!("{step}.{}", H::QUEUE);
        let message = Outgoing { attempt, reason: Some(why), ..Outgoing::again(&delivery, RETRY, &key) };
        self.hand_over(message).await?;
        self.end(delivery.tag).await
    }

    /// Hands a message to a step of the ladder, or to the queue beside it: the broker has it there then.
    async fn hand_over(&mut self, message: Outgoing<'_>) -> anyhow::Result<()> {
        self.sender.send(message).await.context("putting a message off")?;
        self.context.metrics.put_off(H::TAG);
        Ok(())
    }

    async fn end(&mut self, tag: u64) -> anyhow::Result<()> {
        self.room.forget(tag);
        Ok(self.consumer.ack(tag).await?)
    }

    async fn park(&mut self, delivery: Delivery, why: &str) -> anyhow::Result<()> {
        park(&mut self.sender, &self.context.store, H::QUEUE, &delivery, why).await?;
        self.end(delivery.tag).await
    }
}

/// The retry queue whose wait is the shortest that is long enough.
fn waiting_step(pause: Duration) -> &'static str {
    let fits = |(_, delay): &&(&str, u32)| Duration::from_millis(u64::from(*delay)) >= pause;
    let longest = LADDER[LADDER.len() - 1];
    [WAITING].iter().chain(&LADDER).find(fits).map_or(longest.0, |(step, _)| step)
}
