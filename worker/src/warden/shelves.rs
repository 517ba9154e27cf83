//! Brings sales from PostgreSQL into Redis, and notices when what is there was not opened by a warden.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::ids::{InstanceId, SaleId};
use sluice_shared::keys::{REOPENING, SALES, Shelf};
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::sale::{Question, SaleStep, SaleView};
use sluice_shared::script::{Preloaded, ShelfScripts};
use tokio::task::JoinSet;

use super::image::{self, Kind, NUMBERS, run_id};
use super::reopen::{self, Ended};
use super::{Trouble, Warden, projection};
use crate::store::segments::{Projection, SaleNews};

mod publish;
mod withdraw;

/// A sale's keys stay in Redis this long after its end; then PostgreSQL answers.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often sales that are over are looked for.
const TIDY: Duration = Duration::from_secs(10);
/// Segments of closed sales wait so long for those that sell; longer, they would wait for a trouble.
const URGENT: Duration = Duration::from_secs(10);
/// Segments of closed sales are not re-opened while so many others are: each is read whole.
const AT_ONCE: usize = 8;
/// The same for those of other sales.
const SELLING_AT_ONCE: usize = 24;
/// How soon a round that failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Works until it is dropped, or a re-opening breaks down.
pub async fn run(warden: Arc<Warden>) {
    let tick = warden.context.config.reconcile.tick;
    warden.floor(|floor| floor.waiting.clear());
    let mut shelves = Shelves::new(warden);
    let mut news = None;
    let mut held_up = false;
    loop {
        if news.is_none() {
            let store = &shelves.warden.context.store;
            news = store.bounded(store.sale_news()).await.ok();
        }
        let store = shelves.warden.context.store.clone();
        let round = store.bounded(shelves.round()).await;
        if let Err(trouble) = &round
            && !held_up
        {
            tracing::warn!(%trouble, "sales cannot be brought into redis");
        }
        held_up = round.is_err();
        let pause = if held_up { AGAIN.min(tick) } else { tick };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            heard = next(&mut news) => if heard.is_err() { news = None },
            Some(done) = shelves.reopenings.join_next() => {
                // Those that have ended besides are taken in with it.
                let mut done = Some(done);
                while let Some(ended) = done {
                    match ended {
                        Ok((shelf, ended)) => drop(shelves.ended.insert(shelf, ended)),
                        Err(error) => {
                            tracing::error!(%error, "a re-opening broke down");
                            return;
                        }
                    }
                    done = shelves.reopenings.try_join_next();
                }
            }
        }
    }
}

/// What edges were asked to close.
async fn questions(warden: &Warden) -> Result<BTreeMap<Shelf, Question>, Fault> {
    let doing = "reading what is asked";
    let asked: BTreeMap<String, String> = warden.redis().run(doing, cmd("HGETALL").arg(REOPENING)).await?;
    let read = |(name, text): (String, String)| Some((Shelf::parse(&name)?, Question::parse(&text)?));
    Ok(asked.into_iter().filter_map(read).collect())
}

async fn next(news: &mut Option<SaleNews>) -> Result<(), crate::store::StoreError> {
    match news {
        Some(news) => news.next().await,
        None => std::future::pending().await,
    }
}

/// Where a segment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Serving(u64),
    Reopening,
}

struct Shelves {
    warden: Arc<Warden>,
    /// Which start of Redis the rest of this is about.
    redis: String,
    standing: BTreeMap<Shelf, Standing>,
    /// Configuration version that each segment has.
    controlled: BTreeMap<Shelf, u64>,
    published: BTreeMap<SaleId, SaleView>,
    /// Segments whose edges were asked to close an epoch, and which.
    asked: BTreeMap<Shelf, Question>,
    reopenings: JoinSet<(Shelf, Ended)>,
    /// How those ended that were not looked at since.
    ended: BTreeMap<Shelf, Ended>,
    /// Segments that stay frozen, and until when they are let alone.
    frozen: BTreeMap<Shelf, Instant>,
    /// Segments of sales that are not closed among them, and since when.
    urgent: BTreeMap<Shelf, Instant>,
    /// Segments that were re-opened and do not serve yet.
    unserved: BTreeSet<Shelf>,
    /// What is wrong with segments that cannot be looked after, as it was told last.
    odd: BTreeMap<Shelf, String>,
    /// Whether edges have to be told that sales have changed.
    unrung: bool,
    /// When sales that are long over were last looked for.
    tidied: Option<Instant>,
}

