//! The only place that asks for the time, and how times are written.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// Milliseconds since the Unix epoch, UTC.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub i64);

impl Millis {
    /// The times that are read from the outside: from 1970 to the end of 9999, in UTC. What Redis is told is not
    /// negative, and every time can be written with four digits of its year.
    const RANGE: RangeInclusive<i64> = 0..=253_402_300_799_999;

    /// This machine's wall clock. Windows of a sale are judged by Redis' clock instead; see
    /// [`ServerClock`].
    #[allow(clippy::disallowed_methods)]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// The time as whole seconds since the Unix epoch.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This time plus `span`.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// `2026-11-21T04:00:00.000Z`, the only form the outside sees (RFC 3339, UTC, milliseconds).
    pub fn to_text(self) -> String {
        let format =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|moment| moment.format(&format).ok())
            .unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
    }

    /// Reads an RFC 3339 time with any offset; `None` when it is not one, or not within [`Self::RANGE`].
    pub fn from_text(text: &str) -> Option<Self> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let millis = i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000_000)).ok()?;
        Self::RANGE.contains(&millis).then_some(Self(millis))
    }
}

/// Redis' clock as this process knows it: how long the process has run, plus the offset last
/// measured. Once it was measured, this machine's wall clock may be wrong or jump: it is not asked.
///
/// Written by whoever talks to Redis regularly, read by anybody; a plain atomic, because a reader
/// between two writes may use either offset.
#[derive(Debug)]
pub struct ServerClock {
    born: Instant,
    /// What the clock showed at birth, in milliseconds since the epoch.
    base_ms: AtomicI64,
}

impl Default for ServerClock {
    /// By this machine's wall clock, until Redis is heard.
    fn default() -> Self {
        Self { born: Instant::now(), base_ms: AtomicI64::new(Millis::now().0) }
    }
}

impl ServerClock {
    /// Notes that Redis' clock showed `server` just now.
    pub fn observe(&self, server: Millis) {
        self.base_ms.store(server.0 - self.age_ms(), Ordering::Relaxed);
    }

    /// Redis' time now.
    pub fn now(&self) -> Millis {
        Millis(self.base_ms.load(Ordering::Relaxed) + self.age_ms())
    }

    /// How far this machine's wall clock is ahead of Redis', in milliseconds.
    pub fn skew_ms(&self) -> i64 {
        Millis::now().0 - self.now().0
    }

    fn age_ms(&self) -> i64 {
        i64::try_from(self.born.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_milliseconds_and_z() {
        assert_eq!(Millis(1_795_233_600_000).to_text(), "2026-11-21T04:00:00.000Z");
    }

    #[test]
    fn a_wrong_wall_clock_does_not_matter_once_redis_was_heard() {
        let clock = ServerClock::default();
        assert!(clock.skew_ms().abs() < 1_000);
        let server = Millis(Millis::now().0 - 300_000);
        clock.observe(server);
        assert!((server.0..server.0 + 1_000).contains(&clock.now().0));
        assert!((299_000..=301_000).contains(&clock.skew_ms()));
    }

    #[test]
    fn any_offset_is_read() {
        assert_eq!(Millis::from_text("2026-11-21T05:00:00+01:00"), Some(Millis(1_795_233_600_000)));
        assert_eq!(Millis::from_text("2026-11-21T04:00:00.000Z"), Some(Millis(1_795_233_600_000)));
        assert_eq!(Millis::from_text("2026-11-21 04:00"), None);
    }

    #[test]
    fn only_times_from_1970_to_9999_are_read() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1969-12-31T23:59:59-00:01", Some(59_000)),
            ("9999-12-31T23:59:59.999999Z", Some(253_402_300_799_999)),
            ("1969-12-31T23:59:59.999Z", None),
            ("1970-01-01T00:59:59+01:00", None),
            ("1926-11-21T04:00:00Z", None),
            ("0000-01-01T00:00:00Z", None),
            ("9999-12-31T23:59:59-00:01", None),
            ("10000-01-01T00:00:00Z", None),
        ] {
            assert_eq!(Millis::from_text(text), millis.map(Millis), "{text}");
        }
    }
}
