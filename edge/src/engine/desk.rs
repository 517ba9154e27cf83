//! The desk of one sale segment: buyers queue here, the script answers them in groups.
//!
//! An order that comes alone goes at once; while calls are out, the next ones gather. What the script
//! accepted is held before anybody is told, whether or not the buyer still waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sluice_protocol::edge::pace::Pace;
use sluice_protocol::edge::room::Place;
use sluice_shared::failpoint;
use sluice_shared::ids::UserId;
use sluice_shared::keys::Segment;
use sluice_shared::lines::Lines;
use sluice_shared::redis::{Fault, Redis};
use sluice_shared::script::{Answer, Ask, Reserved, SegmentScripts, fitting};
use tokio::sync::{mpsc, oneshot, watch};

use super::Outcome;
use super::core::Core;
use super::latch::Latch;
use super::reply::{Caller, Mark, Origin, Prepared, Reply, judge};

/// How long an order may wait for its turn before it is turned away unasked.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a buyer waits for the broker, where the sale wants its confirm.
const CONFIRM: Duration = Duration::from_millis(800);

/// What the sale list says about a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The epoch that the scripts are called under; 0 while the warden keeps the segment shut.
    pub(crate) epoch: u64,
    /// Whether buyers are told of the broker's confirm.
    pub(crate) after_broker: bool,
    /// What a buyer's mark may cost the script, see [`Ask::work`].
    pub(crate) mark_work: usize,
    /// Lines that the sale knows, to ask whether it goes on.
    pub(crate) probe: Option<Lines>,
}

#[derive(Debug)]
struct Queued {
    ask: Ask,
    since: Instant,
    caller: Caller,
}

/// What buyers see before they queue.
#[derive(Debug)]
struct Door {
    /// Whether nothing is sold for now.
    frozen: AtomicBool,
    /// Whether somebody was turned away since Redis was last asked.
    knocked: AtomicBool,
}

/// Where buyers of one segment queue. Its clerk ends when the desk is dropped.
#[derive(Debug)]
pub(crate) struct Desk {
    segment: Arc<Segment>,
    inbox: mpsc::Sender<Queued>,
    terms: watch::Sender<Terms>,
    door: Arc<Door>,
}

impl Desk {
    /// A desk and its clerk, who is to be spawned.
    pub(crate) fn new(
        core: &Arc<Core>,
        redis: Redis,
        segment: Segment,
        number: u32,
        terms: Terms,
        latch: Arc<Latch>,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let segment = Arc::new(segment);
        let (inbox, queue) = mpsc::channel(core.config.queue_max.max(1));
        let (frozen, knocked) = (AtomicBool::new(terms.epoch == 0), AtomicBool::new(false));
        let door = Arc::new(Door { frozen, knocked });
        let scripts = Arc::new(SegmentScripts::new((*segment).clone(), terms.epoch));
        let (terms, news) = watch::channel(terms);
        let clerk = Clerk {
            core: Arc::clone(core),
            redis,
            segment: Arc::clone(&segment),
            number,
            scripts,
            news,
            latch,
            door: Arc::clone(&door),
            pace: Pace::default(),
            mark: Mark::default(),
        };
        (Arc::new(Self { segment, inbox, terms, door }), clerk.serve(queue))
    }

    /// The segment.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Whether the segment sells nothing for now.
    pub(crate) fn frozen(&self) -> bool {
        self.door.frozen.load(Ordering::Relaxed)
    }

    /// The same for a buyer, who makes the clerk ask Redis sooner.
    pub(crate) fn turns_away(&self) -> bool {
        let frozen = self.frozen();
        if frozen && !self.door.knocked.load(Ordering::Relaxed) {
            self.door.knocked.store(true, Ordering::Relaxed);
        }
        frozen
    }

    /// The sale list was read again.
    pub(crate) fn renew(&self, terms: Terms) {
        self.terms.send_if_modified(|old| {
            let changed = *old != terms;
            *old = terms;
            changed
        });
    }

    /// Asks for nothing any more.
    pub(crate) fn close(&self) {
        self.renew(Terms { epoch: 0, after_broker: false, mark_work: 0, probe: None });
    }

    /// Whether the script says that there is no order of this id: asked with a token that has expired, it
    /// takes nothing, and a Redis that may have lost orders does not answer it.
    pub(crate) async fn lacks(&self, uuid: [u8; 16], place: Place) -> bool {
        let ask = probe(&self.terms.borrow(), uuid);
        let Some(ask) = ask else { return false };
        matches!(
            self.reserve(ask, place).await,
            Outcome::Refused(
                Answer::TokenExpired
                    | Answer::Paused
                    | Answer::Ended
                    | Answer::NotStarted
                    | Answer::UnknownSku(_)
            )
        )
    }

