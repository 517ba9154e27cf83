//! Brings sales from PostgreSQL into Redis, and notices when what is there was not opened by a warden.
//!
//! A round looks at whatever has changed or does not serve, and at some of the segments that serve, in
//! turn: it takes no longer with thousands of sales than with a few hundred.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::ids::SaleId;
use sluice_shared::keys::{REOPENING, Segment};
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::sale::{Question, SaleStep, SaleView};
use tokio::task::JoinSet;

use super::image::run_id;
use super::reopen::Ended;
use super::{Trouble, Warden, projection};
use crate::backoff::Backoff;
use crate::store::segments::{Projection, SaleNews};

mod closing;
mod publish;
mod sound;
mod stand;
mod unknown;
mod withdraw;
mod written;

/// A sale's keys stay in Redis this long after its end; then PostgreSQL answers.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often the list of sales in Redis is compared with the books.
const TIDY: Duration = Duration::from_secs(10);
/// Reading all sales from the books takes at most one part in so many of the time.
const SHARE: u32 = 20;
/// Segments that serve and are looked at in one round.
const LOOKED: usize = 500;
/// How long segments of closed sales wait for those that sell to be re-opened first: one that cannot be
/// re-opened must not hold them up for ever.
const URGENT: Duration = Duration::from_secs(10);
/// The shortest and the longest pause before a segment is re-opened again whose re-opening was in vain.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(60)];
/// How soon a round that failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Works until it is dropped, or a re-opening breaks down.
pub async fn run(warden: Arc<Warden>) {
    let tick = warden.context.config.reconcile.tick;
    warden.floor(|floor| floor.waiting.clear());
    let mut segments = Segments::new(warden);
    let mut news = None;
    let mut held_up = false;
    loop {
        if news.is_none() {
            let store = &segments.warden.context.store;
            news = store.bounded(store.sale_news()).await.ok();
            // Whatever came while nobody listened.
            segments.read = None;
        }
        let store = segments.warden.context.store.clone();
        let round = store.bounded(segments.round()).await;
        if let Err(trouble) = &round
            && !held_up
        {
            tracing::warn!(%trouble, "sales cannot be brought into redis");
        }
        held_up = round.is_err();
        let pause = if held_up { AGAIN.min(tick) } else { tick };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            heard = next(&mut news) => match heard {
                Ok(Some(sale)) => drop(segments.news.insert(sale)),
                Ok(None) => segments.read = None,
                Err(_) => news = None,
            },
            Some(done) = segments.reopenings.join_next() => {
                // Those that have ended besides are taken in with it.
                let mut done = Some(done);
                while let Some(ended) = done {
                    match ended {
                        Ok((segment, ended)) => segments.has_ended(&segment, ended),
                        Err(error) => {
                            tracing::error!(%error, "a re-opening broke down");
                            return;
                        }
                    }
                    done = segments.reopenings.try_join_next();
                }
            }
        }
    }
}

/// What edges were asked to close.
async fn questions(warden: &Warden) -> Result<BTreeMap<Segment, Question>, Fault> {
    let doing = "reading what is asked";
    let asked: BTreeMap<String, String> = warden.redis().run(doing, cmd("HGETALL").arg(REOPENING)).await?;
    let read = |(name, text): (String, String)| Some((Segment::parse(&name)?, Question::parse(&text)?));
    Ok(asked.into_iter().filter_map(read).collect())
}

async fn next(news: &mut Option<SaleNews>) -> Result<Option<SaleId>, crate::store::StoreError> {
    match news {
        Some(news) => news.next().await,
        None => std::future::pending().await,
    }
}

/// Where a segment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Standing {
    /// It was not looked at yet, or does not serve.
    #[default]
    Unserved,
    Serving(u64),
    Reopening,
}

/// What the leader knows of one segment.
#[derive(Debug, Default)]
struct Place {
    standing: Standing,
    /// The configuration version that it has.
    controlled: Option<u64>,
    /// Since when it is not as a warden left it, and in which epoch.
    unsound: Option<(Instant, u64)>,
    /// Its re-openings were in vain: when it is tried again.
    pause: Option<Backoff>,
    /// Whether it was re-opened and does not serve yet.
    raised: bool,
    /// What is wrong with it, as it was told last.
    odd: Option<String>,
    /// The names of its scripts in an epoch.
    scripts: Option<(u64, Vec<String>)>,
}

