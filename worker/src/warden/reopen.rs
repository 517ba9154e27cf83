//! Carries out what [`reopening`](sluice_protocol::warden::reopening) decides, for one segment, to its end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_protocol::warden::reopening::{Command, Event, Reopening, Stage};
use sluice_shared::clock::Millis;
use sluice_shared::failpoint;
use sluice_shared::ids::InstanceId;
use sluice_shared::keys::{EDGES, REOPENING, Segment};
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::sale::{Heartbeat, Question};

use super::image::run_id;
use super::outlet::Outlet;
use super::{Trouble, Warden};
use crate::store::segments::Projection;

mod drain;
mod raise;

pub(super) use drain::unwritten;

/// How often the same waiting is told.
const TOLD: Duration = Duration::from_secs(10);

/// One segment on its way back.
pub struct Reopen {
    warden: Arc<Warden>,
    segment: Segment,
    rows: Projection,
    machine: Reopening,
    outlet: Outlet,
    redis: String,
    /// The epoch of the books when the edges were asked: only this one may be ended.
    booked: u64,
    /// What edges are asked.
    question: Question,
    barrier: String,
    /// How often it went back with data lost and orders without a row.
    back: u32,
    told: Option<((Stage, bool), Instant)>,
    /// Where it was held up, when that was told last.
    held_up: Option<(Stage, Instant)>,
    /// Whether what is in its way may be of this segment alone.
    stuck: bool,
}

/// How a re-opening ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The segment may be leased again, under this epoch.
    Raised(u64),
    /// The books cannot be right, or something of this segment is in the way: it stays frozen, and is tried
    /// again after this time.
    Frozen(Duration),
}

/// Re-opens a segment.
pub async fn run(warden: Arc<Warden>, segment: Segment, rows: Projection) -> (Segment, Ended) {
    let outlet = Outlet::new(&warden, "rebuild");
    let mut reopen = Reopen {
        warden,
        segment,
        rows,
        machine: Reopening::begin(),
        outlet,
        redis: String::new(),
        booked: 0,
        question: Question { epoch: 0, asked: Millis(0) },
        barrier: String::new(),
        back: 0,
        told: None,
        held_up: None,
        stuck: false,
    };
    let (mut command, mut epoch) = (Command::Close, 0);
    while command != Command::Finish {
        command = match command {
            // Elsewhere: it would keep its place from those that can be re-opened.
            Command::Rest(pause) if reopen.machine.stage() == Stage::Frozen => {
                return (reopen.segment, Ended::Frozen(pause));
            }
            Command::Rest(pause) => {
                tokio::time::sleep(pause).await;
                reopen.machine.rested()
            }
            other => {
                let event = reopen.carry_out(other, &mut epoch).await;
                if reopen.stuck {
                    return (reopen.segment, Ended::Frozen(Duration::ZERO));
                }
                let next = reopen.machine.next(event, Instant::now());
                reopen.tell();
                next
            }
        };
    }
    failpoint::reach("F85.done");
    (reopen.segment, Ended::Raised(epoch))
}

impl Reopen {
    async fn carry_out(&mut self, command: Command, epoch: &mut u64) -> Event {
        let done = match command {
            Command::Close => self.close().await,
            Command::Listen(pause) => {
                tokio::time::sleep(pause).await;
                self.listen().await
            }
            Command::Drain => self.drain().await,
            Command::PushBarrier => self.push_barrier().await,
            Command::WatchBarrier(pause) => {
                tokio::time::sleep(pause).await;
                self.watch_barrier().await
            }
            Command::Raise => self.raise(epoch).await,
            Command::Rest(_) | Command::Finish => Ok(Event::Trouble),
        };
        done.unwrap_or_else(|trouble| {
            let (stage, now) = (self.machine.stage(), Instant::now());
            if self.held_up.is_none_or(|(told, at)| told != stage || now.duration_since(at) >= TOLD) {
                let (segment, stage) = (self.segment.name(), stage.as_str());
                tracing::warn!(segment, stage, %trouble, "a re-opening is held up");
                self.held_up = Some((self.machine.stage(), now));
            }
            self.stuck = trouble.is_local();
            if matches!(trouble, Trouble::Redis(_)) { Event::RedisFault } else { Event::Trouble }
        })
    }

