//! The record of one order in Redis: `STATE|epoch|seq|accepted|updated|pay_before|refund|lines|user`.

use std::fmt;

use crate::clock::Millis;
use crate::ids::UserId;
use crate::lines::{Lines, LinesPool};

/// What a buyer is told about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Units taken, intent durable.
    Accepted,
    /// Units taken, hand-over to the broker not yet confirmed.
    Pending,
    /// Written; waits for the money.
    PendingPayment,
    /// Paid.
    Paid,
    /// Not paid in time.
    Expired,
    /// Given up by the buyer.
    Cancelled,
    /// Could not be written.
    Failed,
    /// Paid and given back.
    Refunded,
}

impl OrderState {
    /// The word of the outside contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Pending => "pending",
            Self::PendingPayment => "pending_payment",
            Self::Paid => "paid",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Refunded => "refunded",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Accepted,
            Self::Pending,
            Self::PendingPayment,
            Self::Paid,
            Self::Expired,
            Self::Cancelled,
            Self::Failed,
            Self::Refunded,
        ]
        .into_iter()
        .find(|state| state.as_str() == word)
    }

    /// Whether an event stream ends here.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Paid | Self::Expired | Self::Cancelled | Self::Failed | Self::Refunded)
    }

    /// The state's letter in a record. `Pending` is an edge's word only and is stored as accepted.
    pub fn letter(self) -> char {
        match self {
            Self::Accepted | Self::Pending => 'A',
            Self::PendingPayment => 'P',
            Self::Paid => 'S',
            Self::Expired => 'E',
            Self::Cancelled => 'C',
            Self::Failed => 'F',
            Self::Refunded => 'D',
        }
    }

    fn from_letter(letter: char) -> Option<Self> {
        Some(match letter {
            'A' => Self::Accepted,
            'P' => Self::PendingPayment,
            'S' => Self::Paid,
            'E' => Self::Expired,
            'C' => Self::Cancelled,
            'F' => Self::Failed,
            'D' => Self::Refunded,
            _ => return None,
        })
    }
}

/// Money that has to go back to a buyer. Whose money went back may pay again: each time is a round, which is
/// due and then done; they count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refund {
    /// Nothing to give back.
    None,
    /// The provider has not confirmed it yet.
    Due(u32),
    /// Given back.
    Done(u32),
}

impl Refund {
    /// The word in rows and for people; `-` for none.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Due(_) => "due",
            Self::Done(_) => "done",
        }
    }

    /// Which round it is; before the first one, that.
    pub fn round(self) -> u32 {
        match self {
            Self::None => 1,
            Self::Due(round) | Self::Done(round) => round,
        }
    }

    /// How far it has come, as in `settle.lua`: it only ever grows.
    pub fn rank(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Due(round) => round.saturating_mul(2).saturating_sub(1),
            Self::Done(round) => round.saturating_mul(2),
        }
    }

    /// What it is once money is owed.
    #[must_use]
    pub fn owed(self) -> Self {
        match self {
            Self::Done(round) => Self::Due(round.saturating_add(1)),
            Self::None | Self::Due(_) => Self::Due(self.round()),
        }
    }

    /// What it is once all money is back.
    #[must_use]
    pub fn given_back(self) -> Self {
        Self::Done(self.round())
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "-" {
            return Some(Self::None);
        }
        let digits = text.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let round = if digits.is_empty() { 1 } else { digits.parse().ok().filter(|round| *round > 1)? };
        match text.strip_suffix(digits)? {
            "due" => Some(Self::Due(round)),
            "done" => Some(Self::Done(round)),
            _ => None,
        }
    }

    /// The member of the outside contract: `null`, `"due"` or `"done"`.
    pub fn for_buyer(self) -> Option<&'static str> {
        (self != Self::None).then(|| self.as_str())
    }
}

/// `-`, `due`, `done`, and with the number of each further round `due2`, `done2`, …: the form of records and
/// messages.
impl fmt::Display for Refund {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        if self.round() > 1 { write!(f, "{}", self.round()) } else { Ok(()) }
    }
}