struct Segments {
    warden: Arc<Warden>,
    /// Which start of Redis the rest of this is about.
    redis: String,
    /// The sales that belong into Redis.
    rows: BTreeMap<SaleId, Arc<Projection>>,
    /// When all of them were read, and how long that took.
    read: Option<(Instant, Duration)>,
    /// Sales that have changed since, or that a round which failed was about.
    news: BTreeSet<SaleId>,
    places: BTreeMap<Segment, Place>,
    /// The sale that was looked at last among those that serve.
    looked: Option<SaleId>,
    /// The list that edges read.
    published: BTreeMap<SaleId, SaleView>,
    /// When it was read.
    listed: Option<Instant>,
    /// Views that are not written yet.
    unwritten: Vec<SaleView>,
    /// Whether edges have to be told that sales have changed.
    unrung: bool,
    /// Segments whose edges were asked to close an epoch, and which.
    asked: BTreeMap<Segment, Question>,
    reopenings: JoinSet<(Segment, Ended)>,
    /// Sales of Redis that the books do not know, with their segments.
    unknown: BTreeMap<SaleId, u16>,
    /// Sales that are over: nobody buys from them any more.
    over: Vec<SaleView>,
    /// The sale among them that is read before it is taken out.
    leaving: JoinSet<(SaleView, Result<Option<String>, Trouble>)>,
    /// What keeps them in Redis all the same, and until when they are let alone.
    staying: BTreeMap<SaleId, (Backoff, String)>,
}

impl Segments {
    fn new(warden: Arc<Warden>) -> Self {
        Self {
            warden,
            redis: String::new(),
            rows: BTreeMap::new(),
            read: None,
            news: BTreeSet::new(),
            places: BTreeMap::new(),
            looked: None,
            published: BTreeMap::new(),
            listed: None,
            unwritten: Vec::new(),
            unrung: false,
            asked: BTreeMap::new(),
            reopenings: JoinSet::new(),
            unknown: BTreeMap::new(),
            over: Vec::new(),
            leaving: JoinSet::new(),
            staying: BTreeMap::new(),
        }
    }

    /// One look at everything that needs one.
    async fn round(&mut self) -> Result<(), Trouble> {
        self.same_redis().await?;
        self.asked = questions(&self.warden).await?;
        self.read_rows().await?;
        let tidy = self.read_list().await?;
        if tidy {
            self.sort_out().await?;
        }
        let turn = self.turn();
        let sound = self.look(&turn).await?;
        let (closed, selling): (Vec<_>, Vec<_>) =
            turn.into_iter().partition(|rows| rows.step == SaleStep::Closed);
        for rows in selling {
            self.sale(&rows, &sound, false).await?;
        }
        // What is closed can wait until those that sell do.
        let wait = self.urgent();
        for rows in closed {
            self.sale(&rows, &sound, wait).await?;
        }
        self.write_views().await?;
        self.withdraw().await?;
        if tidy {
            self.close_ended().await?;
        }
        if self.unrung {
            self.ring().await?;
            self.unrung = false;
        }
        self.count();
        self.warden.metrics().round("sales");
        self.news.clear();
        Ok(())
    }

    /// Nothing that was known of a former Redis needs to be true of another one.
    async fn same_redis(&mut self) -> Result<(), Trouble> {
        let redis = run_id(self.warden.redis()).await?;
        if redis == self.redis {
            return Ok(());
        }
        self.published.clear();
        (self.listed, self.unrung) = (None, true);
        for place in self.places.values_mut() {
            (place.controlled, place.unsound, place.pause) = (None, None, None);
            if let Standing::Serving(_) = place.standing {
                place.standing = Standing::Unserved;
            }
        }
        self.redis = redis;
        Ok(())
    }

    /// Reads the sales: all of them, or for a while those alone that have changed or do not serve.
    async fn read_rows(&mut self) -> Result<(), Trouble> {
        let store = &self.warden.context.store;
        if self.read.is_none_or(|(at, took)| at.elapsed() >= took * SHARE) {
            let began = Instant::now();
            let rows = store.projections(KEYS_KEPT, None).await?;
            self.read = Some((Instant::now(), began.elapsed()));
            let before = std::mem::take(&mut self.rows);
            for rows in rows {
                let same = before.get(&rows.sale).filter(|before| ***before == rows).cloned();
                if same.is_none() {
                    self.news.insert(rows.sale.clone());
                }
                self.rows.insert(rows.sale.clone(), same.unwrap_or_else(|| Arc::new(rows)));
            }
            let rows = &self.rows;
            let known = |segment: &Segment| rows.contains_key(&segment.sale);
            self.places.retain(|segment, place| known(segment) || place.standing == Standing::Reopening);
            return Ok(());
        }
        let unserved = self.rows.values().filter(|rows| !self.serves(rows)).map(|rows| &rows.sale);
        let wanted: BTreeSet<SaleId> = unserved.chain(&self.news).cloned().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = wanted.iter().map(SaleId::as_str).collect();
        let found = store.projections(KEYS_KEPT, Some(&names)).await?;
        self.rows.retain(|sale, _| !wanted.contains(sale));
        self.rows.extend(found.into_iter().map(|rows| (rows.sale.clone(), Arc::new(rows))));
        self.news.extend(wanted);
        Ok(())
    }