    /// Queues an order and waits for its answer.
    pub(crate) async fn reserve(&self, ask: Ask, place: Place) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let queued = Queued { ask, since: Instant::now(), caller: Caller { place, reply } };
        if self.inbox.try_send(queued).is_err() {
            return Outcome::Overloaded;
        }
        let Ok(Reply { mut outcome, confirm }) = answer.await else { return Outcome::Unavailable };
        let Some(confirm) = confirm else { return outcome };
        let confirmed = matches!(tokio::time::timeout(CONFIRM, confirm).await, Ok(Ok(())));
        if let Outcome::Accepted { state, .. } = &mut outcome
            && !confirmed
        {
            *state = sluice_shared::record::OrderState::Pending;
        }
        outcome
    }
}

/// One call that is out.
struct Called {
    result: Result<Reserved, Fault>,
    asks: Vec<Ask>,
    callers: Vec<Caller>,
    mark: Mark,
    /// What the latch knew of releases when the call went out.
    releases: u64,
    took: Duration,
}

/// Serves the queue of one desk.
struct Clerk {
    core: Arc<Core>,
    redis: Redis,
    segment: Arc<Segment>,
    number: u32,
    scripts: Arc<SegmentScripts>,
    news: watch::Receiver<Terms>,
    latch: Arc<Latch>,
    door: Arc<Door>,
    pace: Pace,
    mark: Mark,
}

impl Clerk {
    async fn serve(mut self, mut queue: mpsc::Receiver<Queued>) {
        let (most, limit) = (self.core.config.batches_inflight.max(1), self.core.config.batch_max.max(1));
        let mut calls = FuturesUnordered::new();
        let mut waiting = Vec::with_capacity(limit);
        calls.extend(self.probe().map(|ask| self.call(vec![ask], Vec::new())));
        loop {
            let due = self.pace.due().filter(|_| calls.is_empty());
            tokio::select! {
                biased;
                Some(called) = calls.next(), if !calls.is_empty() => self.settle(called),
                changed = self.news.changed() => {
                    if changed.is_err() { break }
                    self.renew();
                    calls.extend(self.probe().map(|ask| self.call(vec![ask], Vec::new())));
                }
                taken = gather(&mut queue, &mut waiting, limit), if calls.len() < most || self.shut() => {
                    if taken == 0 { break }
                    let batch = self.admit(&mut waiting);
                    calls.extend(batch.map(|(asks, callers)| self.call(asks, callers)));
                }
                () = until(due) => {
                    let now = Instant::now();
                    if self.door.knocked.swap(false, Ordering::Relaxed) {
                        self.pace.turned_away(now);
                    }
                    self.pace.probe(now);
                    calls.extend(self.probe().map(|ask| self.call(vec![ask], Vec::new())));
                }
            }
        }
        // The sale is gone, but what was asked may have been done.
        while let Some(called) = calls.next().await {
            self.settle(called);
        }
    }

    /// Whether nothing is asked under the present epoch: the warden keeps it shut, it was closed for a
    /// re-opening, or Redis said that it is frozen.
    fn shut(&self) -> bool {
        let epoch = self.scripts.epoch;
        self.pace.is_frozen() || epoch == 0 || epoch <= self.core.held().closed(&self.segment)
    }

    fn renew(&mut self) {
        let epoch = self.news.borrow_and_update().epoch;
        if epoch != self.scripts.epoch {
            self.scripts = Arc::new(SegmentScripts::new((*self.segment).clone(), epoch));
        }
        self.show();
    }

    fn show(&self) {
        self.door.frozen.store(self.shut(), Ordering::Relaxed);
    }

    /// An order that the script can only refuse: its token has expired and nobody has its id.
    fn probe(&self) -> Option<Ask> {
        let ask = probe(&self.news.borrow(), [0; 16]);
        ask.filter(|_| self.scripts.epoch > 0)
    }

