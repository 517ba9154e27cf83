//! The purchase, step by step. Steps are taken by whoever the table names; this file does those that
//! bring Redis behind the books, and writes down that they are done.
//!
//! | step    | does                                   | undo                                          |
//! |---------|----------------------------------------|-----------------------------------------------|
//! | reserve | the edge takes units (`reserve.lua`)   | `release`: units back on the shelf, once      |
//! | write   | the orders role writes the row         | none: a row is never deleted, its state moves |
//! | pay     | the payment notice, or the deadline    | `expire`, `cancel`, `refund`: in the books    |
//! | settle  | Redis shows the order as paid          | none: it is the last                          |
//!
//! The books decide, always: an undo is a conditional update there, and only then, by the outbox, a
//! release in Redis. Each step may be taken again at any time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::keys::{Segment, sale_channel};
use sluice_shared::message::{OrderEvent, OrderEvents};
use sluice_shared::record::{OrderState, Record, Refund};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::script::{Batch, Frozen, Release, Released, Settle, Settled, fitting};

use super::KnownSegments;
use super::deadlines::{DeadlineError, Deadlines};
use super::pauses::Pauses;
use crate::store::orders::Deadline;
use crate::store::saga::StepDone;
use crate::store::{Store, StoreError};

/// Orders in one call of `settle.lua`: it holds Redis up for some milliseconds at the most.
const CALL_MAX: usize = 500;

/// Why a step was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepError {
    /// Nothing is wrong with the events: a server is away.
    #[error("{0}")]
    NotNow(String),
    /// Nothing is wrong with the events: their segment is frozen, or takes no step for another reason.
    #[error("{why}")]
    Frozen {
        /// What is the matter.
        why: String,
        /// How long it is let alone.
        pause: Duration,
    },
    /// Redis refused what was asked for, and does so again until somebody has mended something.
    #[error("{0}")]
    Refused(String),
    /// Something is wrong with an answer, or with these orders.
    #[error("{why}")]
    Failed {
        /// What.
        why: String,
        /// The orders, where it is known.
        orders: Vec<OrderId>,
    },
}

impl StepError {
    fn failed(why: &impl ToString) -> Self {
        Self::Failed { why: why.to_string(), orders: Vec::new() }
    }

    /// Whether it may be of one message only: what others ask for may be done all the same.
    fn is_local(&self) -> bool {
        !matches!(self, Self::NotNow(_) | Self::Frozen { .. })
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Away(_) => Self::NotNow(error.to_string()),
            StoreError::Broken(_) => Self::failed(&error),
        }
    }
}

impl From<Fault> for StepError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unreadable { .. } => Self::failed(&fault),
            Fault::Refused { .. } => Self::Refused(fault.to_string()),
            Fault::NoScript { .. } | Fault::Unknown { .. } => Self::NotNow(fault.to_string()),
        }
    }
}

impl From<DeadlineError> for StepError {
    fn from(error: DeadlineError) -> Self {
        match error {
            DeadlineError::Redis(fault) => fault.into(),
            DeadlineError::Books(error) => error.into(),
        }
    }
}

/// What the events of one segment ask for.
#[derive(Debug, Default)]
struct Work {
    releases: Vec<Release>,
    settles: Vec<Settle>,
    /// Orders whose last step is taken with this.
    ends: Vec<OrderId>,
    undone: Vec<OrderId>,
    deadlines: Vec<Deadline>,
}

impl Work {
    fn of<'a>(events: impl IntoIterator<Item = &'a OrderEvent>) -> Self {
        let mut work = Self::default();
        events.into_iter().for_each(|event| work.add(event));
        work
    }

    fn add(&mut self, event: &OrderEvent) {
        let OrderEvent { order, state, pay_before, refund, .. } = event;
        if event.release {
            let (lines, user) = (event.lines.clone(), event.user.clone());
            self.releases.push(Release { uuid: order.uuid, state: *state, lines, user });
            self.undone.push(*order);
            if *refund != Refund::None {
                self.settle(order, None, event);
            }
            return;
        }
        match state {
            OrderState::PendingPayment => {
                self.settle(order, Some(*state), event);
                self.deadlines.extend(pay_before.map(|at| Deadline { order: *order, pay_before: at }));
            }
            OrderState::Paid => {
                self.settle(order, Some(*state), event);
                self.ends.push(*order);
            }
            OrderState::Refunded => self.settle(order, Some(*state), event),
            // Their state came with the release; what is told here is the refund.
            OrderState::Accepted
            | OrderState::Pending
            | OrderState::Expired
            | OrderState::Cancelled
            | OrderState::Failed => self.settle(order, None, event),
        }
    }

    fn settle(&mut self, order: &OrderId, state: Option<OrderState>, event: &OrderEvent) {
        let (pay_before, refund) = (event.pay_before, event.refund);
        self.settles.push(Settle { uuid: order.uuid, state, pay_before, refund });
    }
}