impl Shelves {
    fn new(warden: Arc<Warden>) -> Self {
        Self {
            warden,
            redis: String::new(),
            standing: BTreeMap::new(),
            controlled: BTreeMap::new(),
            published: BTreeMap::new(),
            asked: BTreeMap::new(),
            reopenings: JoinSet::new(),
            ended: BTreeMap::new(),
            frozen: BTreeMap::new(),
            urgent: BTreeMap::new(),
            unserved: BTreeSet::new(),
            odd: BTreeMap::new(),
            unrung: false,
            tidied: None,
        }
    }

    /// One look at everything.
    async fn round(&mut self) -> Result<(), Trouble> {
        let redis = run_id(self.warden.redis()).await?;
        if redis != self.redis {
            // Nothing that was known of the former one needs to be true of this one.
            self.published.clear();
            self.controlled.clear();
            self.redis = redis;
        }
        self.asked = questions(&self.warden).await?;
        let shown: usize = self.warden.redis().run("counting the sales", cmd("HLEN").arg(SALES)).await?;
        if shown < self.published.len() {
            // Somebody deleted what was written.
            self.published.clear();
        }
        let mut sales = self.warden.context.store.projections(KEYS_KEPT).await?;
        // Those that sell first: what is closed can wait until they do.
        sales.sort_by_key(|rows| rows.step == SaleStep::Closed);
        let mut frozen = 0;
        for rows in &sales {
            let mut epochs = Vec::with_capacity(rows.segments.len());
            for segment in 0..rows.segments.len() {
                let epoch = match self.stand(rows, segment).await {
                    // One segment's oddity is not another's.
                    Err(trouble) if trouble.is_local() => self.puzzle(rows.shelf(segment), &trouble),
                    answer => {
                        let epoch = answer?;
                        self.odd.remove(&rows.shelf(segment));
                        epoch
                    }
                };
                epochs.push(epoch);
            }
            frozen += epochs.iter().filter(|epoch| **epoch == 0).count();
            self.publish(projection::view(rows, epochs)).await?;
        }
        if self.tidied.is_none_or(|at| at.elapsed() > TIDY) {
            self.withdraw(&sales).await?;
            self.tidied = Some(Instant::now());
        }
        if self.unrung {
            self.ring().await?;
            self.unrung = false;
        }
        self.warden.metrics().frozen_segments.set(i64::try_from(frozen).unwrap_or(i64::MAX));
        Ok(())
    }

    /// A segment that cannot be looked after stays as it is; answers its epoch, 0 where it does not serve.
    fn puzzle(&mut self, shelf: Shelf, trouble: &Trouble) -> u64 {
        let what = trouble.to_string();
        let epoch = match self.standing.get(&shelf) {
            Some(Standing::Serving(epoch)) => *epoch,
            _ => 0,
        };
        if self.odd.get(&shelf) != Some(&what) {
            tracing::error!(shelf = shelf.name(), what, "a segment cannot be looked after");
            self.odd.insert(shelf, what);
        }
        epoch
    }

