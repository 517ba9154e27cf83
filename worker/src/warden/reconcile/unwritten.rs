//! Accepted orders without a row: published again, an order that stays without one ever less often. What the
//! books refuse is parked each time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::message::Accepted;

use super::{Look, Reconciler};
use crate::backoff::Backoff;
use crate::warden::Trouble;

/// The shortest and the longest pause before an order is published once more.
const PAUSES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(3600)];
/// How many published orders are remembered; an order beyond them is published in each round.
const REMEMBERED: usize = 100_000;

/// When an order was published again, and how long it is let alone.
#[derive(Debug, Clone, Copy)]
struct Published {
    at: Instant,
    pause: Backoff,
}

/// The orders that were published again.
#[derive(Debug, Default)]
pub(super) struct Republished(HashMap<OrderId, Published>);

impl Republished {
    /// Whether an order may be published: not within its pause, unless its message may have been lost with
    /// what was lost `since`.
    fn is_due(&self, order: &OrderId, since: Option<Instant>, now: Instant) -> bool {
        self.0.get(order).is_none_or(|published| {
            published.pause.left(now).is_none() || since.is_some_and(|since| published.at < since)
        })
    }

    /// Notes that an order was published: its next pause is twice as long.
    fn note(&mut self, order: OrderId, now: Instant) {
        let before = self.0.get(&order).map(|published| published.pause);
        if before.is_some() || self.0.len() < REMEMBERED {
            self.0.insert(order, Published { at: now, pause: Backoff::after(before, PAUSES, now) });
        }
    }

    /// Forgets orders that were not published again although they might have been for as long as their last
    /// pause took: they have their rows.
    pub(super) fn forget(&mut self, now: Instant) {
        self.0.retain(|_, Published { at, pause }| {
            let paused = pause.left(*at).unwrap_or_default();
            now < *at + paused * 2 + PAUSES[0]
        });
    }
}

impl Reconciler {
    /// Publishes again those that are old enough.
    pub(super) async fn publish(
        &mut self,
        segment: &Segment,
        epoch: u64,
        now: Millis,
        look: Look,
        unwritten: &[Accepted],
    ) -> Result<(), Trouble> {
        // One from the future was accepted before Redis' clock went back.
        let old = |order: &&Accepted| (now.0 - order.at.0).abs() >= look.unwritten_ms;
        let (mut due, lost): (Vec<_>, Vec<_>) =
            unwritten.iter().filter(old).cloned().partition(|order| order.epoch == epoch);
        let began = Instant::now();
        due.retain(|order| self.republished.is_due(&order.order, look.since, began));
        if !due.is_empty() {
            tracing::warn!(segment = segment.name(), orders = due.len(), "published again: no rows");
            self.outlet.orders(&due).await?;
            due.iter().for_each(|order| self.republished.note(order.order, began));
            self.warden.metrics().republished.inc_by(due.len() as u64);
        }
        for order in lost.iter().take(10) {
            let order = &order.order;
            tracing::error!(%order, "accepted in an epoch that has ended, and not in the books");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_published_ever_less_often_and_at_once_after_a_loss() {
        let (mut republished, order, start) = (Republished::default(), OrderId::mint(1, 0), Instant::now());
        let (mut now, mut times) = (start, 0);
        while now < start + Duration::from_secs(24 * 3600) {
            republished.forget(now);
            if republished.is_due(&order, None, now) {
                republished.note(order, now);
                times += 1;
            }
            now += PAUSES[0];
        }
        // Nine pauses up to an hour, then one an hour at the least.
        assert!((25..=45).contains(&times), "{times} times in a day");
        republished.note(order, now);
        let later = now + Duration::from_secs(1);
        assert!(!republished.is_due(&order, Some(now), later) && !republished.is_due(&order, None, later));
        assert!(republished.is_due(&order, Some(later), later), "its message may be lost");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_leaves() {
        let (mut republished, now) = (Republished::default(), Instant::now());
        let orders: Vec<OrderId> = (0..=REMEMBERED).map(|_| OrderId::mint(1, 0)).collect();
        orders.iter().for_each(|order| republished.note(*order, now));
        assert_eq!(republished.0.len(), REMEMBERED);
        assert!(republished.is_due(&orders[REMEMBERED], None, now));
        republished.forget(now + PAUSES[0] * 2);
        assert_eq!(republished.0.len(), REMEMBERED);
        republished.forget(now + PAUSES[0] * 4);
        assert!(republished.0.is_empty());
    }
}
