//! `settle.lua`: move orders forward along their states.

use super::{Batch, SegmentScripts, Words};
use crate::clock::Millis;
use crate::record::{OrderState, Record, Refund};
use crate::redis::{Fault, Redis};

/// One order that moves forward.
#[derive(Debug, Clone)]
pub struct Settle {
    /// The order.
    pub uuid: [u8; 16],
    /// Pending payment, paid or refunded; `None` leaves the state as it is.
    pub state: Option<OrderState>,
    /// When payment is due; `None` leaves it.
    pub pay_before: Option<Millis>,
    /// Money to give back; only ever moves on, round after round.
    pub refund: Refund,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The record changed.
    Settled(Box<Record>),
    /// It was there or further already.
    Already(Box<Record>),
    /// Redis does not know the order.
    Unknown,
    /// The record is torn.
    Corrupt(String),
}

impl SegmentScripts {
    /// Moves orders forward; repeats and late messages change nothing.
    pub async fn settle(&self, redis: &Redis, orders: &[Settle]) -> Result<Batch<Settled>, Fault> {
        let [meta, _, map, _] = &self.keys;
        let mut call = self.settle.call(&[meta, map]);
        call.arg(&self.fence);
        for order in orders {
            let state = order.state.map_or('-', OrderState::letter).to_string();
            call.arg(hex::encode(order.uuid)).arg(state);
            call.arg(order.pay_before.map_or(0, |due| due.0)).arg(order.refund.to_string());
        }
        let doing = "settling";
        Words::new(doing, redis.run(doing, &call).await?)?.batch(settled)
    }
}

fn settled(word: &str) -> Option<Settled> {
    let (name, rest) = word.split_once('|').unwrap_or((word, ""));
    let record = || Record::parse(rest).map(Box::new);
    Some(match name {
        "SETTLED" => Settled::Settled(record()?),
        "ALREADY" => Settled::Already(record()?),
        "UNKNOWN" => Settled::Unknown,
        "CORRUPT" => Settled::Corrupt(rest.to_owned()),
        _ => return None,
    })
}
