//! Where messages wait that cannot be worked on just now. Without I/O.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sluice_shared::amqp::Delivery;

/// How long a message may wait here: far less than a broker waits for an acknowledgement.
const LONGEST: Duration = Duration::from_secs(30);

/// Messages under way, by when they are due.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    waiting: BTreeMap<(Instant, u64), Delivery>,
    /// When each message that waits, or is being tried again, came here first.
    since: HashMap<u64, Instant>,
}

impl Room {
    pub(super) fn new(most: u16) -> Self {
        Self { most: usize::from(most.max(1)), waiting: BTreeMap::new(), since: HashMap::new() }
    }

    /// Keeps a message until it is due again; answers one that has to wait elsewhere, and how long: this
    /// one when it was here long enough, the one that waits longest when there is no room.
    pub(super) fn hold(
        &mut self,
        delivery: Delivery,
        pause: Duration,
        now: Instant,
    ) -> Option<(Delivery, Duration)> {
        let since = *self.since.entry(delivery.tag).or_insert(now);
        if now.duration_since(since) >= LONGEST {
            return Some((delivery, pause));
        }
        self.waiting.insert((now + pause, delivery.tag), delivery);
        if self.waiting.len() <= self.most {
            return None;
        }
        let ((due, _), last) = self.waiting.pop_last()?;
        Some((last, due.saturating_duration_since(now)))
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Messages that are due, the first so many.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> Vec<Delivery> {
        let due = self.waiting.keys().take(most).take_while(|(due, _)| *due <= now).count();
        (0..due).filter_map(|_| self.waiting.pop_first()).map(|(_, delivery)| delivery).collect()
    }

    /// When the next message is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.keys().next().map(|(due, _)| *due)
    }

    /// A message came to its end.
    pub(super) fn forget(&mut self, tag: u64) {
        self.since.remove(&tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGAIN: Duration = Duration::from_secs(1);

    fn delivery(tag: u64) -> Delivery {
        Delivery { tag, ..Delivery::default() }
    }

    #[test]
    fn a_message_is_due_again_after_its_pause_and_leaves_after_thirty_seconds() {
        let (mut room, start) = (Room::new(4), Instant::now());
        assert!(room.hold(delivery(1), AGAIN, start).is_none());
        assert!(room.due(start, 1).is_empty());
        assert_eq!(room.next_due(), Some(start + AGAIN));
        let tries = (1_u32..).take_while(|n| {
            let now = start + AGAIN * *n;
            room.due(now, 1).pop().is_some_and(|again| room.hold(again, AGAIN, now).is_none())
        });
        assert_eq!(tries.count(), 29);
        assert!(room.next_due().is_none());
    }

    #[test]
    fn a_full_room_gives_up_what_waits_longest() {
        let (mut room, now) = (Room::new(2), Instant::now());
        assert!(room.hold(delivery(1), AGAIN * 9, now).is_none());
        assert!(room.hold(delivery(2), AGAIN, now).is_none());
        let given_up = |(delivery, pause): (Delivery, Duration)| (delivery.tag, pause);
        assert_eq!(room.hold(delivery(3), AGAIN, now).map(given_up), Some((1, AGAIN * 9)));
        assert_eq!(room.hold(delivery(4), AGAIN * 8, now).map(given_up), Some((4, AGAIN * 8)));
        let due = |room: &mut Room, most| -> Vec<u64> {
            room.due(now + AGAIN, most).iter().map(|due| due.tag).collect()
        };
        assert_eq!(due(&mut room, 1), [2]);
        assert_eq!(due(&mut room, 9), [3]);
        assert_eq!(room.len(), 0);
    }
}