/// Carries out the steps that events ask for.
#[derive(Debug)]
pub struct Purchase {
    redis: Redis,
    store: Store,
    segments: KnownSegments,
    deadlines: Deadlines,
    pauses: Pauses,
}

impl Purchase {
    /// Works on this Redis and these books.
    pub fn new(redis: Redis, store: Store) -> Self {
        let segments = KnownSegments::new(redis.clone());
        let deadlines = Deadlines::new(redis.clone(), store.clone());
        Self { redis, store, segments, deadlines, pauses: Pauses::default() }
    }

    /// Takes the steps of messages together, segment by segment; answers what became of each message.
    /// Once more is as good as once.
    pub async fn step(&self, messages: &[&OrderEvents]) -> Vec<Result<(), StepError>> {
        let mut segments: BTreeMap<Segment, BTreeMap<usize, Vec<&OrderEvent>>> = BTreeMap::new();
        for (message, events) in messages.iter().enumerate() {
            for event in &events.events {
                let segment = Segment::new(event.sale.clone(), event.order.segment);
                segments.entry(segment).or_default().entry(message).or_default().push(event);
            }
        }
        let mut done = vec![Ok(()); messages.len()];
        for (segment, parts) in segments {
            if let Some(pause) = self.pauses.left(&segment, Instant::now()) {
                let why = format!("{} takes no steps for now", segment.name());
                parts.keys().for_each(|at| done[*at] = Err(StepError::Frozen { why: why.clone(), pause }));
                continue;
            }
            let all = Work::of(parts.values().flatten().copied());
            let together = self.on_shelf(&segment, &all).await;
            let alone = parts.len() > 1 && together.as_ref().is_err_and(StepError::is_local);
            let mut refused = 0;
            for (message, events) in &parts {
                let taken = if alone {
                    self.on_shelf(&segment, &Work::of(events.iter().copied())).await
                } else {
                    together.clone()
                };
                refused += usize::from(matches!(taken, Err(StepError::Refused(_))));
                // One segment that is frozen does not hold up the others of a message.
                if let Err(error) = taken.and_then(|torn| whole(&segment, &torn, events)) {
                    done[*message] = Err(error);
                }
            }
            // It is the segment that refuses: one by one again would be as much in vain.
            if refused == parts.len() {
                self.pauses.longer(&segment, Instant::now());
            }
        }
        done
    }

    /// Notes that the sagas of these orders cannot go on by themselves. They are tried further where
    /// nothing is given up, and are no longer stuck once that succeeds.
    pub async fn stuck(&self, orders: &[OrderId]) -> Result<(), StepError> {
        Ok(self.store.saga_stuck(orders).await?)
    }

    /// Takes steps on one segment; answers the orders that are torn in Redis, and what of them is.
    async fn on_shelf(&self, segment: &Segment, work: &Work) -> Result<Torn, StepError> {
        let Some(known) = self.segments.find(segment).await? else {
            return self.without_segment(segment, work).await;
        };
        let (scripts, mut news) = (&known.scripts, News::default());
        for releases in calls(&work.releases, known.mark_work) {
            let answers = self.thawed(segment, scripts.release(&self.redis, releases).await)?;
            news.released(releases, answers);
        }
        for settles in work.settles.chunks(CALL_MAX) {
            let answers = self.thawed(segment, scripts.settle(&self.redis, settles).await)?;
            news.settled(settles, answers);
        }
        self.pauses.over(segment);
        self.publish(&segment.sale, &news).await;
        self.deadlines.schedule(&work.deadlines).await?;
        // One order that is torn does not hold up the others.
        self.note(work, &news.torn, "done").await?;
        Ok(news.torn)
    }

    /// Redis has no such segment. Once a sale is over its keys are deleted, and there is no shelf to
    /// bring behind the books any more; else the warden is about to restore it.
    async fn without_segment(&self, segment: &Segment, work: &Work) -> Result<Torn, StepError> {
        if self.store.sale_is_over(&segment.sale).await? {
            self.pauses.over(segment);
            self.note(work, &Torn::new(), "no shelf").await?;
            return Ok(Torn::new());
        }
        Err(self.frozen(segment, "it is not in redis"))
    }

