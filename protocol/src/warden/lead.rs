//! Which warden leads. Two never harm each other (the fence guards the data); one is enough.

use std::time::{Duration, Instant};

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Leads from now on.
    Gained,
    /// Leads no longer.
    Lost,
    /// As before.
    Same,
}

/// The leadership of one process as it knows it.
#[derive(Debug)]
pub struct Lead {
    span: Duration,
    until: Option<Instant>,
}

impl Lead {
    /// A follower; `span` is how long one word of Redis makes a leader.
    pub fn new(span: Duration) -> Self {
        Self { span, until: None }
    }

    /// How long to wait before asking again: a leader renews in good time, a follower is at hand soon
    /// after the lock is free.
    pub fn pause(&self) -> Duration {
        if self.until.is_some() { self.span / 3 } else { self.span / 10 }
    }

    /// Redis was asked at `asked` and said whether we lead; `None`: no answer.
    pub fn heard(&mut self, answer: Option<bool>, asked: Instant, now: Instant) -> Turn {
        let led = self.until.is_some();
        match answer {
            // Counted from the asking: Redis counts from later, so we stop before it lets another in.
            Some(true) => self.until = Some(asked + self.span),
            Some(false) => self.until = None,
            None => self.until = self.until.filter(|until| now < *until),
        }
        match (led, self.until.is_some()) {
            (false, true) => Turn::Gained,
            (true, false) => Turn::Lost,
            _ => Turn::Same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_answers_stops_before_its_lock_is_free() {
        let span = Duration::from_secs(2);
        let (mut lead, start) = (Lead::new(span), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(lead.heard(Some(true), at(0), at(10)), Turn::Gained);
        assert_eq!(lead.heard(None, at(600), at(700)), Turn::Same);
        assert_eq!(lead.heard(Some(true), at(1300), at(1400)), Turn::Same);
        assert_eq!(lead.heard(None, at(2600), at(3200)), Turn::Same);
        assert_eq!(lead.heard(None, at(3200), at(3300)), Turn::Lost);
        assert_eq!(lead.heard(None, at(3900), at(3900)), Turn::Same);
    }

    #[test]
    fn another_leader_is_believed_at_once() {
        let (mut lead, now) = (Lead::new(Duration::from_secs(2)), Instant::now());
        assert_eq!(lead.heard(Some(false), now, now), Turn::Same);
        assert_eq!(lead.heard(Some(true), now, now), Turn::Gained);
        assert_eq!(lead.heard(Some(false), now, now), Turn::Lost);
    }
}