    /// Makes sure that a segment serves; answers its epoch, 0 while it does not.
    async fn stand(&mut self, rows: &Projection, segment: usize) -> Result<u64, Trouble> {
        let (shelf, row) = (rows.shelf(segment), rows.segments[segment]);
        if self.standing.get(&shelf) == Some(&Standing::Reopening) {
            let Some(ended) = self.ended.remove(&shelf) else { return Ok(0) };
            // From here on it is like any segment that a leader finds.
            self.standing.remove(&shelf);
            match ended {
                Ended::Raised(epoch) => {
                    self.unserved.insert(shelf.clone());
                    self.urgent.remove(&shelf);
                    self.warden.metrics().reopenings.inc();
                    tracing::info!(shelf = shelf.name(), epoch, "re-opened");
                }
                Ended::Frozen(pause) => drop(self.frozen.insert(shelf.clone(), Instant::now() + pause)),
            }
        }
        let untouched = !row.shelved && row.epoch == 1;
        if untouched && self.put_on_shelf(rows, &shelf).await? {
            self.serve(rows, &shelf, row.epoch).await?;
            tracing::info!(shelf = shelf.name(), "on the shelf");
            return Ok(row.epoch);
        }
        // Edges that have closed an epoch never sell under it again, whoever asked them.
        let closed = self.asked.get(&shelf).is_some_and(|asked| asked.epoch >= row.epoch);
        if !closed && self.is_sound(&shelf, row.epoch).await? {
            self.keep(rows, &shelf, row.epoch).await?;
            return Ok(row.epoch);
        }
        if rows.step != SaleStep::Closed {
            self.urgent.entry(shelf.clone()).or_insert_with(Instant::now);
        }
        let let_alone = self.frozen.get(&shelf).is_some_and(|until| Instant::now() < *until);
        if let_alone || self.must_wait(rows.step) {
            self.standing.remove(&shelf);
            self.warden.floor(|floor| floor.serving.remove(&shelf));
            return Ok(0);
        }
        tracing::warn!(shelf = shelf.name(), epoch = row.epoch, "not as a warden left it: re-opening");
        self.frozen.remove(&shelf);
        self.controlled.remove(&shelf);
        self.standing.insert(shelf.clone(), Standing::Reopening);
        self.warden.floor(|floor| floor.serving.remove(&shelf));
        self.reopenings.spawn(reopen::run(self.warden.clone(), shelf, rows.clone()));
        Ok(0)
    }

    /// Whether the re-opening of a sale at this step would be in others' way.
    fn must_wait(&self, step: SaleStep) -> bool {
        if step != SaleStep::Closed {
            return self.reopenings.len() >= SELLING_AT_ONCE;
        }
        let urgent = self.urgent.values().any(|since| since.elapsed() < URGENT);
        urgent || self.reopenings.len() >= AT_ONCE
    }

    /// A segment that was never on the shelf is put there; `false` when it is not that simple.
    async fn put_on_shelf(&self, rows: &Projection, shelf: &Shelf) -> Result<bool, Trouble> {
        // PostgreSQL first: a crash after this leads to a re-opening, which looks before it loads.
        if !self.warden.context.store.shelve(shelf).await? {
            return Ok(false);
        }
        let (scripts, redis) = (&self.warden.scripts, self.warden.redis());
        let new = projection::preload(rows, usize::from(shelf.segment), 1);
        let answer = match scripts.preload(redis, shelf, &new).await {
            Err(Fault::NoScript { .. }) => {
                scripts.load(redis).await?;
                scripts.preload(redis, shelf, &new).await?
            }
            answer => answer?,
        };
        if answer != Preloaded::Preloaded {
            tracing::error!(shelf = shelf.name(), ?answer, "a new segment is in redis already");
            return Ok(false);
        }
        ShelfScripts::new(shelf.clone(), 1).load(redis).await?;
        Ok(true)
    }

