//! Takes sales out of Redis that are long over.

use std::time::{Duration, Instant};

use sluice_shared::ids::SaleId;
use sluice_shared::keys::{REOPENING, SALES, Segment};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleView;

use super::{KEYS_KEPT, Segments, Standing, written};
use crate::backoff::Backoff;
use crate::store::segments::Word;
use crate::warden::Trouble;

/// The shortest and the longest pause before a sale is looked at again that could not be taken out: all of
/// it has to be read.
const PAUSES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(600)];

impl Segments {
    /// Takes sales out of Redis that the books call closed and over; whatever of them is not in the books
    /// keeps them there. All of a sale is read for that, by a task of its own, one sale at a time: the
    /// steps of other sales do not wait for it.
    pub(super) async fn withdraw(&mut self) -> Result<(), Trouble> {
        let over = &self.over;
        self.staying.retain(|sale, _| over.iter().any(|view| view.sale == *sale));
        if let Some(read) = self.leaving.try_join_next() {
            let (view, missing) = read.map_err(|error| Trouble::Odd(error.to_string()))?;
            // Reopened meanwhile, it stays; a re-opening that is on would put back what is taken away.
            if self.is_over(&view).await? && !self.reopens(&view.sale) {
                match missing {
                    Ok(None) => self.take_out(&view).await?,
                    Ok(Some(what)) => self.stay(&view.sale, what),
                    Err(trouble) if trouble.is_local() => self.stay(&view.sale, trouble.to_string()),
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        let now = Instant::now();
        let stays = |view: &SaleView| {
            self.staying.get(&view.sale).is_some_and(|(pause, _)| pause.left(now).is_some())
        };
        let next = self.over.iter().find(|view| !stays(view) && !self.reopens(&view.sale)).cloned();
        if let Some(view) = next.filter(|_| self.leaving.is_empty()) {
            let warden = self.warden.clone();
            self.leaving.spawn(async move {
                let missing = written::missing(&warden, &view).await;
                (view, missing)
            });
        }
        Ok(())
    }

    /// Whether the books call a sale over at this moment: it may have been reopened while it was read.
    async fn is_over(&self, view: &SaleView) -> Result<bool, Trouble> {
        let name = [(view.sale.clone(), view.number)];
        let words = self.warden.context.store.words(&name, KEYS_KEPT).await?;
        Ok(self.over.contains(view) && words.get(&view.sale) == Some(&Word::Over))
    }

    async fn take_out(&mut self, view: &SaleView) -> Result<(), Trouble> {
        // Off the list last: what is on it is come back to.
        for segment in 0..view.segments {
            let segment = Segment::new(view.sale.clone(), segment);
            self.places.remove(&segment);
            self.warden.take_off(&segment).await;
            let mut unask = cmd("HDEL");
            unask.arg(REOPENING).arg(segment.name());
            self.warden.redis().run::<u64>("ending a collection", &unask).await?;
            let mut unlink = cmd("UNLINK");
            unlink.arg(&[segment.meta(), segment.stock(), segment.orders(), segment.journal()][..]);
            self.warden.redis().run::<u64>("deleting a segment", &unlink).await?;
        }
        let mut unlist = cmd("HDEL");
        unlist.arg(SALES).arg(view.sale.as_str());
        self.warden.redis().run::<u64>("taking a sale out", &unlist).await?;
        self.published.remove(&view.sale);
        self.over.retain(|over| over.sale != view.sale);
        self.staying.remove(&view.sale);
        self.unrung = true;
        self.warden.metrics().forget(&view.sale);
        tracing::info!(sale = %view.sale, "out of redis; the books answer from now on");
        Ok(())
    }

    /// Tells once what keeps a sale in Redis.
    fn stay(&mut self, sale: &SaleId, what: String) {
        let before = self.staying.get(sale);
        if before.is_none_or(|(_, told)| *told != what) {
            tracing::error!(%sale, what, "over, and not taken out of redis");
        }
        let pause = Backoff::after(before.map(|(pause, _)| *pause), PAUSES, Instant::now());
        self.staying.insert(sale.clone(), (pause, what));
    }

    /// Whether a segment of it is being re-opened.
    fn reopens(&self, sale: &SaleId) -> bool {
        let mut places = self.places.iter().filter(|(segment, _)| segment.sale == *sale);
        places.any(|(_, place)| place.standing == Standing::Reopening)
    }
}