    /// Turns away whom there is no use in asking for; the others make a batch, as far as one call may hold
    /// Redis up. Whoever is left over goes on waiting.
    fn admit(&mut self, waiting: &mut Vec<Queued>) -> Option<(Vec<Ask>, Vec<Caller>)> {
        let now = Instant::now();
        let shut = self.shut();
        let (mut asks, mut callers) = (Vec::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
        let mark = self.news.borrow().mark_work;
        let works = waiting.iter().map(|queued| queued.ask.work(mark));
        let fits = if shut { waiting.len() } else { fitting(works).min(waiting.len()) };
        for Queued { ask, since, caller } in waiting.drain(..fits) {
            let turned = if shut {
                self.pace.turned_away(now);
                Outcome::Frozen
            } else if now.duration_since(since) > PATIENCE {
                Outcome::Overloaded
            } else {
                asks.push(ask);
                callers.push(caller);
                continue;
            };
            // A buyer who went away needs no answer.
            let _ = caller.reply.send(Reply::plain(turned));
        }
        self.show();
        (!asks.is_empty()).then_some((asks, callers))
    }

    fn call(&self, asks: Vec<Ask>, callers: Vec<Caller>) -> impl Future<Output = Called> + Send + use<> {
        let (core, redis, scripts) = (Arc::clone(&self.core), self.redis.clone(), Arc::clone(&self.scripts));
        let (mark, releases) = (self.mark, self.latch.releases());
        async move {
            // A probe is no order.
            if !callers.is_empty() {
                failpoint::reach("F6.before-script");
            }
            let start = Instant::now();
            let asked = scripts.reserve(&redis, &core.instance, &asks);
            let late = |_| Fault::Unknown { doing: "reserving", why: "too late".to_owned() };
            let result =
                tokio::time::timeout(core.config.redis_deadline, asked).await.map_err(late).flatten();
            Called { result, asks, callers, mark, releases, took: start.elapsed() }
        }
    }

    fn settle(&mut self, called: Called) {
        let (now, metrics) = (Instant::now(), &self.core.metrics);
        let Called { result, asks, callers, mark, releases, took } = called;
        metrics.call.observe(took.as_secs_f64());
        if !callers.is_empty() {
            metrics.batches.inc();
            metrics.batch_size.observe(asks.len() as f64);
            failpoint::reach("F7.after-script");
        }
        let answers = match judge(result) {
            Ok(answers) => answers,
            Err(refused) => {
                metrics.fault(refused.kind);
                if refused.freezes {
                    self.freeze(refused.kind, now);
                }
                return refuse(callers, &refused.outcome);
            }
        };
        self.core.touch();
        let Some(after) = mark.after(&answers) else {
            tracing::error!(
                segment = self.segment.name(),
                "redis shows older data than before; not sold from"
            );
            metrics.fault("older");
            self.freeze("older", now);
            return refuse(callers, &Outcome::Unavailable);
        };
        self.mark = self.mark.max(after);
        self.pace.thaw();
        self.show();
        let sold = answers.answers.iter().any(|answer| matches!(answer, Answer::Ok(_)));
        self.latch.told(self.segment.index, &answers.left, releases, sold);
        let after_broker = self.news.borrow().after_broker;
        let origin = Origin { segment: &self.segment, number: self.number, after_broker };
        let mut prepared = Prepared::new(origin, answers, &asks, callers);
        let kept = {
            // In one step, like the confirm: each order is found held, or copied, or neither.
            let mut held = self.core.held();
            if prepared.has_replays() {
                prepared.spare(&mut self.core.spares(), now);
            }
            prepared.hold(&mut held, &self.segment, now)
        };
        if kept.count > 0 {
            let publish = if after_broker { &self.core.publish } else { &self.core.publish_soon };
            publish.notify_one();
            failpoint::reach("F7.before-answer");
        }
        kept.tell();
    }

    fn freeze(&mut self, kind: &'static str, now: Instant) {
        if kind == "unknown_edge" {
            // Every edge's first seconds; readiness says so for as long as it lasts.
            tracing::debug!(segment = self.segment.name(), "not admitted yet");
        } else if !self.pace.is_frozen() {
            tracing::warn!(
                segment = self.segment.name(),
                kind,
                "frozen: nothing is sold until it is put right"
            );
        }
        self.pace.freeze(now);
        self.show();
    }
}

/// Takes what has come, unless somebody is left over from the last time; 0 when nobody comes any more.
async fn gather(queue: &mut mpsc::Receiver<Queued>, waiting: &mut Vec<Queued>, limit: usize) -> usize {
    if waiting.is_empty() { queue.recv_many(waiting, limit).await } else { waiting.len() }
}

/// An order that the script takes nothing for.
fn probe(terms: &Terms, uuid: [u8; 16]) -> Option<Ask> {
    let (lines, user) = (terms.probe.clone()?, UserId::parse("sluice-probe").ok()?);
    Some(Ask { uuid, user, lines, expired: true })
}

fn refuse(callers: Vec<Caller>, outcome: &Outcome) {
    for caller in callers {
        // A buyer who went away needs no answer.
        let _ = caller.reply.send(Reply::plain(outcome.clone()));
    }
}

/// Waits until then, or for ever.
pub(super) async fn until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
