//! Where messages wait that cannot be worked on just now. Without I/O.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use sluice_shared::amqp::Delivery;

/// How long until a message is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a message may wait here: far less than a broker waits for an acknowledgement.
const LONGEST: Duration = Duration::from_secs(30);

/// Messages under way, each with when it is due, the first due first.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    waiting: VecDeque<(Instant, Delivery)>,
    /// When each message that waits, or is being tried again, came here first.
    since: HashMap<u64, Instant>,
}

impl Room {
    pub(super) fn new(most: u16) -> Self {
        Self { most: usize::from(most.max(1)), waiting: VecDeque::new(), since: HashMap::new() }
    }

    /// Keeps a message until it is due again; answers one that has to wait elsewhere: this one when
    /// it was here long enough, the oldest one when there is no room.
    pub(super) fn hold(&mut self, delivery: Delivery, now: Instant) -> Option<Delivery> {
        let since = *self.since.entry(delivery.tag).or_insert(now);
        if now.duration_since(since) >= LONGEST {
            return Some(delivery);
        }
        self.waiting.push_back((now + AGAIN, delivery));
        if self.waiting.len() <= self.most {
            return None;
        }
        self.waiting.pop_front().map(|(_, oldest)| oldest)
    }

    /// Messages that are due, the first so many.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> Vec<Delivery> {
        let due = self.waiting.iter().take(most).take_while(|(due, _)| *due <= now).count();
        self.waiting.drain(..due).map(|(_, delivery)| delivery).collect()
    }

    /// When the next message is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }

    /// A message came to its end.
    pub(super) fn forget(&mut self, tag: u64) {
        self.since.remove(&tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(tag: u64) -> Delivery {
        Delivery { tag, ..Delivery::default() }
    }

    #[test]
    fn a_message_is_due_again_after_a_second_and_leaves_after_thirty() {
        let (mut room, start) = (Room::new(4), Instant::now());
        assert!(room.hold(delivery(1), start).is_none());
        assert!(room.due(start, 1).is_empty());
        assert_eq!(room.next_due(), Some(start + AGAIN));
        let tries = (1_u32..).take_while(|n| {
            let now = start + AGAIN * *n;
            room.due(now, 1).pop().is_some_and(|again| room.hold(again, now).is_none())
        });
        assert_eq!(tries.count(), 29);
        assert!(room.next_due().is_none());
    }

    #[test]
    fn a_full_room_gives_up_its_oldest() {
        let (mut room, now) = (Room::new(2), Instant::now());
        assert!(room.hold(delivery(1), now).is_none());
        assert!(room.hold(delivery(2), now).is_none());
        assert_eq!(room.hold(delivery(3), now).map(|oldest| oldest.tag), Some(1));
        let due = |room: &mut Room, most| -> Vec<u64> {
            room.due(now + AGAIN, most).iter().map(|due| due.tag).collect()
        };
        assert_eq!(due(&mut room, 1), [2]);
        assert_eq!(due(&mut room, 9), [3]);
    }
}
