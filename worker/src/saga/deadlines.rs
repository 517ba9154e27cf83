//! Deadlines: the delay queue in Redis, and how it is rebuilt from the books.
//!
//! The queue only spreads the work and wakes it up; whether an order expires is decided by one
//! conditional update in PostgreSQL, and a sweep finds what the queue has lost.

use std::time::Duration;

use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::redis::{Fault, Redis};
use sluice_shared::script::DelayQueue;

use crate::store::orders::Deadline;
use crate::store::{Store, StoreError};

/// Deadlines in one page of a rebuild.
const PAGE: u32 = 1000;

/// Why deadlines could not be noted or taken.
#[derive(Debug, thiserror::Error)]
pub enum DeadlineError {
    /// Redis.
    #[error(transparent)]
    Redis(#[from] Fault),
    /// The books.
    #[error(transparent)]
    Books(#[from] StoreError),
}

/// The delay queue of all orders.
#[derive(Debug)]
pub struct Deadlines {
    queue: DelayQueue,
    redis: Redis,
    store: Store,
}

/// Deadlines that are due, taken under a lease.
#[derive(Debug)]
pub struct Claim {
    token: String,
    tasks: Vec<String>,
    /// The orders.
    pub orders: Vec<OrderId>,
}

impl Claim {
    /// Whether nothing was due.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

impl Deadlines {
    /// The queue in this Redis, with these books behind it.
    pub fn new(redis: Redis, store: Store) -> Self {
        Self { queue: DelayQueue::new(0), redis, store }
    }

    /// Makes Redis know the scripts, and every unpaid order's deadline; answers how many.
    pub async fn rebuild(&self) -> Result<u64, DeadlineError> {
        self.queue.load(&self.redis).await?;
        let (mut after, mut count): (Option<Deadline>, u64) = (None, 0);
        loop {
            let page = self.store.bounded(self.store.deadlines_after(after.as_ref(), PAGE)).await?;
            self.queue.schedule(&self.redis, &tasks(&page)).await?;
            count += page.len() as u64;
            match page.last() {
                Some(last) => after = Some(last.clone()),
                None => return Ok(count),
            }
        }
    }

    /// Notes when orders fall due; builds the queue anew when Redis has forgotten it.
    pub async fn schedule(&self, deadlines: &[Deadline]) -> Result<(), DeadlineError> {
        match self.queue.schedule(&self.redis, &tasks(deadlines)).await {
            Err(Fault::NoScript { .. }) => {
                self.rebuild().await?;
                Ok(self.queue.schedule(&self.redis, &tasks(deadlines)).await?)
            }
            other => Ok(other?),
        }
    }

    /// Takes orders that are due, those among them whose worker died.
    pub async fn claim(&self, lease: Duration, most: u32) -> Result<Claim, DeadlineError> {
        let token = uuid::Uuid::now_v7().to_string();
        self.queue.recover(&self.redis, most).await?;
        let tasks = self.queue.claim(&self.redis, &token, lease, most).await?;
        // A task that is no order id came from nobody; it is finished with the others.
        let orders = tasks.iter().filter_map(|task| OrderId::parse(task)).collect();
        Ok(Claim { token, tasks, orders })
    }

    /// Lets go of what was taken, and notes the orders among it that are due later after all.
    pub async fn finish(&self, claim: &Claim, later: &[Deadline]) -> Result<(), DeadlineError> {
        // In this order: what is being worked on cannot be scheduled. Dying in between is the sweep's.
        self.queue.finish(&self.redis, &claim.token, &claim.tasks).await?;
        self.schedule(later).await
    }
}

fn tasks(deadlines: &[Deadline]) -> Vec<(Millis, String)> {
    deadlines.iter().map(|deadline| (deadline.pay_before, deadline.order.to_string())).collect()
}