    /// Whether every segment of a sale serves, as far as is known.
    fn serves(&self, rows: &Projection) -> bool {
        rows.segments.iter().enumerate().all(|(segment, row)| {
            let segment = rows.segment(segment);
            let place = self.places.get(&segment);
            place.is_some_and(|place| place.standing == Standing::Serving(row.epoch))
                && !self.is_asked(&segment, row.epoch)
        })
    }

    /// Edges that have closed an epoch never sell under it again, whoever asked them.
    fn is_asked(&self, segment: &Segment, epoch: u64) -> bool {
        self.asked.get(segment).is_some_and(|asked| asked.epoch >= epoch)
    }

    /// The sales that are looked at in this round: those that have changed or do not serve, and some of the
    /// others, which come next.
    fn turn(&mut self) -> Vec<Arc<Projection>> {
        let known = |rows: &&Arc<Projection>| !self.unknown.contains_key(&rows.sale);
        let is_quiet = |rows: &Projection| {
            !self.news.contains(&rows.sale) && self.published.contains_key(&rows.sale) && self.serves(rows)
        };
        let (quiet, mut turn): (Vec<_>, Vec<_>) =
            self.rows.values().filter(known).cloned().partition(|rows| is_quiet(rows));
        let from = self.looked.as_ref().map_or(0, |last| quiet.partition_point(|rows| rows.sale <= *last));
        let mut segments = 0;
        for rows in quiet[from..].iter().chain(&quiet[..from]) {
            segments += rows.segments.len();
            if segments > LOOKED {
                break;
            }
            self.looked = Some(rows.sale.clone());
            turn.push(rows.clone());
        }
        turn
    }

    /// Looks after one sale, and shows edges how it is.
    async fn sale(
        &mut self,
        rows: &Arc<Projection>,
        sound: &sound::Sound,
        wait: bool,
    ) -> Result<(), Trouble> {
        let mut epochs = Vec::with_capacity(rows.segments.len());
        for index in 0..rows.segments.len() {
            let segment = rows.segment(index);
            let epoch = match self.stand(rows, index, sound, wait).await {
                // One segment's oddity is not another's.
                Err(trouble) if trouble.is_local() => self.puzzle(segment, &trouble),
                answer => {
                    let epoch = answer?;
                    self.place(&segment).odd = None;
                    epoch
                }
            };
            epochs.push(epoch);
        }
        self.publish(projection::view(rows, epochs));
        Ok(())
    }

    fn place(&mut self, segment: &Segment) -> &mut Place {
        self.places.entry(segment.clone()).or_default()
    }

    /// A segment that cannot be looked after stays as it is; answers its epoch, 0 where it does not serve.
    fn puzzle(&mut self, segment: Segment, trouble: &Trouble) -> u64 {
        let (what, name) = (trouble.to_string(), segment.name());
        let place = self.place(&segment);
        if place.odd.as_ref() != Some(&what) {
            tracing::error!(segment = name, what, "a segment cannot be looked after");
            place.odd = Some(what);
        }
        match place.standing {
            Standing::Serving(epoch) => epoch,
            Standing::Unserved | Standing::Reopening => 0,
        }
    }

    fn count(&self) {
        let metrics = self.warden.metrics();
        let serves = |segment: &Segment| {
            let place = self.places.get(segment);
            place.is_some_and(|place| matches!(place.standing, Standing::Serving(_)))
        };
        let segments = self.rows.values().flat_map(|rows| (0..rows.segments.len()).map(|n| rows.segment(n)));
        let frozen = segments.filter(|segment| !serves(segment)).count();
        let unknown: usize = self.unknown.values().map(|segments| usize::from(*segments)).sum();
        metrics.frozen_segments.set(i64::try_from(frozen + unknown).unwrap_or(i64::MAX));
    }
}
