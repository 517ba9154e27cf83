//! The payment desk: notices queue here, and its clerk books them in groups.
//!
//! A notice that comes alone goes at once; while one group is booked, the next gathers. So a wave of
//! payments takes its offers' rows, for which the writers of orders wait too, once a group.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use sluice_shared::verdict::{Code, Rejection};
use tokio::sync::{mpsc, oneshot};

use super::reply;
use crate::store::payments::{NoticeOutcome, PaymentNotice};
use crate::store::{Store, StoreError};

/// Notices that one transaction books: orders are written between two of them.
const GROUP_MAX: usize = 256;
/// Notices that may wait; more are told to come again.
const QUEUE_MAX: usize = 4_096;

type Booked = Result<NoticeOutcome, StoreError>;

#[derive(Debug)]
struct Queued {
    notice: PaymentNotice,
    reply: oneshot::Sender<Booked>,
}

/// What the desk counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    waiting: Gauge,
    group: Histogram,
}

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        // 1 to 256.
        let (waiting, group) = (Gauge::default(), Histogram::new(exponential_buckets(1.0, 2.0, 9)));
        registry.register(
            "api_payment_notices_waiting",
            "Payment notices that wait to be booked",
            waiting.clone(),
        );
        let help = "Payment notices that were booked in one transaction";
        registry.register("api_payment_notices_group", help, group.clone());
        Self { waiting, group }
    }
}

/// Where payment notices queue. Its clerk ends when the desk is dropped.
#[derive(Debug)]
pub struct PaymentDesk {
    inbox: mpsc::Sender<Queued>,
}

impl PaymentDesk {
    /// A desk and its clerk, who is to be spawned.
    pub fn new(store: Store, metrics: Metrics) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (inbox, queue) = mpsc::channel(QUEUE_MAX);
        (Self { inbox }, serve(store, metrics, queue))
    }

    /// Queues a notice and waits until it is booked.
    pub async fn book(&self, notice: &PaymentNotice) -> Result<NoticeOutcome, Rejection> {
        let (reply, booked) = oneshot::channel();
        let queued = Queued { notice: notice.clone(), reply };
        if self.inbox.try_send(queued).is_err() {
            let detail = "too many payment notices wait to be booked; send it again";
            return Err(Rejection::new(Code::Overloaded, detail));
        }
        let away = |_| Rejection::new(Code::Unavailable, "the process stops; send the notice again");
        booked.await.map_err(away)?.map_err(reply::store)
    }
}

async fn serve(store: Store, metrics: Metrics, mut queue: mpsc::Receiver<Queued>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
        metrics.waiting.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
        // Whoever no longer waits sends his notice again.
        group.retain(|queued| !queued.reply.is_closed());
        let (notices, replies): (Vec<_>, Vec<_>) =
            group.drain(..).map(|Queued { notice, reply }| (notice, reply)).unzip();
        if notices.is_empty() {
            continue;
        }
        metrics.group.observe(f64::from(u32::try_from(notices.len()).unwrap_or(u32::MAX)));
        for (reply, booked) in replies.into_iter().zip(book(&store, &notices).await) {
            // Nobody listens when the caller has just gone.
            let _ = reply.send(booked);
        }
    }
}

/// Books a group; one notice that the books cannot take does not spoil the others.
async fn book(store: &Store, notices: &[PaymentNotice]) -> Vec<Booked> {
    match store.bounded(store.notices(notices)).await {
        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
        Err(StoreError::Broken(_)) if notices.len() > 1 => {
            let mut each = Vec::with_capacity(notices.len());
            for notice in notices {
                each.push(store.bounded(store.notice(notice)).await);
            }
            each
        }
        Err(error) => vec![Err(error); notices.len()],
    }
}
