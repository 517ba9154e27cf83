//! Carries out what [`reopening`](super::reopening) decides, for one segment, to its end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::clock::Millis;
use sluice_shared::failpoint;
use sluice_shared::ids::{InstanceId, OrderId, SkuId};
use sluice_shared::keys::{EDGES, REOPENING, Shelf};
use sluice_shared::message::Accepted;
use sluice_shared::record::OrderState;
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::sale::{Heartbeat, Question};
use sluice_shared::script::{Raised, ShelfScripts};

use super::image::{Head, Image, run_id};
use super::outlet::Outlet;
use super::reopening::{Command, Event, Reopening, Stage};
use super::restore;
use super::verify::{Ledgered, Verdict, compare};
use super::{Trouble, Warden, projection};
use crate::store::segments::{Projection, Raising};

/// Orders asked for at once.
const PAGE: usize = 5_000;
/// How often a segment that lost data goes back because accepted orders without a row have turned up; if
/// they never get one, it is restored without them.
const BACK: u32 = 5;
/// Copies of a segment that earlier attempts may have left behind are looked for in so many epochs.
const LEFT_BEHIND: u64 = 100;
/// How often the same waiting is told.
const TOLD: Duration = Duration::from_secs(10);

/// One segment on its way back.
pub struct Reopen {
    warden: Arc<Warden>,
    shelf: Shelf,
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
}

