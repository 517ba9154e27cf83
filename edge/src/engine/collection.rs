//! This edge's part in a re-opening: it closes the epoch, takes back what Redis has lost of it,
//! publishes that with all the rest it holds, and then says that nothing is held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use sluice_protocol::edge::held::Parcel;
use sluice_shared::keys::{REOPENING, Segment};
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::sale::Question;

use super::core::{Core, Held};

/// Orders looked up in one command.
const PAGE: usize = 1000;

/// The questions that are being answered.
#[derive(Debug, Default)]
pub(crate) struct Collection {
    /// Those for which Redis was compared with the spare copies.
    compared: BTreeMap<Segment, Question>,
}

impl Collection {
    /// Reads what is asked, and does it; answers whether anything is.
    pub(crate) async fn look(&mut self, core: &Core, redis: &Redis) -> Result<bool, Fault> {
        let asked = questions(redis).await?;
        self.compared.retain(|segment, question| asked.get(segment) == Some(question));
        for (segment, question) in &asked {
            // Closed first: an order that is confirmed later than this was held until now.
            core.held().close(segment, question.epoch);
            if !self.compared.contains_key(segment) {
                recall(core, redis, segment, question.epoch).await?;
                self.compared.insert(segment.clone(), *question);
            }
        }
        Ok(!asked.is_empty())
    }

    /// The questions that are answered: closed, compared, and nothing is held.
    pub(crate) fn answers(&self, held: &Held) -> BTreeMap<String, Question> {
        let empty = held.nothing_held();
        let answered = |(segment, question): (&Segment, &Question)| {
            let name = segment.name();
            empty.get(&name).is_some_and(|closed| *closed >= question.epoch).then_some((name, *question))
        };
        self.compared.iter().filter_map(answered).collect()
    }
}

async fn questions(redis: &Redis) -> Result<BTreeMap<Segment, Question>, Fault> {
    let all = cmd("HGETALL").arg(REOPENING).to_owned();
    let asked: BTreeMap<String, String> = redis.run("reading the re-openings", &all).await?;
    let read = |(name, text): (String, String)| Some((Segment::parse(&name)?, Question::parse(&text)?));
    Ok(asked.into_iter().filter_map(read).collect())
}

/// Holds the copies of confirmed orders again that Redis does not know any more: where the broker has
/// lost them as well, nobody else has them. Those that have a row are recognised by it.
async fn recall(core: &Core, redis: &Redis, segment: &Segment, epoch: u64) -> Result<(), Fault> {
    let copies = core.spares().of(segment, epoch);
    let mut lost: Vec<Arc<Parcel>> = Vec::new();
    for page in copies.chunks(PAGE) {
        let mut get = cmd("HMGET");
        get.arg(segment.orders());
        for parcel in page {
            get.arg(parcel.order.field());
        }
        let records: Vec<Option<Vec<u8>>> = redis.run("looking for confirmed orders", &get).await?;
        let gone = page.iter().zip(records).filter(|(_, record)| record.is_none());
        lost.extend(gone.map(|(parcel, _)| Arc::clone(parcel)));
    }
    if lost.is_empty() {
        return Ok(());
    }
    tracing::warn!(
        segment = segment.name(),
        epoch,
        orders = lost.len(),
        "redis lost orders: published again"
    );
    core.spares().give(&lost);
    core.metrics.recalled.inc_by(lost.len() as u64);
    let now = Instant::now();
    let mut held = core.held();
    for parcel in lost {
        let place = core.room.insist();
        held.recall(parcel, place, now);
    }
    drop(held);
    core.publish.notify_one();
    Ok(())
}
