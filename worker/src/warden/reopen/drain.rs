//! Accepted orders that have no row: found in Redis, published again.

use std::collections::BTreeSet;

use sluice_protocol::warden::reopening::Event;
use sluice_shared::failpoint;
use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::message::Accepted;
use sluice_shared::record::{OrderState, Record};
use sluice_shared::redis::{Fault, cmd};

use super::Reopen;
use crate::warden::image::{Kind, kinds};
use crate::warden::scan::{Journal, Scan, Wanted, records};
use crate::warden::{Trouble, Warden};

impl Reopen {
    /// Publishes accepted orders without a row, and takes out of the journal what is in the books or
    /// in the broker. Messages of an epoch that PostgreSQL has ended would only be fenced.
    pub(super) async fn drain(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.drain");
        self.same_redis().await?;
        // Before a segment is read for nothing.
        self.outlet.ready().await?;
        let (booked, mut drained) = (self.booked, 0);
        let redis = self.warden.redis();
        let kinds = kinds(redis, &self.segment).await?;
        // The journal's end first: every entry up to it has its order in the map that is read then.
        let journal = match kinds[3] {
            Kind::Right => Journal::of_now(redis, &self.segment).await?,
            Kind::Missing | Kind::Wrong => None,
        };
        if kinds[2] == Kind::Right {
            let mut scan = Scan::of(redis, &self.segment, Wanted::Orders);
            while let Some(page) = scan.next_orders().await? {
                let wanted = |record: &Record| record.epoch == booked;
                let unwritten =
                    unwritten(&self.warden, &self.segment, self.rows.number, &page, wanted).await?;
                self.outlet.orders(&unwritten).await?;
                self.warden.metrics().republished.inc_by(unwritten.len() as u64);
                drained += unwritten.len();
            }
        }
        if let Some(journal) = journal.filter(|_| kinds[2] == Kind::Right) {
            forget(&self.warden, &self.segment, journal, booked).await?;
        }
        Ok(Event::Drained(drained))
    }
}

/// Orders of a page that hold units, are accepted only, and have no row.
pub(in crate::warden) async fn unwritten(
    warden: &Warden,
    segment: &Segment,
    number: u32,
    page: &[([u8; 16], Record)],
    wanted: impl Fn(&Record) -> bool,
) -> Result<Vec<Accepted>, Trouble> {
    let name = |uuid: [u8; 16]| OrderId { uuid, sale: number, segment: segment.index };
    let fresh = |record: &Record| record.state == OrderState::Accepted && !record.released;
    let accepted = page.iter().filter(|(_, record)| fresh(record) && wanted(record));
    let accepted: Vec<&([u8; 16], Record)> = accepted.collect();
    if accepted.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<OrderId> = accepted.iter().map(|(uuid, _)| name(*uuid)).collect();
    let store = &warden.context.store;
    let written: BTreeSet<OrderId> = store.bounded(store.written(&ids)).await?.into_iter().collect();
    let missing = accepted.into_iter().filter(|(uuid, _)| !written.contains(&name(*uuid)));
    let mut unwritten: Vec<Accepted> =
        missing.map(|(uuid, record)| Accepted::of(segment, number, *uuid, record)).collect();
    // In the order of their sequence: the books are easier to read so.
    unwritten.sort_by_key(|order| (order.epoch, order.seq));
    Ok(unwritten)
}

/// Removes from the journal what is in the books or confirmed by the broker: after a drain that is
/// every entry up to the present epoch.
async fn forget(warden: &Warden, segment: &Segment, mut journal: Journal, booked: u64) -> Result<(), Fault> {
    let redis = warden.redis();
    while let Some((entries, _)) = journal.next().await? {
        let orders: Vec<[u8; 16]> = entries.iter().map(|entry| entry.order).collect();
        let found = records(redis, segment, &orders).await?;
        let safe = |epoch: u64, record: &Record| epoch == booked || record.state != OrderState::Accepted;
        let done = entries.iter().zip(&found);
        let done = done.filter(|(entry, record)| record.as_ref().is_some_and(|r| safe(entry.epoch, r)));
        let done: Vec<String> = done.map(|(entry, _)| format!("{}-{}", entry.epoch, entry.seq)).collect();
        if !done.is_empty() {
            let mut delete = cmd("XDEL");
            delete.arg(segment.journal()).arg(done);
            redis.run::<u64>("emptying the journal", &delete).await?;
        }
    }
    Ok(())
}
