//! The last step of a re-opening: what Redis holds is compared with the books, and the next epoch begins.

use std::collections::{BTreeMap, BTreeSet};

use sluice_protocol::warden::reopening::Event;
use sluice_shared::failpoint;
use sluice_shared::ids::{OrderId, SkuId};
use sluice_shared::redis::Fault;
use sluice_shared::script::{Raised, SegmentScripts};

use super::Reopen;
use crate::store::books::OrderFact;
use crate::store::segments::Raising;
use crate::warden::image::{Head, Image};
use crate::warden::scan::{Scan, Wanted, records};
use crate::warden::verify::{Comparison, Ledgered, Shelved, Verdict, expected, is_given_back};
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
        let (image, shelved) = self.shelved().await?;
        let (store, booked) = (&self.warden.context.store, self.booked);
        let Some(mut raising) = store.bounded(store.begin_raise(&self.segment, booked)).await? else {
            return Err(Trouble::Odd("another warden raised the epoch".to_owned()));
        };
        let books = self.books(&mut raising, &image.head, booked).await?;
        let mut comparison = Comparison::new(&image, &shelved, &books);
        self.compare(&mut raising, &image, &mut comparison).await?;
        if comparison.has_strays() {
            self.strays(&mut raising, &mut comparison).await?;
        }
        let seq = comparison.seq();
        match comparison.verdict() {
            Verdict::Equal => {
                store.bounded(raising.commit()).await?;
                failpoint::reach("F85.books-raised");
                self.raise_redis(&image.head, booked, seq).await?;
            }
            Verdict::Lost(what, unwritten) if unwritten > 0 && self.back < BACK => {
                self.back += 1;
                let segment = self.segment.name();
                tracing::warn!(segment, orders = unwritten, lost = ?what, "orders without a row, and data lost");
                return Ok(Event::Unwritten);
            }
            Verdict::Lost(what, _) if books.given.is_some() => {
                let segment = self.segment.name();
                tracing::error!(segment, lost = ?what, "redis has lost data: it is restored from the books");
                store.bounded(raising.commit()).await?;
                failpoint::reach("F85.books-raised");
                self.restore(&image.head, &books, booked, seq).await?;
            }
            Verdict::Unwritten(orders) => {
                tracing::warn!(segment = self.segment.name(), orders, "orders without a row turned up");
                return Ok(Event::Unwritten);
            }
            Verdict::Lost(what, _) | Verdict::BooksBehind(what) => return self.frozen(&what),
        }
        failpoint::reach("F85.redis-raised");
        *epoch = booked + 1;
        SegmentScripts::new(self.segment.clone(), *epoch).load(self.warden.redis()).await?;
        failpoint::reach("F85.scripts-loaded");
        self.same_redis().await?;
        Ok(Event::Raised)
    }

    /// What the segment holds, added up. Units go back meanwhile: a mark is wrong only if it was at two looks.
    async fn shelved(&self) -> Result<(Image, Shelved), Fault> {
        let image = Image::read(self.warden.redis(), &self.segment).await?;
        let mut shelved = Shelved::default();
        self.look(&image, &mut shelved).await?;
        if shelved.is_doubtful() {
            let earlier = std::mem::take(&mut shelved);
            shelved = earlier.again();
            self.look(&image, &mut shelved).await?;
            shelved.confirm(&earlier);
        }
        Ok((image, shelved))
    }

    async fn look(&self, image: &Image, shelved: &mut Shelved) -> Result<(), Fault> {
        if !image.has_orders() {
            return Ok(());
        }
        let mut scan = Scan::of(self.warden.redis(), &self.segment, Wanted::All);
        while let Some(page) = scan.next().await? {
            shelved.take(image, page);
        }
        Ok(())
    }

    /// Every row with its record.
    async fn compare(
        &self,
        raising: &mut Raising,
        image: &Image,
        comparison: &mut Comparison<'_>,
    ) -> Result<(), Trouble> {
        let mut after = String::new();
        loop {
            let page = raising.orders_after(&after).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = last.to_string();
            let ours: Vec<(OrderId, OrderFact)> =
                page.into_iter().filter(|(id, _)| id.segment == self.segment.index).collect();
            let uuids: Vec<[u8; 16]> = ours.iter().map(|(id, _)| id.uuid).collect();
            let found = if image.has_orders() {
                records(self.warden.redis(), &self.segment, &uuids).await?
            } else {
                vec![None; uuids.len()]
            };
            // A row that was read just before its order died, and whose units went back since.
            let early = ours.iter().zip(&found).filter(|((_, row), record)| {
                record.as_ref().is_some_and(|record| is_given_back(row, record))
            });
            let early: Vec<OrderId> = early.map(|((id, _), _)| *id).collect();
            let again: BTreeMap<OrderId, OrderFact> = raising.orders_of(&early).await?.into_iter().collect();
            for ((id, row), record) in ours.iter().zip(&found) {
                comparison.row(&id.uuid, again.get(id).unwrap_or(row), record.as_ref());
            }
        }
    }

    /// Records without a row.
    async fn strays(&self, raising: &mut Raising, comparison: &mut Comparison<'_>) -> Result<(), Trouble> {
        let name = |uuid| OrderId { uuid, sale: self.rows.number, segment: self.segment.index };
        let mut scan = Scan::of(self.warden.redis(), &self.segment, Wanted::Orders);
        while let Some(page) = scan.next_orders().await? {
            let ids: Vec<OrderId> = page.iter().map(|(uuid, _)| name(*uuid)).collect();
            let rows: BTreeSet<OrderId> =
                raising.orders_of(&ids).await?.into_iter().map(|row| row.0).collect();
            for (uuid, record) in page.iter().filter(|(uuid, _)| !rows.contains(&name(*uuid))) {
                comparison.stray(uuid, record);
            }
        }
        Ok(())
    }

    fn frozen(&self, what: &[String]) -> Result<Event, Trouble> {
        let segment = self.segment.name();
        tracing::error!(segment, differences = ?what, "redis does not fit the books: frozen");
        Ok(Event::Different)
    }

    async fn books(&self, raising: &mut Raising, head: &Head, epoch: u64) -> Result<Ledgered, Trouble> {
        let store = &self.warden.context.store;
        let stocks = store.bounded(raising.stocks()).await?;
        let skus: BTreeSet<SkuId> = stocks.iter().map(|(sku, _)| sku.clone()).collect();
        let pending = store.bounded(raising.pending_changes()).await?;
        let (init, given) = if self.rows.segments.len() > 1 {
            // Shares are even until the first change of the stock; then only their sum is known.
            let changed = store.bounded(raising.stock_was_changed()).await? || !pending.is_empty();
            let share = projection::preload(&self.rows, usize::from(self.segment.index), epoch);
            let init: Option<BTreeMap<_, _>> =
                (!changed).then(|| share.items.into_iter().map(|(sku, units, _)| (sku, units)).collect());
            (init.clone(), init)
        } else {
            let given = stocks.iter().cloned().collect();
            (Some(expected(stocks, &pending, head)), Some(given))
        };
        let booked = pending.into_iter().filter(|(.., booked)| *booked);
        let changes = booked.map(|(key, sku, ..)| (key, sku)).collect();
        Ok(Ledgered { epoch, init, given, changes, skus })
    }

    async fn raise_redis(&self, head: &Head, booked: u64, seq: u64) -> Result<(), Trouble> {
        let (scripts, redis) = (&self.warden.scripts, self.warden.redis());
        // More than one step when a crash came between the two stores.
        for epoch in head.epoch..=booked {
            let raised = match scripts.raise(redis, &self.segment, epoch, seq).await {
                Err(Fault::NoScript { .. }) => {
                    scripts.load(redis).await?;
                    scripts.raise(redis, &self.segment, epoch, seq).await?
                }
                answer => answer?,
            };
            if let Raised::Frozen(why) = raised {
                return Err(Trouble::Odd(format!("redis did not raise the epoch: {why:?}")));
            }
        }
        // What was taken after the comparison belongs to no epoch's books.
        let now = Head::read(redis, &self.segment).await?;
        if now.seq != seq.max(head.seq) {
            return Err(Trouble::Odd(format!("sold until {} while comparing {}", now.seq, head.seq)));
        }
        Ok(())
    }

    async fn restore(&self, head: &Head, books: &Ledgered, booked: u64, seq: u64) -> Result<(), Trouble> {
        let (next, segment) = (booked + 1, usize::from(self.segment.index));
        for epoch in (head.epoch + 1).max(next.saturating_sub(LEFT_BEHIND))..=next {
            restore::forget(&self.warden, &self.segment, epoch).await?;
        }
        let new = projection::preload(&self.rows, segment, next);
        let restored = restore::restore(&self.warden, &self.segment, new, books, seq.max(head.seq)).await;
        if restored.is_err() {
            // Half a segment would take memory that the sales need; the next attempt has another epoch.
            drop(restore::forget(&self.warden, &self.segment, next).await);
        }
        restored?;
        self.warden.metrics().restored.inc();
        Ok(())
    }
}
