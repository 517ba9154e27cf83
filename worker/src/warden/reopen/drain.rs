//! Accepted orders that have no row: found in Redis, published again.

use std::collections::BTreeSet;

use sluice_shared::failpoint;
use sluice_shared::ids::OrderId;
use sluice_shared::keys::Shelf;
use sluice_shared::message::Accepted;
use sluice_shared::record::OrderState;
use sluice_shared::redis::{Fault, cmd};

use super::Reopen;
use crate::warden::image::{Entry, Image};
use crate::warden::reopening::Event;
use crate::warden::{Trouble, Warden};

/// Orders asked for at once.
const PAGE: usize = 5_000;

impl Reopen {
    /// Publishes accepted orders without a row, and takes out of the journal what is in the books or
    /// in the broker. Messages of an epoch that PostgreSQL has ended would only be fenced.
    pub(super) async fn drain(&mut self) -> Result<Event, Trouble> {
        failpoint::reach("F85.drain");
        self.same_redis().await?;
        // Before a segment is read for nothing.
        self.outlet.ready().await?;
        let booked = self.booked;
        let image = Image::read(self.warden.redis(), &self.shelf).await?;
        let unwritten =
            unwritten(&self.warden, &self.shelf, self.rows.number, &image, |record| record.epoch == booked)
                .await?;
        self.outlet.orders(&unwritten).await?;
        self.warden.metrics().republished.inc_by(unwritten.len() as u64);
        forget_journal(&self.warden, &self.shelf, &image, booked).await?;
        self.drained = Some(image);
        Ok(Event::Drained(unwritten.len()))
    }
}

/// Orders of an image that hold units, are accepted only, and have no row.
pub(in crate::warden) async fn unwritten(
    warden: &Warden,
    shelf: &Shelf,
    number: u32,
    image: &Image,
    wanted: impl Fn(&Entry) -> bool,
) -> Result<Vec<Accepted>, Trouble> {
    let name = |uuid: &[u8; 16]| OrderId { uuid: *uuid, sale: number, segment: shelf.segment };
    let accepted: Vec<OrderId> = image
        .orders
        .iter()
        .filter(|(_, record)| record.state == OrderState::Accepted && !record.released && wanted(record))
        .map(|(uuid, _)| name(uuid))
        .collect();
    let mut unwritten = Vec::new();
    for page in accepted.chunks(PAGE) {
        let store = &warden.context.store;
        let written: BTreeSet<OrderId> = store.bounded(store.written(page)).await?.into_iter().collect();
        let missing = page.iter().filter(|order| !written.contains(*order));
        unwritten.extend(missing.filter_map(|order| {
            let record = image.orders.get(&order.uuid)?.record();
            Some(Accepted::of(shelf, number, order.uuid, &record))
        }));
    }
    // In the order of their sequence: the books are easier to read so.
    unwritten.sort_by_key(|order| (order.epoch, order.seq));
    Ok(unwritten)
}

/// Removes from the journal what is in the books or confirmed by the broker: after a drain that is
/// every entry up to the present epoch.
async fn forget_journal(warden: &Warden, shelf: &Shelf, image: &Image, booked: u64) -> Result<(), Fault> {
    let safe = |order: &[u8; 16], epoch: u64| {
        epoch == booked || image.orders.get(order).is_some_and(|record| record.state != OrderState::Accepted)
    };
    let entries: Vec<String> = image
        .journal
        .iter()
        .filter(|(epoch, _, order)| image.orders.contains_key(order) && safe(order, *epoch))
        .map(|(epoch, seq, _)| format!("{epoch}-{seq}"))
        .collect();
    for page in entries.chunks(PAGE) {
        let mut delete = cmd("XDEL");
        delete.arg(shelf.journal()).arg(page);
        warden.redis().run::<u64>("emptying the journal", &delete).await?;
    }
    Ok(())
}
