//! Whose records may be behind the books, because a store has lost something: noted by whoever notices,
//! looked at by the reconciler.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sluice_shared::keys::Segment;
use tokio::sync::Notify;

/// Segments in doubt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubt {
    all: bool,
    segments: BTreeSet<Segment>,
    /// When the last loss was noticed that it is about.
    since: Option<Instant>,
}

impl Doubt {
    /// The same doubt, about these segments only.
    pub fn about(self, segments: BTreeSet<Segment>) -> Self {
        Self { all: false, segments, ..self }
    }

    /// When the last loss was noticed that it is about.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether it is about this segment.
    pub fn covers(&self, segment: &Segment) -> bool {
        self.all || self.segments.contains(segment)
    }
}

/// What was noted and not looked at yet; at most every segment there is.
#[derive(Debug, Default)]
pub struct Doubts {
    noted: Mutex<Doubt>,
    bell: Notify,
}

impl Doubts {
    fn noted(&self) -> MutexGuard<'_, Doubt> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// RabbitMQ has lost its messages: they were of any segment.
    pub fn note_all(&self) {
        self.note(Doubt { all: true, since: Some(Instant::now()), ..Doubt::default() });
    }

    /// A segment was re-opened: Redis may have lost its end.
    pub fn note_segment(&self, segment: &Segment) {
        let segments = BTreeSet::from([segment.clone()]);
        self.note(Doubt { all: false, segments, since: Some(Instant::now()) });
    }

    /// What could not be looked at is in doubt still.
    pub fn note(&self, doubt: Doubt) {
        let mut noted = self.noted();
        noted.all |= doubt.all;
        noted.segments.extend(doubt.segments);
        noted.since = noted.since.max(doubt.since);
        drop(noted);
        self.bell.notify_one();
    }

    /// Waits until something is in doubt, and takes it over.
    pub async fn next(&self) -> Doubt {
        loop {
            let doubt = std::mem::take(&mut *self.noted());
            if doubt != Doubt::default() {
                return doubt;
            }
            self.bell.notified().await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sluice_shared::ids::SaleId;

    use super::*;

    fn of(index: u16) -> Segment {
        Segment::new(SaleId::parse("demo").unwrap(), index)
    }

    #[tokio::test]
    async fn what_is_noted_in_turn_is_taken_over_at_once() {
        let doubts = Doubts::default();
        doubts.note_segment(&of(0));
        doubts.note_segment(&of(2));
        let doubt = doubts.next().await;
        assert_eq!([0, 1, 2].map(|index| doubt.covers(&of(index))), [true, false, true]);
        // Looking failed, and meanwhile the broker lost everything.
        doubts.note_all();
        let first = doubt.since();
        doubts.note(doubt);
        let both = doubts.next().await;
        assert!(both.covers(&of(1)) && both.since() > first);
        assert_eq!(*doubts.noted(), Doubt::default());
    }
}
