//! `reserve.lua`: take units for a batch of orders.

use super::{Frozen, SegmentScripts, Words};
use crate::clock::Millis;
use crate::ids::{InstanceId, SkuId, UserId};
use crate::lines::Lines;
use crate::record::Record;
use crate::redis::{Fault, Redis};

/// One order that is asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The order, from the sale token.
    pub uuid: [u8; 16],
    /// Who asks.
    pub user: UserId,
    /// For what.
    pub lines: Lines,
    /// Whether the sale token has expired: then only a replay is answered.
    pub expired: bool,
}

/// What one call of the scripts may cost, in about microseconds: Redis serves nobody else meanwhile.
const WORK_MAX: usize = 4_500;

/// How many orders go into one call, each with what it may cost ([`Ask::work`]): one at least, the rest has
/// to wait for the next.
pub fn fitting(works: impl IntoIterator<Item = usize>) -> usize {
    let sums = works.into_iter().scan(0_usize, |sum, work| {
        *sum = sum.saturating_add(work);
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= WORK_MAX).count().max(1)
}

/// What it may cost to search and rewrite the mark of a buyer who holds all of these SKUs.
pub fn mark_work<'a>(skus: impl IntoIterator<Item = &'a SkuId>) -> usize {
    skus.into_iter().map(|sku| 16 + sku.as_str().len()).sum::<usize>().div_ceil(64)
}

impl Ask {
    /// What this order may cost, in about microseconds, where a mark costs so much ([`mark_work`]).
    pub fn work(&self, mark: usize) -> usize {
        3 + 4 * self.lines.count() + mark
    }
}

/// What became of one order of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Units taken; place in the sequence.
    Ok(u64),
    /// The order exists already; its record as it is now.
    Replay(Box<Record>),
    /// The order existed and was released.
    Spent,
    /// The order exists with other lines.
    Reused,
    /// The sale is paused.
    Paused,
    /// The sale is closed or over.
    Ended,
    /// The sale has not begun.
    NotStarted,
    /// The token is too old for a new order.
    TokenExpired,
    /// The sale has no such SKU.
    UnknownSku(SkuId),
    /// The journal is full.
    Overloaded,
    /// The buyer would hold too much.
    Limit {
        /// Units of the SKU that he holds.
        held: u64,
        /// Units that he may hold.
        limit: u64,
    },
    /// Fewer units are left than asked for.
    SoldOut(SkuId),
}

/// The answers of a batch, all of one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The epoch of this reply: what held orders are stamped with.
    pub epoch: u64,
    /// Redis' clock at that instant.
    pub now: Millis,
    /// Units left of every SKU that the batch asked for.
    pub left: Vec<(SkuId, u64)>,
    /// One answer an order, in the order of the asking.
    pub answers: Vec<Answer>,
}

/// What the script did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// Each order has its answer.
    Answers(Answers),
    /// Nothing was done; the sale is frozen.
    Frozen(Frozen),
    /// Nothing was done; the warden has not admitted this edge.
    UnknownEdge,
}

impl SegmentScripts {
    /// Takes units for a batch of orders of this segment, in the order given.
    pub async fn reserve(
        &self,
        redis: &Redis,
        instance: &InstanceId,
        batch: &[Ask],
    ) -> Result<Reserved, Fault> {
        let [meta, stock, orders, journal] = &self.keys;
        let mut call = self.reserve.call(&[meta, stock, orders, journal]);
        call.arg(instance.as_str());
        for ask in batch {
            call.arg(hex::encode(ask.uuid)).arg(ask.user.as_str()).arg(ask.lines.to_string());
            call.arg(if ask.expired { "expired" } else { "live" });
        }
        let doing = "reserving";
        let mut words = Words::new(doing, redis.run(doing, &call).await?)?;
        match words.text()?.as_str() {
            "ANSWERS" => answers(words, batch.len()).map(Reserved::Answers),
            "UNKNOWN_EDGE" => Ok(Reserved::UnknownEdge),
            other => words.frozen(other).map(Reserved::Frozen),
        }
    }
}

fn answers(mut words: Words, asked: usize) -> Result<Answers, Fault> {
    let (epoch, now) = (words.number()?, Millis(words.number()?));
    let left = words.text()?;
    let left = left.split(',').filter(|part| !part.is_empty()).map(|part| {
        let (sku, n) = part.split_once('=')?;
        Some((SkuId::parse(sku).ok()?, n.parse().ok()?))
    });
    let left = left.collect::<Option<Vec<_>>>().ok_or_else(|| words.unreadable("units left"))?;
    let mut answers = Vec::with_capacity(asked);
    while words.words.len() > 0 {
        let word = words.text()?;
        answers.push(answer(&word).ok_or_else(|| words.unknown(&word))?);
    }
    if answers.len() != asked {
        return Err(words.unreadable(&format!("{} answers for {asked} orders", answers.len())));
    }
    Ok(Answers { epoch, now, left, answers })
}

fn answer(word: &str) -> Option<Answer> {
    let (name, rest) = word.split_once('|').unwrap_or((word, ""));
    Some(match name {
        "OK" => Answer::Ok(rest.parse().ok()?),
        "REPLAY" => Answer::Replay(Box::new(Record::parse(rest)?)),
        "SPENT" => Answer::Spent,
        "REUSED" => Answer::Reused,
        "PAUSED" => Answer::Paused,
        "ENDED" => Answer::Ended,
        "NOT_STARTED" => Answer::NotStarted,
        "TOKEN_EXPIRED" => Answer::TokenExpired,
        "UNKNOWN_SKU" => Answer::UnknownSku(SkuId::parse(rest).ok()?),
        "OVERLOADED" => Answer::Overloaded,
        "LIMIT" => {
            let mut parts = rest.split('|');
            let mut number = || parts.next()?.parse().ok();
            Answer::Limit { held: number()?, limit: number()? }
        }
        "SOLD_OUT" => Answer::SoldOut(SkuId::parse(rest).ok()?),
        _ => return None,
    })
}
