//! One segment: on the shelf, served, or on its way back.

use std::sync::Arc;
use std::time::Instant;

use sluice_shared::ids::InstanceId;
use sluice_shared::keys::{REOPENING, Segment};
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::sale::SaleStep;
use sluice_shared::script::{Preloaded, SegmentScripts};

use super::sound::Sound;
use super::{PAUSES, Segments, Standing, URGENT};
use crate::backoff::Backoff;
use crate::store::segments::Projection;
use crate::warden::reopen::{self, Ended};
use crate::warden::{Trouble, projection};

/// Segments of closed sales are not re-opened while so many others are: each is read whole.
const AT_ONCE: usize = 8;
/// The same for those of other sales.
const SELLING_AT_ONCE: usize = 24;

impl Segments {
    /// Takes in how a re-opening ended. From here on the segment is like any that a leader finds; should it
    /// not be as it must all the same, it is let alone for a while, and longer each time.
    pub(super) fn has_ended(&mut self, segment: &Segment, ended: Ended) {
        let now = Instant::now();
        self.warden.floor(|floor| floor.waiting.remove(segment));
        let place = self.place(segment);
        place.standing = Standing::Unserved;
        let pause = Backoff::after(place.pause, PAUSES, now);
        match ended {
            Ended::Raised(epoch) => {
                (place.raised, place.pause) = (true, Some(pause));
                self.warden.metrics().reopenings.inc();
                tracing::info!(segment = segment.name(), epoch, "re-opened");
            }
            Ended::Frozen(least) => place.pause = Some(pause.not_before(now + least)),
        }
    }

    /// Makes sure that a segment serves; answers its epoch, 0 while it does not.
    pub(super) async fn stand(
        &mut self,
        rows: &Arc<Projection>,
        segment: usize,
        sound: &Sound,
        wait: bool,
    ) -> Result<u64, Trouble> {
        let (segment, row) = (rows.segment(segment), rows.segments[segment]);
        if self.place(&segment).standing == Standing::Reopening {
            return Ok(0);
        }
        let untouched = !row.shelved && row.epoch == 1;
        if untouched && self.put_on_shelf(rows, &segment).await? {
            self.serve(rows, &segment, row.epoch).await?;
            tracing::info!(segment = segment.name(), "on the shelf");
            return Ok(row.epoch);
        }
        let is_sound = match sound.get(&segment) {
            Some(Err(fault)) => return Err(fault.clone().into()),
            Some(Ok(is)) => *is,
            None => false,
        };
        if is_sound && !self.is_asked(&segment, row.epoch) {
            self.keep(rows, &segment, row.epoch).await?;
            let place = self.place(&segment);
            (place.unsound, place.pause) = (None, None);
            return Ok(row.epoch);
        }
        self.reopen(rows, segment, row.epoch, wait);
        Ok(0)
    }

    /// Begins to re-open a segment, unless it has to wait.
    fn reopen(&mut self, rows: &Arc<Projection>, segment: Segment, epoch: u64, wait: bool) {
        let now = Instant::now();
        let closed = rows.step == SaleStep::Closed;
        let full = self.reopenings.len() >= if closed { AT_ONCE } else { SELLING_AT_ONCE };
        let place = self.place(&segment);
        place.standing = Standing::Unserved;
        let (since, _) = *place.unsound.get_or_insert((now, epoch));
        place.unsound = Some((since, epoch));
        let let_alone = place.pause.is_some_and(|pause| pause.left(now).is_some());
        let gives_way = closed && wait && now.duration_since(since) < URGENT;
        if !(let_alone || gives_way || full) {
            tracing::warn!(segment = segment.name(), epoch, "not as a warden left it: re-opening");
            (place.controlled, place.standing) = (None, Standing::Reopening);
        }
        let begins = place.standing == Standing::Reopening;
        self.warden.floor(|floor| floor.serving.remove(&segment));
        if begins {
            self.reopenings.spawn(reopen::run(self.warden.clone(), segment, Projection::clone(rows)));
        }
    }

