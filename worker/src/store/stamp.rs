//! A time as PostgreSQL keeps it. A calendar's type panics at `infinity` and at years beyond 9999; whoever
//! reads the books to judge them must be able to read what is wrong in them.

use sluice_shared::clock::Millis;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};
use time::OffsetDateTime;

/// From the Unix epoch to PostgreSQL's, 2000-01-01.
const EPOCH_MICROS: i128 = 946_684_800_000_000;

/// A `timestamptz`: microseconds since PostgreSQL's epoch; the greatest and the least are the infinities.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp(i64);

impl Stamp {
    /// Microseconds since the Unix epoch.
    pub(crate) fn micros(self) -> i128 {
        i128::from(self.0) + EPOCH_MICROS
    }

    /// The whole milliseconds before.
    pub(crate) fn millis(self) -> Millis {
        Millis(i64::try_from(self.micros().div_euclid(1000)).unwrap_or(i64::MAX))
    }
}

impl Type<Postgres> for Stamp {
    fn type_info() -> PgTypeInfo {
        <OffsetDateTime as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for Stamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        <i64 as Decode<'r, Postgres>>::decode(value).map(Self)
    }
}