    /// Ends the right to sell at once, and asks the edges to close the epoch.
    async fn close(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.close");
        let redis = self.warden.redis();
        self.redis = run_id(redis).await?;
        self.warden.take_off(&self.segment).await;
        let read = cmd("HGET").arg(self.segment.meta()).arg("epoch").to_owned();
        let shelved: Option<u64> = match redis.run("reading the epoch", &read).await {
            // What nobody can read is restored, and sells nothing meanwhile.
            Err(fault) if fault.is_local() => None,
            read => read?,
        };
        if let Some(shelved) = shelved {
            // Whatever it answers: a segment in another epoch has no lease of ours to end.
            let ended = self.warden.lease(&self.segment, shelved, Duration::ZERO, &[], &[]).await?;
            tracing::debug!(segment = self.segment.name(), ?ended, "the lease is ended");
        }
        let store = &self.warden.context.store;
        let booked = store.bounded(store.epoch(&self.segment)).await?.unwrap_or(1);
        self.booked = booked;
        let epoch = booked.max(shelved.unwrap_or(0));
        self.question = Question { epoch, asked: redis.time().await? };
        self.ask("HSET").await?;
        failpoint::reach("F85.asked");
        Ok(Event::Closed { epoch, asked: self.question.asked })
    }

    /// Puts the question: over whatever is asked (`HSET`), or where nothing is (`HSETNX`).
    async fn ask(&self, how: &str) -> Result<(), Fault> {
        let mut ask = cmd(how);
        ask.arg(REOPENING).arg(self.segment.name()).arg(self.question.to_string());
        self.warden.redis().run::<u64>("asking the edges", &ask).await.map(drop)
    }

    /// Who must answer stands in PostgreSQL; what they answer stands in their heartbeats.
    async fn listen(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.listen");
        self.same_redis().await?;
        // One that led before may have taken the question away with its own: nobody would ever answer.
        self.ask("HSETNX").await?;
        let store = &self.warden.context.store;
        let registered = store.bounded(store.registered_edges()).await?;
        let beats = heartbeats(&self.warden).await?;
        let name = self.segment.name();
        let word = |instance: &InstanceId| -> Option<(Millis, u64)> {
            let Question { epoch, asked } = beats.get(instance)?.closed.get(&name)?;
            Some((*asked, *epoch))
        };
        let words: BTreeMap<_, _> = registered
            .into_iter()
            .map(|edge| {
                let word = word(&edge.instance);
                (edge.instance, word)
            })
            .collect();
        Ok(Event::Heard(words))
    }

    async fn push_barrier(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.push-barrier");
        self.same_redis().await?;
        self.barrier = format!("{}@{}", self.segment.name(), uuid::Uuid::now_v7());
        self.outlet.barrier(&self.barrier).await?;
        Ok(Event::BarrierPushed)
    }

    async fn watch_barrier(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.watch-barrier");
        self.same_redis().await?;
        let store = &self.warden.context.store;
        let through = store.bounded(store.barrier_shards(&self.barrier)).await?;
        Ok(Event::BarrierThrough(through, usize::from(self.outlet.shards())))
    }

    /// A Redis that restarted, or another one, may have lost what was looked at before.
    async fn same_redis(&self) -> Result<(), Trouble> {
        let doing = "going on with a re-opening";
        let now = run_id(self.warden.redis()).await?;
        if now == self.redis {
            return Ok(());
        }
        Err(Fault::Unknown { doing, why: "redis is another one than before".to_owned() }.into())
    }

    /// Tells where it stands: each new stage once, and whom it waits for every ten seconds.
    fn tell(&mut self) {
        let (stage, now) = (self.machine.stage(), Instant::now());
        let (segment, edges) = (self.segment.name(), self.machine.waited_for());
        let waiting = self.warden.floor(|floor| {
            floor.waiting.insert(self.segment.clone(), edges.len());
            floor.waiting.values().sum::<usize>()
        });
        self.warden.metrics().waiting_for_edges.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let state = (stage, edges.is_empty());
        if self.told.is_some_and(|(told, at)| told == state && now.duration_since(at) < TOLD) {
            return;
        }
        self.told = Some((state, now));
        if edges.is_empty() {
            tracing::info!(segment, stage = stage.as_str(), "re-opening");
        } else {
            tracing::warn!(segment, ?edges, "a re-opening waits for edges that may hold accepted orders");
        }
    }
}

/// The edges' last words.
pub(super) async fn heartbeats(warden: &Warden) -> Result<HashMap<InstanceId, Heartbeat>, Fault> {
    let texts: HashMap<String, String> =
        warden.redis().run("reading the heartbeats", cmd("HGETALL").arg(EDGES)).await?;
    let mut beats = HashMap::with_capacity(texts.len());
    for (name, text) in texts {
        match (InstanceId::parse(&name), serde_json::from_str::<Heartbeat>(&text)) {
            (Ok(instance), Ok(beat)) if beat.instance == instance => {
                beats.insert(instance, beat);
            }
            _ => tracing::warn!(name, "a heartbeat that cannot be read"),
        }
    }
    Ok(beats)
}
