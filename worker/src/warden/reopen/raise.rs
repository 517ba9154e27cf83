//! The last step of a re-opening: what Redis holds is compared with the books, and the next epoch begins.

use std::collections::{BTreeMap, BTreeSet};

use sluice_shared::failpoint;
use sluice_shared::ids::SkuId;
use sluice_shared::redis::Fault;
use sluice_shared::script::{Raised, ShelfScripts};

use super::Reopen;
use crate::store::segments::Raising;
use crate::warden::image::{Head, Image};
use crate::warden::reopening::Event;
use crate::warden::verify::{Ledgered, Verdict, compare, expected};
use crate::warden::{Trouble, projection, restore};

/// How often a segment that lost data goes back because accepted orders without a row have turned up; if
/// they never get one, it is restored without them.
const BACK: u32 = 5;
/// Copies of a segment that earlier attempts may have left behind are looked for in so many epochs.
const LEFT_BEHIND: u64 = 100;

impl Reopen {
    /// Compares, ends the epoch in PostgreSQL, then in Redis, and loads the scripts of the next one: once,
    /// and only into the Redis that was compared. Another warden may have led meanwhile and opened an
    /// epoch that nobody was asked for: then it begins again.
    pub(super) async fn raise(&mut self, epoch: &mut u64) -> Result<Event, Trouble> {
        failpoint::reach("F85.raise");
        self.same_redis().await?;
        let image = self.image().await?;
        let (store, booked) = (&self.warden.context.store, self.booked);
        let Some(mut raising) = store.bounded(store.begin_raise(&self.shelf, booked)).await? else {
            return Err(Trouble::Odd("another warden raised the epoch".to_owned()));
        };
        let books = self.books(&mut raising, &image.head, booked).await?;
        let seq = books.orders.values().map(|row| row.seq).max().unwrap_or(0);
        let verdict = compare(&image, &books);
        match verdict {
            Verdict::Equal => {
                store.bounded(raising.commit()).await?;
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
                store.bounded(raising.commit()).await?;
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

    /// What the segment holds. Whatever is taken, given back or put on the shelf changes its head: as long
    /// as the head is the one that was read before the rest at the drain, so is the rest, but for what
    /// buyers are told of their orders, which is not compared.
    async fn image(&mut self) -> Result<Image, Fault> {
        let redis = self.warden.redis();
        let sound = |image: &Image| image.head.fence.is_some() && image.torn.is_empty();
        if let Some(drained) = self.drained.take().filter(sound)
            && Head::read(redis, &self.shelf).await? == drained.head
        {
            return Ok(drained);
        }
        Image::read(redis, &self.shelf).await
    }

    fn frozen(&self, what: &[String]) -> Result<Event, Trouble> {
        let shelf = self.shelf.name();
        tracing::error!(shelf, differences = ?what, "redis does not fit the books: frozen");
        Ok(Event::Different)
    }

    async fn books(&self, raising: &mut Raising, head: &Head, epoch: u64) -> Result<Ledgered, Trouble> {
        let orders = raising.orders().await?.into_iter().collect();
        let store = &self.warden.context.store;
        let stocks = store.bounded(raising.stocks()).await?;
        let skus: BTreeSet<SkuId> = stocks.iter().map(|(sku, _)| sku.clone()).collect();
        let pending = store.bounded(raising.pending_changes()).await?;
        let (init, given) = if self.rows.segments.len() > 1 {
            // Shares are even until the first change of the stock; then only their sum is known.
            let changed = store.bounded(raising.stock_was_changed()).await? || !pending.is_empty();
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
}