/// Re-opens a segment; ends when it may be leased again, with its new epoch.
pub async fn run(warden: Arc<Warden>, shelf: Shelf, rows: Projection) -> (Shelf, u64) {
    let outlet = Outlet::new(&warden, "rebuild");
    let mut reopen = Reopen {
        warden,
        shelf,
        rows,
        machine: Reopening::begin(),
        outlet,
        redis: String::new(),
        booked: 0,
        question: Question { epoch: 0, asked: Millis(0) },
        barrier: String::new(),
        back: 0,
        told: None,
    };
    let (mut command, mut epoch) = (Command::Close, 0);
    while command != Command::Finish {
        command = match command {
            Command::Rest(pause) => {
                tokio::time::sleep(pause).await;
                reopen.machine.rested()
            }
            other => {
                let event = reopen.carry_out(other, &mut epoch).await;
                let next = reopen.machine.next(event, Instant::now());
                reopen.tell();
                next
            }
        };
    }
    failpoint::reach("F85.done");
    (reopen.shelf, epoch)
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
            let stage = self.machine.stage().as_str();
            tracing::warn!(shelf = self.shelf.name(), stage, %trouble, "a re-opening is held up");
            if matches!(trouble, Trouble::Redis(_)) { Event::RedisFault } else { Event::Trouble }
        })
    }

    /// Ends the right to sell at once, and asks the edges to close the epoch.
    async fn close(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.close");
        let redis = self.warden.redis();
        self.redis = run_id(redis).await?;
        self.warden.take_off(&self.shelf).await;
        let read = cmd("HGET").arg(self.shelf.meta()).arg("epoch").to_owned();
        let shelved: Option<u64> = redis.run("reading the epoch", &read).await?;
        if let Some(shelved) = shelved {
            // Whatever it answers: a segment in another epoch has no lease of ours to end.
            let ended = self.warden.lease(&self.shelf, shelved, Duration::ZERO, &[], &[]).await?;
            tracing::debug!(shelf = self.shelf.name(), ?ended, "the lease is ended");
        }
        let booked = self.warden.context.store.epoch(&self.shelf).await?.unwrap_or(1);
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
        ask.arg(REOPENING).arg(self.shelf.name()).arg(self.question.to_string());
        self.warden.redis().run::<u64>("asking the edges", &ask).await.map(drop)
    }

    /// Who must answer stands in PostgreSQL; what they answer stands in their heartbeats.
    async fn listen(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.listen");
        self.same_redis().await?;
        // One that led before may have taken the question away with its own: nobody would ever answer.
        self.ask("HSETNX").await?;
        let registered = self.warden.context.store.registered_edges().await?;
        let beats = heartbeats(&self.warden).await?;
        let name = self.shelf.name();
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

    /// Publishes accepted orders without a row, and takes out of the journal what is in the books or
    /// in the broker. Messages of an epoch that PostgreSQL has ended would only be fenced.
    async fn drain(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.drain");
        self.same_redis().await?;
        let booked = self.booked;
        let image = Image::read(self.warden.redis(), &self.shelf).await?;
        let unwritten =
            unwritten(&self.warden, &self.shelf, self.rows.number, &image, |record| record.epoch == booked)
                .await?;
        self.outlet.orders(&unwritten).await?;
        self.warden.metrics().republished.inc_by(unwritten.len() as u64);
        forget_journal(&self.warden, &self.shelf, &image, booked).await?;
        Ok(Event::Drained(unwritten.len()))
    }

    async fn push_barrier(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.push-barrier");
        self.same_redis().await?;
        self.barrier = format!("{}@{}", self.shelf.name(), uuid::Uuid::now_v7());
        self.outlet.barrier(&self.barrier).await?;
        Ok(Event::BarrierPushed)
    }

    async fn watch_barrier(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.watch-barrier");
        self.same_redis().await?;
        let through = self.warden.context.store.barrier_shards(&self.barrier).await?;
        Ok(Event::BarrierThrough(through, usize::from(self.outlet.shards())))
    }

    /// Compares, ends the epoch in PostgreSQL, then in Redis, and loads the scripts of the next one: once,
    /// and only into the Redis that was compared. Another warden may have led meanwhile and opened an
    /// epoch that nobody was asked for: then it begins again.
    async fn raise(&mut self, epoch: &mut u64) -> Result<Event, Trouble> {
        failpoint::reach("F85.raise");
        self.same_redis().await?;
        let (store, booked) = (&self.warden.context.store, self.booked);
        let image = Image::read(self.warden.redis(), &self.shelf).await?;
        let Some(mut raising) = store.begin_raise(&self.shelf, booked).await? else {
            return Err(Trouble::Odd("another warden raised the epoch".to_owned()));
        };
        let books = self.books(&mut raising, &image.head, booked).await?;
        let seq = books.orders.values().map(|row| row.seq).max().unwrap_or(0);
        let verdict = compare(&image, &books);
        match verdict {
            Verdict::Equal => {
                raising.commit().await?;
                failpoint::reach("F85.books-raised");
                self.raise_redis(&image.head, booked, seq).await?;
            }
            Verdict::Lost(what, unwritten) if unwritten > 0 && self.back < BACK => {
                self.back += 1;
                let shelf = self.shelf.name();
                tracing::warn!(shelf, orders = unwritten, lost = ?what, "orders without a row, and data lost");
                return Ok(Event::Unwritten);
            }
            Verdict::Lost(what, _) if books.given.is_some() => {
                let shelf = self.shelf.name();
                tracing::error!(shelf, lost = ?what, "redis has lost data: it is restored from the books");
                raising.commit().await?;
                failpoint::reach("F85.books-raised");
                self.restore(&image.head, &books, booked, seq).await?;
            }
            Verdict::Unwritten(orders) => {
                tracing::warn!(shelf = self.shelf.name(), orders, "orders without a row turned up");
                return Ok(Event::Unwritten);
            }
            Verdict::Lost(what, _) | Verdict::BooksBehind(what) => return self.frozen(&what),
        }
        failpoint::reach("F85.redis-raised");
        *epoch = booked + 1;
        ShelfScripts::new(self.shelf.clone(), *epoch).load(self.warden.redis()).await?;
        failpoint::reach("F85.scripts-loaded");
        self.same_redis().await?;
        Ok(Event::Raised)
    }

    fn frozen(&self, what: &[String]) -> Result<Event, Trouble> {
        let shelf = self.shelf.name();
        tracing::error!(shelf, differences = ?what, "redis does not fit the books: frozen");
        Ok(Event::Different)
    }

    async fn books(&self, raising: &mut Raising, head: &Head, epoch: u64) -> Result<Ledgered, Trouble> {
        let orders = raising.orders().await?.into_iter().collect();
        let stocks = raising.stocks().await?;
        let skus: BTreeSet<SkuId> = stocks.iter().map(|(sku, _)| sku.clone()).collect();
        let pending = raising.pending_changes().await?;
        let (init, given) = if self.rows.segments.len() > 1 {
            // Shares are even until the first change of the stock; then only their sum is known.
            let changed = raising.stock_was_changed().await? || !pending.is_empty();
            let share = projection::preload(&self.rows, usize::from(self.shelf.segment), epoch);
            let init: Option<BTreeMap<_, _>> =
                (!changed).then(|| share.items.into_iter().map(|(sku, units, _)| (sku, units)).collect());
            (init.clone(), init)
        } else {
            let given = stocks.iter().cloned().collect();
            (Some(expected(stocks, &pending, head)), Some(given))
        };
        let booked = pending.into_iter().filter(|(.., booked)| *booked);
        let changes = booked.map(|(key, sku, ..)| (key, sku)).collect();
        Ok(Ledgered { epoch, orders, init, given, changes, skus })
    }

    async fn raise_redis(&self, head: &Head, booked: u64, seq: u64) -> Result<(), Trouble> {
        let (scripts, redis) = (&self.warden.scripts, self.warden.redis());
        // More than one step when a crash came between the two stores.
        for epoch in head.epoch..=booked {
            let raised = match scripts.raise(redis, &self.shelf, epoch, seq).await {
                Err(Fault::NoScript { .. }) => {
                    scripts.load(redis).await?;
                    scripts.raise(redis, &self.shelf, epoch, seq).await?
                }
                answer => answer?,
            };
            if let Raised::Frozen(why) = raised {
                return Err(Trouble::Odd(format!("redis did not raise the epoch: {why:?}")));
            }
        }
        // What was taken after the comparison belongs to no epoch's books.
        let now = Head::read(redis, &self.shelf).await?;
        if now.seq != seq.max(head.seq) {
            return Err(Trouble::Odd(format!("sold until {} while comparing {}", now.seq, head.seq)));
        }
        Ok(())
    }

    async fn restore(&self, head: &Head, books: &Ledgered, booked: u64, seq: u64) -> Result<(), Trouble> {
        let (next, segment) = (booked + 1, usize::from(self.shelf.segment));
        for epoch in (head.epoch + 1).max(next.saturating_sub(LEFT_BEHIND))..=next {
            restore::forget(&self.warden, &self.shelf, epoch).await?;
        }
        let new = projection::preload(&self.rows, segment, next);
        let restored = restore::restore(&self.warden, &self.shelf, new, books, seq.max(head.seq)).await;
        if restored.is_err() {
            // Half a segment would take memory that the sales need; the next attempt has another epoch.
            drop(restore::forget(&self.warden, &self.shelf, next).await);
        }
        restored?;
        self.warden.metrics().restored.inc();
        Ok(())
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
        let (shelf, edges) = (self.shelf.name(), self.machine.waited_for());
        let waiting = self.warden.floor(|floor| {
            floor.waiting.insert(self.shelf.clone(), edges.len());
            floor.waiting.values().sum::<usize>()
        });
        self.warden.metrics().waiting_for_edges.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let state = (stage, edges.is_empty());
        if self.told.is_some_and(|(told, at)| told == state && now.duration_since(at) < TOLD) {
            return;
        }
        self.told = Some((state, now));
        if edges.is_empty() {
            tracing::info!(shelf, stage = stage.as_str(), "re-opening");
        } else {
            tracing::warn!(shelf, ?edges, "a re-opening waits for edges that may hold accepted orders");
        }
    }
}