    /// Whether Redis holds the segment in its epoch, with every key that it must have, and knows its
    /// scripts: then it is the same Redis that a warden opened.
    async fn is_sound(&self, shelf: &Shelf, epoch: u64) -> Result<bool, Fault> {
        let redis = self.warden.redis();
        let kinds = image::kinds(redis, shelf).await?;
        if !kinds[..2].iter().all(|kind| *kind == Kind::Right) || kinds.contains(&Kind::Wrong) {
            return Ok(false);
        }
        let read = cmd("HMGET").arg(shelf.meta()).arg(&["fence", "state", "seq"]).arg(&NUMBERS).to_owned();
        let fields: Vec<Option<String>> = redis.run("reading the fence", &read).await?;
        let [fence, state, numbers @ ..] = &fields[..] else { return Ok(false) };
        let is = |field: &Option<String>, good: fn(&str) -> bool| field.as_deref().is_some_and(good);
        if fence.as_deref() != Some(shelf.fence(epoch).as_str())
            || !is(state, |word| SaleStep::parse(word).is_some())
            || !numbers.iter().all(|number| is(number, |text| text.parse::<u64>().is_ok()))
        {
            return Ok(false);
        }
        let sold = is(&numbers[0], |seq| seq != "0");
        if sold && kinds.contains(&Kind::Missing) {
            return Ok(false);
        }
        ShelfScripts::new(shelf.clone(), epoch).loaded(redis).await
    }

    /// Lets a segment sell: its configuration first, then the lease, with every registered edge.
    async fn serve(&mut self, rows: &Projection, shelf: &Shelf, epoch: u64) -> Result<(), Trouble> {
        self.control(rows, shelf, epoch).await?;
        let admit: Vec<InstanceId> = self.warden.floor(|floor| floor.admitted.iter().cloned().collect());
        // Whoever was struck off while the segment was not served still stands in it.
        let keys = cmd("HKEYS").arg(shelf.meta()).to_owned();
        let fields: Vec<String> = self.warden.redis().run("reading who is admitted", &keys).await?;
        let admitted = fields.iter().filter_map(|field| InstanceId::parse(field.strip_prefix("edge:")?).ok());
        let strike: Vec<InstanceId> = admitted.filter(|instance| !admit.contains(instance)).collect();
        let span = self.warden.lease_span();
        if let Err(frozen) = self.warden.lease(shelf, epoch, span, &admit, &strike).await? {
            return Err(Trouble::Odd(format!("no lease for {}: {frozen:?}", shelf.name())));
        }
        let mut unask = cmd("HDEL");
        unask.arg(REOPENING).arg(shelf.name());
        self.warden.redis().run::<u64>("ending a collection", &unask).await?;
        self.standing.insert(shelf.clone(), Standing::Serving(epoch));
        self.warden.floor(|floor| floor.serving.insert(shelf.clone(), epoch));
        if self.unserved.remove(shelf) {
            // The units fit the books; what became of their orders may be lost all the same.
            self.warden.doubts.note_shelf(shelf);
        }
        Ok(())
    }

    /// A segment that serves already gets what has changed since.
    async fn keep(&mut self, rows: &Projection, shelf: &Shelf, epoch: u64) -> Result<(), Trouble> {
        if self.standing.get(shelf) != Some(&Standing::Serving(epoch)) {
            return self.serve(rows, shelf, epoch).await;
        }
        self.control(rows, shelf, epoch).await
    }

    async fn control(&mut self, rows: &Projection, shelf: &Shelf, epoch: u64) -> Result<(), Trouble> {
        if self.controlled.get(shelf) == Some(&rows.cfg) {
            return Ok(());
        }
        let (scripts, redis) = (&self.warden.scripts, self.warden.redis());
        let new = projection::control(rows);
        let answer = match scripts.control(redis, shelf, epoch, &new).await {
            Err(Fault::NoScript { .. }) => {
                scripts.load(redis).await?;
                scripts.control(redis, shelf, epoch, &new).await?
            }
            answer => answer?,
        };
        answer.map_err(|why| Trouble::Odd(format!("{} cannot be controlled: {why:?}", shelf.name())))?;
        self.controlled.insert(shelf.clone(), rows.cfg);
        Ok(())
    }
}
