//! Messages on the wire: JSON with a schema number `v`. Fields are only ever added.

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::ids::{OrderId, SaleId, UserId};
use crate::keys::Segment;
use crate::lines::Lines;
use crate::record::{OrderState, Record, Refund};

/// The schema number that this build writes and the highest that it reads.
pub const VERSION: u16 = 1;

/// What goes through a queue of `sluice.orders.write`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OrderMessage {
    /// Units were taken for an order.
    Accepted(Accepted),
    /// A warden wants to know that all earlier messages of this queue have been handled.
    Barrier {
        /// Schema number.
        v: u16,
        /// Which barrier.
        id: String,
        /// Which queue it was sent through.
        shard: u16,
    },
}

/// An accepted order on its way to the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Schema number.
    pub v: u16,
    /// The order.
    pub order: OrderId,
    /// Its sale.
    pub sale: SaleId,
    /// Epoch of the reply that took the units.
    pub epoch: u64,
    /// Place in its segment's sequence.
    pub seq: u64,
    /// Who bought.
    pub user: UserId,
    /// What.
    pub lines: Lines,
    /// When, by Redis' clock.
    pub at: Millis,
}

impl Accepted {
    /// The message of a record, as relay, sweep and warden publish it alike.
    pub fn of(segment: &Segment, number: u32, uuid: [u8; 16], record: &Record) -> Self {
        Self {
            v: VERSION,
            order: OrderId { uuid, sale: number, segment: segment.index },
            sale: segment.sale.clone(),
            epoch: record.epoch,
            seq: record.seq,
            user: record.user.clone(),
            lines: record.lines.clone(),
            at: record.accepted,
        }
    }
}

/// Something that happened to orders, from the outbox to the saga; up to 100 orders a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderEvents {
    /// Schema number.
    pub v: u16,
    /// One entry an order.
    pub events: Vec<OrderEvent>,
}

/// What happened to one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderEvent {
    /// The order.
    pub order: OrderId,
    /// Its sale.
    pub sale: SaleId,
    /// The state that it is in since.
    pub state: OrderState,
    /// When payment is due, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pay_before: Option<Millis>,
    /// Money to give back.
    #[serde(with = "refund")]
    pub refund: Refund,
    /// Whether its units go back on the shelf.
    #[serde(default)]
    pub release: bool,
    /// What was taken; a release of an order that Redis has never seen needs it for the tombstone.
    pub lines: Lines,
    /// Who took it.
    pub user: UserId,
}

mod refund {
    use super::Refund;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(refund: &Refund, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(refund)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Refund, D::Error> {
        let word = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Refund::parse(&word).ok_or_else(|| D::Error::custom("not a refund"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Messages of this schema may be waiting in a queue during an upgrade.
    #[test]
    fn messages_of_schema_1_still_decode() {
        let accepted = r#"{"type":"accepted","v":1,"order":"0190163d8694739b9f8a1c5c2b2b2b2b-1-0",
            "sale":"demo","epoch":7,"seq":12,"user":"alice","lines":"phone=1","at":1795233600000}"#;
        let OrderMessage::Accepted(accepted) = serde_json::from_str(accepted).unwrap() else {
            unreachable!("decoded as another type");
        };
        assert_eq!((accepted.epoch, accepted.seq, accepted.lines.count()), (7, 12, 1));
        let events = r#"{"v":1,"events":[{"order":"0190163d8694739b9f8a1c5c2b2b2b2b-1-0","sale":"demo",
            "state":"pending_payment","pay_before":1,"refund":"-","lines":"phone=1","user":"alice"}]}"#;
        let events: OrderEvents = serde_json::from_str(events).unwrap();
        assert_eq!(events.events[0].state, OrderState::PendingPayment);
        assert!(!events.events[0].release);
    }
}
