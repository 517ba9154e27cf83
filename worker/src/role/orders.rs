//! The `orders` role: accepted orders from RabbitMQ into the books, in batches.
//!
//! One consumer a write queue, and the broker lets only one of all processes read a queue at a time,
//! so that what comes first in a queue is committed first. A message is acknowledged after its
//! commit; whatever happens between is a redelivery that changes nothing. Orders never use the retry
//! ladder: their epoch would end meanwhile. What is wrong with PostgreSQL stops the reading; what is
//! wrong with a message parks it.

mod batch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_shared::amqp::{Consumer, Link, Sender};
use sluice_shared::failpoint;
use sluice_shared::topology::write_queue;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::parking::park;
use crate::process::{Context, Stop, keep};
use crate::store::StoreError;
use batch::{Batch, Poison};

/// How long a batch waits in this process for PostgreSQL before its queue is given to another.
const PATIENCE: Duration = Duration::from_secs(20);
const WAITS: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Runs until told to stop; each queue on its own.
pub async fn run(context: Context, stop: Stop) -> anyhow::Result<()> {
    let mut shards = JoinSet::new();
    let turns = Arc::new(Semaphore::new(context.config.orders.writers));
    for shard in 0..context.config.orders.shards {
        let (metrics, stopped) = (context.metrics.clone(), stop.clone());
        let (context, stop, turns) = (context.clone(), stop.clone(), turns.clone());
        let make = move || read(context.clone(), turns.clone(), shard, stop.clone());
        shards.spawn(keep("orders", metrics, stopped, make));
    }
    while shards.join_next().await.is_some() {}
    Ok(())
}

async fn read(context: Context, turns: Arc<Semaphore>, shard: u16, mut stop: Stop) -> anyhow::Result<()> {
    let (queue, place) = (write_queue(shard), context.place());
    let name = format!("{} orders/{shard:02}", context.who);
    let link = Link::connect(context.config.amqp.url.reveal(), &name).await?;
    let tag = format!("order-writer@{place}/{shard:02}");
    let consumer = link.consumer(&queue, &tag, context.config.orders.prefetch).await?;
    let sender = Sender::new(context.config.amqp.url.reveal(), format!("{name} parked"));
    let mut writer = Writer { context: &context, shard, queue, sender, consumer };
    let broken_down = link.broken_down();
    let done = tokio::select! {
        done = writer.work(&turns, &mut stop) => done,
        () = broken_down => Err(anyhow::anyhow!("the client of rabbitmq has broken down")),
    };
    writer.consumer.close().await;
    link.close().await;
    done
}

struct Writer<'a> {
    context: &'a Context,
    shard: u16,
    queue: String,
    sender: Sender,
    consumer: Consumer,
}

impl Writer<'_> {
    /// Batch after batch, until told to stop.
    async fn work(&mut self, turns: &Semaphore, stop: &mut Stop) -> anyhow::Result<()> {
        while let Some((batch, _turn)) = self.gather(turns, stop).await? {
            self.settle(batch, stop).await?;
        }
        Ok(())
    }

    /// Waits for a message, then takes what else is there, or comes until it is this queue's turn to
    /// write: orders of one offer wait for its row anyway, so few transactions at once, with many
    /// orders each, are the quickest. `None`: the process is to end.
    async fn gather<'t>(
        &mut self,
        turns: &'t Semaphore,
        stop: &mut Stop,
    ) -> anyhow::Result<Option<(Batch, SemaphorePermit<'t>)>> {
        let orders = &self.context.config.orders;
        let mut batch = Batch::new(orders.batch_max);
        let first = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
            next = self.consumer.next() => next,
        };
        batch.take(first.context("the queue is gone")??);
        let (linger, turn) = (sleep(orders.linger), turns.acquire());
        tokio::pin!(linger, turn);
        let mut ready = false;
        loop {
            ready |= batch.is_full();
            tokio::select! {
                biased;
                next = self.consumer.next(), if !batch.is_full() => {
                    batch.take(next.context("the queue is gone")??);
                }
                () = &mut linger, if !ready => ready = true,
                turn = &mut turn, if ready => return Ok(Some((batch, turn?))),
            }
        }
    }

    /// Writes a batch, parks what cannot be written, notes a barrier; then acknowledges all of it.
    async fn settle(&mut self, mut batch: Batch, stop: &Stop) -> anyhow::Result<()> {
        let metrics = &self.context.metrics;
        let began = Instant::now();
        failpoint::reach("F54.before-write");
        let report = self.write(&batch, stop).await?;
        metrics.transaction("orders", began.elapsed());
        let n = [
            ("written", report.written),
            ("repeated", report.repeated),
            ("fenced", report.fenced),
            ("failed", report.failed.len()),
        ];
        n.into_iter().filter(|(_, n)| *n > 0).for_each(|(outcome, n)| metrics.orders(outcome, n));
        for order in &report.failed {
            tracing::error!(%order, "an accepted order failed: the books had no units for it");
        }
        for (at, reason) in report.parked {
            let delivery = std::mem::take(&mut batch.deliveries[at]);
            self.park(&Poison { delivery, reason }).await?;
        }
        for poison in &batch.poison {
            self.park(poison).await?;
        }
        if let Some((barrier, shard)) = &batch.barrier {
            // The queue decides, not the message: the warden counts queues.
            if *shard != self.shard {
                tracing::warn!(shard, queue = self.queue, "a barrier came through another queue");
            }
            let store = &self.context.store;
            store.bounded(store.note_barrier(barrier, self.shard)).await?;
        }
        failpoint::reach("F54.before-ack");
        self.consumer.ack_through(batch.last).await?;
        failpoint::reach("F54.after-ack");
        metrics.job("orders", "done", began.elapsed());
        Ok(())
    }

    /// Writes the orders; while PostgreSQL is away the batch waits, then its queue is given up.
    async fn write(&self, batch: &Batch, stop: &Stop) -> anyhow::Result<crate::store::orders::WriteReport> {
        let (began, mut wait) = (Instant::now(), WAITS[0]);
        loop {
            let store = &self.context.store;
            let away = match store.bounded(store.write_orders(&batch.orders)).await {
                Err(StoreError::Away(why)) => why,
                other => return Ok(other?),
            };
            anyhow::ensure!(began.elapsed() < PATIENCE && !*stop.borrow(), "postgresql is away: {away}");
            self.context.metrics.retry("orders");
            sleep(wait).await;
            wait = (wait * 2).min(WAITS[1]);
        }
    }

    /// The reservation itself is published anew by the warden.
    async fn park(&mut self, poison: &Poison) -> anyhow::Result<()> {
        park(&mut self.sender, &self.context.store, &self.queue, &poison.delivery, &poison.reason).await?;
        self.context.metrics.orders("parked", 1);
        Ok(())
    }
}