/// One order as its segment in Redis knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the buyer is told.
    pub state: OrderState,
    /// Whether its units are back on the shelf.
    pub released: bool,
    /// Epoch of the reply that took the units; 0 in a tombstone.
    pub epoch: u64,
    /// Place in the sequence of its segment; 0 in a tombstone.
    pub seq: u64,
    /// When the units were taken, by Redis' clock.
    pub accepted: Millis,
    /// When the record last changed, by Redis' clock.
    pub updated: Millis,
    /// When payment is due; `None` before the order is written.
    pub pay_before: Option<Millis>,
    /// Money to give back.
    pub refund: Refund,
    /// What was taken.
    pub lines: Lines,
    /// Who took it.
    pub user: UserId,
}

impl Record {
    /// Reads a record; `None` when it is torn.
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(text, |lines| Lines::parse(lines).ok())
    }

    /// As [`Self::parse`], for whoever reads many.
    pub fn parse_shared(text: &str, pool: &mut LinesPool) -> Option<Self> {
        Self::read(text, |lines| pool.parse(lines).ok())
    }

    fn read(text: &str, lines: impl FnOnce(&str) -> Option<Lines>) -> Option<Self> {
        let mut parts = text.splitn(9, '|');
        let mut state = parts.next()?.chars();
        let (letter, units) = (state.next()?, state.next()?);
        let number = |part: Option<&str>| part?.parse::<u64>().ok();
        let millis = |part: Option<&str>| part?.parse().ok().map(Millis);
        Some(Self {
            state: OrderState::from_letter(letter)?,
            released: match (units, state.next()) {
                ('h', None) => false,
                ('r', None) => true,
                _ => return None,
            },
            epoch: number(parts.next())?,
            seq: number(parts.next())?,
            accepted: millis(parts.next())?,
            updated: millis(parts.next())?,
            pay_before: millis(parts.next()).map(|due| (due.0 > 0).then_some(due))?,
            refund: Refund::parse(parts.next()?)?,
            lines: lines(parts.next()?)?,
            user: UserId::parse(parts.next()?).ok()?,
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}|{}|{}|{}|{}|{}|{}|{}|{}",
            self.state.letter(),
            if self.released { 'r' } else { 'h' },
            self.epoch,
            self.seq,
            self.accepted.0,
            self.updated.0,
            self.pay_before.map_or(0, |due| due.0),
            self.refund,
            self.lines,
            self.user
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_what_it_wrote() {
        for text in
            ["Ah|7|12|1000|1000|0|-|phone=1|a|b|c", "Er|1|2|3|4|5|done|a=1,b=20|x", "Sh|1|2|3|4|5|due3|a=1|x"]
        {
            assert_eq!(Record::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_refund_is_due_and_done_round_after_round() {
        let mut refund = Refund::None;
        for (rank, text) in ["-", "due", "done", "due2", "done2", "due3"].into_iter().enumerate() {
            assert_eq!((refund.to_string().as_str(), Refund::parse(text)), (text, Some(refund)));
            assert_eq!(refund.rank() as usize, rank);
            refund = if rank % 2 == 0 { refund.owed() } else { refund.given_back() };
        }
        assert_eq!((Refund::Due(2).owed(), Refund::Done(2).given_back()), (Refund::Due(2), Refund::Done(2)));
        assert_eq!(Refund::None.given_back(), Refund::Done(1));
        for bad in ["", "2", "due0", "due1", "duex", "due 2", "due99999999999", "paid"] {
            assert_eq!(Refund::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_torn_record_is_no_record() {
        let whole = "Ah|7|12|1000|1000|0|-|phone=1|u";
        for cut in 0..whole.len() {
            assert!(Record::parse(&whole[..cut]).is_none(), "{}", &whole[..cut]);
        }
        assert!(Record::parse("Zh|7|12|1000|1000|0|-|phone=1|u").is_none());
        assert!(Record::parse("A|7|12|1000|1000|0|-|phone=1|u").is_none());
    }
}