/// The units that the segment should have been given: the offers' stock, less what a change has put
/// into the books but not yet into Redis, and the reverse.
pub fn expected(
    stocks: Vec<(SkuId, u64)>,
    pending: &[(String, SkuId, i64, bool)],
    head: &Head,
) -> BTreeMap<SkuId, u64> {
    let mut expected: BTreeMap<SkuId, u64> = stocks.into_iter().collect();
    for (key, sku, delta, booked) in pending {
        let shelved = head.changes.contains(key);
        let missing = match (shelved, *booked) {
            (true, false) => *delta,
            (false, true) => -*delta,
            _ => 0,
        };
        if let Some(units) = expected.get_mut(sku) {
            *units = units.saturating_add_signed(missing);
        }
    }
    expected
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

/// Orders of an image that hold units, are accepted only, and have no row.
pub(super) async fn unwritten(
    warden: &Warden,
    shelf: &Shelf,
    number: u32,
    image: &Image,
    wanted: impl Fn(&super::image::Entry) -> bool,
) -> Result<Vec<Accepted>, Trouble> {
    let name = |uuid: &[u8; 16]| OrderId { uuid: *uuid, sale: number, segment: shelf.segment };
    let accepted: Vec<OrderId> = image
        .orders
        .iter()
        .filter(|(_, record)| record.state == OrderState::Accepted && !record.released && wanted(record))
        .map(|(uuid, _)| name(uuid))
        .collect();
    let mut unwritten = Vec::new();
    for page in accepted.chunks(PAGE) {
        let written: BTreeSet<OrderId> = warden.context.store.written(page).await?.into_iter().collect();
        let missing = page.iter().filter(|order| !written.contains(*order));
        unwritten.extend(missing.filter_map(|order| {
            let record = image.orders.get(&order.uuid)?.record();
            Some(Accepted::of(shelf, number, order.uuid, &record))
        }));
    }
    // In the order of their sequence: the books are easier to read so.
    unwritten.sort_by_key(|order| (order.epoch, order.seq));
    Ok(unwritten)
}

/// Removes from the journal what is in the books or confirmed by the broker: after a drain that is
/// every entry up to the present epoch.
async fn forget_journal(warden: &Warden, shelf: &Shelf, image: &Image, booked: u64) -> Result<(), Fault> {
    let safe = |order: &[u8; 16], epoch: u64| {
        epoch == booked || image.orders.get(order).is_some_and(|record| record.state != OrderState::Accepted)
    };
    let entries: Vec<String> = image
        .journal
        .iter()
        .filter(|(epoch, _, order)| image.orders.contains_key(order) && safe(order, *epoch))
        .map(|(epoch, seq, _)| format!("{epoch}-{seq}"))
        .collect();
    for page in entries.chunks(PAGE) {
        let mut delete = cmd("XDEL");
        delete.arg(shelf.journal()).arg(page);
        warden.redis().run::<u64>("emptying the journal", &delete).await?;
    }
    Ok(())
}
