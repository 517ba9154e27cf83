//! A desk: requests of one kind queue here, and its clerk sees to them in groups.
//!
//! One that comes alone goes at once; while one group is seen to, the next gathers. So a wave of them
//! takes the rows that others wait for once a group, and never more than one connection to PostgreSQL.
//! What somebody else has locked is set aside and waits alone: it holds up none of the others.

use std::sync::Arc;

use sluice_shared::verdict::{Code, Rejection};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::metrics::api as metrics;

/// Requests of one group: others come between two of them.
const GROUP_MAX: usize = 256;
/// Requests that may wait in the queue, and of those that were set aside; more are told to come again.
const QUEUE_MAX: usize = 4_096;
const ASIDE_MAX: usize = 256;
/// Of those set aside, how many are seen to at once: each may hold a connection while it waits for a lock.
const ASIDE_AT_ONCE: usize = 2;

/// What came of a request in its group.
#[derive(Debug)]
pub enum Seen<T> {
    /// This.
    To(Result<T, Rejection>),
    /// Nothing yet: it has to be seen to alone.
    Aside,
}

/// What a desk is for.
pub trait Work: Send + Sync + 'static {
    /// What is asked.
    type Request: std::fmt::Debug + Send + Sync + 'static;
    /// What is answered.
    type Outcome: Send + 'static;

    /// Sees to a group; answers in its order.
    fn group(&self, requests: &[Self::Request]) -> impl Future<Output = Vec<Seen<Self::Outcome>>> + Send;

    /// Sees to one that was set aside, and waits for what it needs.
    fn alone(&self, request: &Self::Request)
    -> impl Future<Output = Result<Self::Outcome, Rejection>> + Send;
}

#[derive(Debug)]
struct Queued<W: Work> {
    request: W::Request,
    reply: oneshot::Sender<Result<W::Outcome, Rejection>>,
}

fn busy() -> Rejection {
    Rejection::new(Code::Overloaded, "too many requests of this kind wait; send it again")
}

/// Where requests queue. Its clerk ends when the desk is dropped.
#[derive(Debug)]
pub struct Desk<W: Work> {
    inbox: mpsc::Sender<Queued<W>>,
}

impl<W: Work> Desk<W> {
    /// A desk whose clerk works in the runtime that calls.
    pub fn open(work: W, metrics: metrics::Desk) -> Self {
        let (inbox, queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(serve(Arc::new(work), metrics, queue));
        Self { inbox }
    }

    /// Queues a request and waits until it is seen to.
    pub async fn ask(&self, request: W::Request) -> Result<W::Outcome, Rejection> {
        let (reply, seen) = oneshot::channel();
        self.inbox.try_send(Queued { request, reply }).map_err(|_| busy())?;
        seen.await.map_err(|_| Rejection::new(Code::Unavailable, "the process stops; send it again"))?
    }
}

async fn serve<W: Work>(work: Arc<W>, metrics: metrics::Desk, mut queue: mpsc::Receiver<Queued<W>>) {
    let aside =
        Aside { room: Arc::new(Semaphore::new(ASIDE_MAX)), turns: Arc::new(Semaphore::new(ASIDE_AT_ONCE)) };
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
        metrics.waiting.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
        // Whoever no longer waits asks again.
        group.retain(|queued| !queued.reply.is_closed());
        let (requests, replies): (Vec<_>, Vec<_>) =
            group.drain(..).map(|Queued { request, reply }| (request, reply)).unzip();
        if requests.is_empty() {
            continue;
        }
        metrics.group.observe(f64::from(u32::try_from(requests.len()).unwrap_or(u32::MAX)));
        let seen = work.group(&requests).await;
        for ((request, reply), seen) in requests.into_iter().zip(replies).zip(seen) {
            match seen {
                // Nobody listens when the caller has just gone.
                Seen::To(outcome) => drop(reply.send(outcome)),
                Seen::Aside => aside.take(&work, &metrics, Queued { request, reply }),
            }
        }
    }
}

/// Those that wait for what somebody else has locked.
struct Aside {
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Aside {
    fn take<W: Work>(&self, work: &Arc<W>, metrics: &metrics::Desk, queued: Queued<W>) {
        let Queued { request, reply } = queued;
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            let _ = reply.send(Err(busy()));
            return;
        };
        let (work, turns, gauge) = (work.clone(), self.turns.clone(), metrics.aside.clone());
        gauge.inc();
        tokio::spawn(async move {
            // An error means that nobody gives turns any more.
            let turn = turns.acquire_owned().await;
            if turn.is_ok() && !reply.is_closed() {
                let _ = reply.send(work.alone(&request).await);
            }
            gauge.dec();
            drop(place);
        });
    }
}