    fn frozen(&self, segment: &Segment, why: &str) -> StepError {
        let pause = self.pauses.longer(segment, Instant::now());
        StepError::Frozen { why: format!("{} is frozen: {why}", segment.name()), pause }
    }

    async fn note(&self, work: &Work, but: &Torn, outcome: &'static str) -> Result<(), StepError> {
        let done = |orders: &[OrderId]| -> Vec<StepDone> {
            let done = orders.iter().filter(|order| !but.contains_key(&order.uuid));
            done.map(|order| StepDone { order: *order, outcome }).collect()
        };
        self.store.saga_committed("settle", &done(&work.ends)).await?;
        Ok(self.store.saga_undone("release", &done(&work.undone)).await?)
    }

    fn thawed<T>(&self, segment: &Segment, batch: Result<Batch<T>, Fault>) -> Result<Vec<T>, StepError> {
        if matches!(batch, Err(Fault::NoScript { .. }) | Ok(Err(_))) {
            self.segments.forget(segment);
        }
        match batch {
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(Frozen::Fenced(epoch))) => Err(self.frozen(segment, &format!("it is in epoch {epoch}"))),
            Ok(Err(Frozen::Because(why))) => Err(self.frozen(segment, &why)),
            Err(fault @ Fault::NoScript { .. }) => Err(self.frozen(segment, &fault.to_string())),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Tells the edges, a line each. A lost word costs little: they look for themselves now and then.
    async fn publish(&self, sale: &SaleId, news: &News) {
        let words = news.skus.iter().map(|sku| format!("release {sku}"));
        let orders =
            news.records.iter().map(|(uuid, record)| format!("order {} {record}", hex::encode(uuid)));
        let told: Vec<String> = words.chain(orders).collect();
        if told.is_empty() {
            return;
        }
        let publish = cmd("PUBLISH").arg(sale_channel(sale)).arg(told.join("\n")).to_owned();
        if let Err(fault) = self.redis.run::<i64>("publishing", &publish).await {
            tracing::debug!(%fault, "edges were not told");
        }
    }
}

/// Releases in calls of the script, each as large as may hold Redis up.
fn calls(mut releases: &[Release], mark_work: usize) -> Vec<&[Release]> {
    let mut calls = Vec::new();
    while !releases.is_empty() {
        let fits = fitting(releases.iter().map(|release| release.work(mark_work)));
        let (call, rest) = releases.split_at(fits.min(releases.len()));
        calls.push(call);
        releases = rest;
    }
    calls
}

/// Fails a message in which an order is torn.
fn whole(segment: &Segment, torn: &Torn, events: &[&OrderEvent]) -> Result<(), StepError> {
    let mine = events.iter().filter(|event| torn.contains_key(&event.order.uuid));
    let orders: Vec<OrderId> = mine.map(|event| event.order).collect();
    let Some(what) = orders.first().and_then(|order| torn.get(&order.uuid)) else { return Ok(()) };
    Err(StepError::Failed { why: format!("{}: corrupt {what} in redis", segment.name()), orders })
}

/// Orders that a script found torn, and what of them is.
type Torn = BTreeMap<[u8; 16], String>;

/// What the scripts changed, for the edges; and what they found broken.
#[derive(Debug, Default)]
struct News {
    skus: std::collections::BTreeSet<String>,
    records: BTreeMap<[u8; 16], Record>,
    torn: Torn,
}

impl News {
    fn released(&mut self, asked: &[Release], answers: Vec<Released>) {
        for (release, answer) in asked.iter().zip(answers) {
            match answer {
                Released::Released(record) => {
                    self.skus.extend(record.lines.iter().map(|(sku, _)| sku.to_string()));
                    self.records.insert(release.uuid, *record);
                }
                // Told again: whoever released it may have died before it told.
                Released::Already(record) | Released::Tombstone(record) => {
                    self.records.insert(release.uuid, *record);
                }
                Released::Corrupt(what) => drop(self.torn.insert(release.uuid, what)),
            }
        }
    }

    fn settled(&mut self, asked: &[Settle], answers: Vec<Settled>) {
        for (settle, answer) in asked.iter().zip(answers) {
            match answer {
                Settled::Settled(record) | Settled::Already(record) => {
                    self.records.insert(settle.uuid, *record);
                }
                // Its row is in the books, and the warden restores Redis from there.
                Settled::Unknown => {}
                Settled::Corrupt(what) => drop(self.torn.insert(settle.uuid, what)),
            }
        }
    }
}