    /// Whether a sale that is not closed has not been waited for long enough.
    pub(super) fn urgent(&self) -> bool {
        let selling = self.rows.values().filter(|rows| rows.step != SaleStep::Closed);
        let mut segments = selling.flat_map(|rows| (0..rows.segments.len()).map(|n| rows.segment(n)));
        let since = |segment: &Segment| self.places.get(segment)?.unsound;
        segments.any(|segment| since(&segment).is_some_and(|(since, _)| since.elapsed() < URGENT))
    }

    /// A segment that was never on the shelf is put there; `false` when it is not that simple.
    async fn put_on_shelf(&self, rows: &Projection, segment: &Segment) -> Result<bool, Trouble> {
        // PostgreSQL first: a crash after this leads to a re-opening, which looks before it loads.
        if !self.warden.context.store.shelve(segment).await? {
            return Ok(false);
        }
        let (scripts, redis) = (&self.warden.scripts, self.warden.redis());
        let new = projection::preload(rows, usize::from(segment.index), 1);
        let answer = match scripts.preload(redis, segment, &new).await {
            Err(Fault::NoScript { .. }) => {
                scripts.load(redis).await?;
                scripts.preload(redis, segment, &new).await?
            }
            answer => answer?,
        };
        if answer != Preloaded::Preloaded {
            tracing::error!(segment = segment.name(), ?answer, "a new segment is in redis already");
            return Ok(false);
        }
        SegmentScripts::new(segment.clone(), 1).load(redis).await?;
        Ok(true)
    }

    /// Lets a segment sell: its configuration first, then the lease, with every registered edge.
    async fn serve(&mut self, rows: &Projection, segment: &Segment, epoch: u64) -> Result<(), Trouble> {
        self.control(rows, segment, epoch).await?;
        let admit: Vec<InstanceId> = self.warden.floor(|floor| floor.admitted.iter().cloned().collect());
        // Whoever was struck off while the segment was not served still stands in it.
        let keys = cmd("HKEYS").arg(segment.meta()).to_owned();
        let fields: Vec<String> = self.warden.redis().run("reading who is admitted", &keys).await?;
        let admitted = fields.iter().filter_map(|field| InstanceId::parse(field.strip_prefix("edge:")?).ok());
        let strike: Vec<InstanceId> = admitted.filter(|instance| !admit.contains(instance)).collect();
        let span = self.warden.lease_span();
        if let Err(frozen) = self.warden.lease(segment, epoch, span, &admit, &strike).await? {
            return Err(Trouble::Odd(format!("no lease for {}: {frozen:?}", segment.name())));
        }
        if self.asked.contains_key(segment) || self.place(segment).raised {
            let mut unask = cmd("HDEL");
            unask.arg(REOPENING).arg(segment.name());
            self.warden.redis().run::<u64>("ending a collection", &unask).await?;
        }
        self.warden.floor(|floor| floor.serving.insert(segment.clone(), epoch));
        let place = self.place(segment);
        place.standing = Standing::Serving(epoch);
        if std::mem::take(&mut place.raised) {
            // The units fit the books; what became of their orders may be lost all the same.
            self.warden.doubts.note_segment(segment);
        }
        Ok(())
    }

    /// A segment that serves already gets what has changed since.
    async fn keep(&mut self, rows: &Projection, segment: &Segment, epoch: u64) -> Result<(), Trouble> {
        if self.place(segment).standing != Standing::Serving(epoch) {
            return self.serve(rows, segment, epoch).await;
        }
        self.control(rows, segment, epoch).await
    }

    async fn control(&mut self, rows: &Projection, segment: &Segment, epoch: u64) -> Result<(), Trouble> {
        if self.place(segment).controlled == Some(rows.cfg) {
            return Ok(());
        }
        let (scripts, redis) = (&self.warden.scripts, self.warden.redis());
        let new = projection::control(rows);
        let answer = match scripts.control(redis, segment, epoch, &new).await {
            Err(Fault::NoScript { .. }) => {
                scripts.load(redis).await?;
                scripts.control(redis, segment, epoch, &new).await?
            }
            answer => answer?,
        };
        answer.map_err(|why| Trouble::Odd(format!("{} cannot be controlled: {why:?}", segment.name())))?;
        self.place(segment).controlled = Some(rows.cfg);
        Ok(())
    }
}
