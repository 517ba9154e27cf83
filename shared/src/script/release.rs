//! `release.lua`: put the units of orders back, once each.

use super::{Batch, SegmentScripts, Words};
use crate::ids::UserId;
use crate::lines::Lines;
use crate::record::{OrderState, Record};
use crate::redis::{Fault, Redis};

/// One order whose units go back.
#[derive(Debug, Clone)]
pub struct Release {
    /// The order.
    pub uuid: [u8; 16],
    /// Expired, cancelled, failed or refunded.
    pub state: OrderState,
    /// What it had taken: only used for the tombstone of an order that Redis has never seen.
    pub lines: Lines,
    /// Whose it was: likewise.
    pub user: UserId,
}

impl Release {
    /// What this may cost, as [`super::Ask::work`].
    pub fn work(&self, mark: usize) -> usize {
        8 + 8 * self.lines.count() + mark
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// The units are back on the shelf.
    Released(Box<Record>),
    /// They were already; nothing changed.
    Already(Box<Record>),
    /// Redis had never seen the order; a late reserve of it will be refused.
    Tombstone(Box<Record>),
    /// The record, the mark or the stock does not fit; nothing changed.
    Corrupt(String),
}

impl SegmentScripts {
    /// Puts the units of orders back. Safe to repeat; runs when Redis is out of memory.
    pub async fn release(&self, redis: &Redis, orders: &[Release]) -> Result<Batch<Released>, Fault> {
        let [meta, stock, map, _] = &self.keys;
        let mut call = self.release.call(&[meta, stock, map]);
        call.arg(&self.fence);
        for order in orders {
            call.arg(hex::encode(order.uuid)).arg(order.state.letter().to_string());
            call.arg(order.lines.to_string()).arg(order.user.as_str());
        }
        let doing = "releasing";
        Words::new(doing, redis.run(doing, &call).await?)?.batch(released)
    }
}

fn released(word: &str) -> Option<Released> {
    let (name, rest) = word.split_once('|')?;
    let record = || Record::parse(rest).map(Box::new);
    Some(match name {
        "RELEASED" => Released::Released(record()?),
        "ALREADY" => Released::Already(record()?),
        "TOMBSTONE" => Released::Tombstone(record()?),
        "CORRUPT" => Released::Corrupt(rest.to_owned()),
        _ => return None,
    })
}
