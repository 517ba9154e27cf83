//! A batch of one write queue: what is gathered before one transaction. Without I/O.

use sluice_shared::amqp::Delivery;
use sluice_shared::message::{Accepted, OrderMessage, VERSION};

/// A message larger than this is none of ours: 20 lines of the longest SKUs are 2 KiB.
const BODY_MAX: usize = 16 * 1024;

/// A message that cannot be worked on.
#[derive(Debug)]
pub(super) struct Poison {
    pub(super) delivery: Delivery,
    pub(super) reason: String,
}

/// Messages of one queue, in its order.
#[derive(Debug)]
pub(super) struct Batch {
    most: usize,
    /// The accepted orders, and their messages as they came.
    pub(super) orders: Vec<Accepted>,
    pub(super) deliveries: Vec<Delivery>,
    /// Messages that are no orders.
    pub(super) poison: Vec<Poison>,
    /// A barrier, which ends the batch.
    pub(super) barrier: Option<(String, u16)>,
    /// The last delivery.
    pub(super) last: u64,
}

impl Batch {
    pub(super) fn new(most: usize) -> Self {
        let (orders, deliveries) = (Vec::with_capacity(most), Vec::with_capacity(most));
        Self { most, orders, deliveries, poison: Vec::new(), barrier: None, last: 0 }
    }

    /// Whether the batch takes no more.
    pub(super) fn is_full(&self) -> bool {
        self.barrier.is_some() || self.orders.len() + self.poison.len() >= self.most
    }

    /// Adds a message.
    pub(super) fn take(&mut self, delivery: Delivery) {
        self.last = delivery.tag;
        match decode(&delivery.body) {
            Ok(OrderMessage::Accepted(accepted)) => {
                self.orders.push(accepted);
                self.deliveries.push(delivery);
            }
            Ok(OrderMessage::Barrier { id, shard, .. }) => self.barrier = Some((id, shard)),
            Err(reason) => self.poison.push(Poison { delivery, reason }),
        }
    }
}

/// Reads a message; the error says why it is none.
fn decode(body: &[u8]) -> Result<OrderMessage, String> {
    if body.len() > BODY_MAX {
        return Err(format!("the message has {} bytes, more than {BODY_MAX}", body.len()));
    }
    let message: OrderMessage =
        serde_json::from_slice(body).map_err(|error| format!("not a message of ours: {error}"))?;
    let (OrderMessage::Accepted(Accepted { v, .. }) | OrderMessage::Barrier { v, .. }) = &message;
    match *v {
        1..=VERSION => Ok(message),
        v => Err(format!("schema {v} is not known here, {VERSION} is")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ORDER: &str = r#"{"type":"accepted","v":1,"order":"0190163d8694739b9f8a1c5c2b2b2b2b-1-0",
        "sale":"demo","epoch":7,"seq":12,"user":"alice","lines":"phone=1","at":1795233600000}"#;
    const BARRIER: &str = r#"{"type":"barrier","v":1,"id":"b","shard":3}"#;

    fn delivery(tag: u64, body: &str) -> Delivery {
        Delivery { tag, body: body.into(), ..Delivery::default() }
    }

    #[test]
    fn a_barrier_ends_the_batch() {
        let mut batch = Batch::new(10);
        batch.take(delivery(1, ORDER));
        assert!(!batch.is_full());
        batch.take(delivery(2, BARRIER));
        assert!(batch.is_full());
        assert_eq!((batch.orders.len(), batch.barrier, batch.last), (1, Some(("b".into(), 3)), 2));
    }

    #[test]
    fn a_full_batch_takes_no_more_and_poison_counts() {
        let mut batch = Batch::new(2);
        batch.take(delivery(1, "{"));
        batch.take(delivery(2, ORDER));
        assert!(batch.is_full());
        assert_eq!((batch.orders.len(), batch.poison.len()), (1, 1));
    }

    #[test]
    fn whatever_is_not_a_message_of_ours_says_why() {
        let newer = ORDER.replace("\"v\":1", "\"v\":99");
        let twice = ORDER.replace("\"epoch\":7", "\"epoch\":7,\"epoch\":8");
        let large = format!("{ORDER}{}", " ".repeat(BODY_MAX));
        for (body, why) in [
            (newer.as_str(), "schema 99"),
            (&ORDER.replace("\"v\":1", "\"v\":0"), "schema 0"),
            (&ORDER.replace("accepted", "rejected"), "unknown variant"),
            (&ORDER.replace("\"epoch\":7", "\"epoch\":-7"), "not a message of ours"),
            (&ORDER.replace("phone=1", "phone=0"), "not the text of lines"),
            (&ORDER.replace("alice", "al\\u0000ice"), "user must match"),
            (&twice, "duplicate field"),
            (&large, "more than 16384"),
            ("", "EOF"),
        ] {
            let told = decode(body.as_bytes()).unwrap_err();
            assert!(told.contains(why), "{told} / {why}");
        }
        // Fields may be added by a later build of the same schema.
        assert!(decode(ORDER.replace("\"v\":1", "\"v\":1,\"note\":0").as_bytes()).is_ok());
    }
}
