//! What the books say of orders and Redis does not know: found by going through the rows, told again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::message::OrderEvent;
use sluice_shared::record::Record;
use sluice_shared::sale::SaleView;

use super::{Look, ROUTINE, Reconciler};
use crate::store::orders::OrderRow;
use crate::warden::Trouble;
use crate::warden::behind::{Behind, behind};
use crate::warden::scan::records;

/// Rows asked for at once.
const PAGE: u32 = 5_000;
/// Of so many orders it is remembered that they were told again; of more, each round tells them once more.
const REMEMBERED: usize = 200_000;

impl Reconciler {
    /// Compares rows of these segments with their records: all of them, or in each round those that come
    /// next.
    pub(super) async fn compare(
        &mut self,
        view: &SaleView,
        wanted: &[(Segment, u64)],
        look: Look,
    ) -> Result<(), Trouble> {
        let mut after = if look.whole { None } else { self.compared.get(&view.sale).copied() };
        loop {
            let page = self.rows(view, after, look.untold, false).await?;
            let last = page.last().map(|row| row.id);
            let untold = self.untold(wanted, page, look).await?;
            self.tell(&untold).await?;
            if !look.whole {
                match last {
                    Some(last) => self.compared.insert(view.sale.clone(), last),
                    None => self.compared.remove(&view.sale),
                };
                return Ok(());
            }
            if last.is_none() {
                return Ok(());
            }
            after = last;
        }
    }

    /// Asks again for releases that got lost on their way.
    pub(super) async fn release(&mut self, view: &SaleView) -> Result<(), Trouble> {
        let segments = (0..view.segments).map(|segment| (Segment::new(view.sale.clone(), segment), 0));
        let wanted: Vec<(Segment, u64)> = segments.collect();
        let mut after = None;
        loop {
            let page = self.rows(view, after, ROUTINE.untold, true).await?;
            let Some(last) = page.last().map(|row| row.id) else { return Ok(()) };
            let mut dead = self.untold(&wanted, page, ROUTINE).await?;
            dead.retain(|(_, what)| *what == Behind::Release);
            self.tell(&dead).await?;
            after = Some(last);
        }
    }

    /// The next rows after an order that have stood as they are for a while; only those of dead ones.
    async fn rows(
        &self,
        view: &SaleView,
        after: Option<OrderId>,
        stood: Duration,
        dead: bool,
    ) -> Result<Vec<OrderRow>, Trouble> {
        let store = &self.warden.context.store;
        Ok(store.bounded(store.rows_after(&view.sale, after, stood, dead, PAGE)).await?)
    }

    /// Those of which their records say less, and what.
    async fn untold(
        &self,
        wanted: &[(Segment, u64)],
        rows: Vec<OrderRow>,
        look: Look,
    ) -> Result<Vec<(OrderRow, Behind)>, Trouble> {
        let mut known: HashMap<OrderId, Record> = HashMap::with_capacity(rows.len());
        for (segment, _) in wanted {
            let ours = rows.iter().map(|row| row.id).filter(|id| id.segment == segment.index);
            let ours: Vec<OrderId> = ours.collect();
            let uuids: Vec<[u8; 16]> = ours.iter().map(|id| id.uuid).collect();
            let found = records(self.warden.redis(), segment, &uuids).await?;
            known.extend(ours.into_iter().zip(found).filter_map(|(id, record)| Some((id, record?))));
        }
        let behind = |row: OrderRow| {
            let what = behind(known.get(&row.id)?.into(), row.standing())?;
            self.may_tell(&row.id, look).then_some((row, what))
        };
        Ok(rows.into_iter().filter_map(behind).collect())
    }

    /// Not what was told a moment ago; but a loss after that may have been of the telling.
    fn may_tell(&self, order: &OrderId, look: Look) -> bool {
        let old = |at: &Instant| at.elapsed() > ROUTINE.untold || look.since.is_some_and(|since| *at < since);
        self.told.get(order).is_none_or(old)
    }

    /// Puts into the outbox once more what the books say of these orders.
    async fn tell(&mut self, orders: &[(OrderRow, Behind)]) -> Result<(), Trouble> {
        if orders.is_empty() {
            return Ok(());
        }
        tracing::warn!(orders = orders.len(), "told again: redis is behind the books");
        let events = |wanted: Behind| -> Vec<OrderEvent> {
            let orders = orders.iter().filter(|(_, what)| *what == wanted);
            orders.map(|(row, what)| row.event(*what == Behind::Release)).collect()
        };
        let (changes, releases) = (events(Behind::Change), events(Behind::Release));
        let store = &self.warden.context.store;
        store.bounded(store.tell_again(&changes, &releases)).await?;
        self.warden.metrics().settled_again.inc_by(changes.len() as u64);
        self.warden.metrics().released_again.inc_by(releases.len() as u64);
        let room = REMEMBERED.saturating_sub(self.told.len());
        self.told.extend(orders.iter().take(room).map(|(row, _)| (row.id, Instant::now())));
        Ok(())
    }
}
