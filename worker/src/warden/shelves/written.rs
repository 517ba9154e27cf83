//! Whether the books have all that Redis holds of a sale: only then may it leave.

use std::collections::BTreeSet;

use sluice_shared::ids::OrderId;
use sluice_shared::keys::Shelf;
use sluice_shared::sale::SaleView;

use crate::warden::image::Image;
use crate::warden::{Trouble, Warden};

/// Orders asked for at once.
const PAGE: usize = 5_000;

/// What of a sale is in Redis and not in the books, or cannot be read; nothing when it may be deleted.
pub(super) async fn missing(warden: &Warden, view: &SaleView) -> Result<Option<String>, Trouble> {
    let store = &warden.context.store;
    for segment in 0..view.segments {
        let shelf = Shelf::new(view.sale.clone(), segment);
        let image = Image::read(warden.redis(), &shelf).await?;
        if let Some(torn) = image.torn.first() {
            // A mark's field is its buyer: nobody's name belongs into a log.
            let torn = if torn.starts_with('@') { "a buyer's mark" } else { torn };
            return Ok(Some(format!("{torn} cannot be read")));
        }
        if !image.journal.is_empty() {
            return Ok(Some(format!("{} entries in its journal", image.journal.len())));
        }
        let name = |uuid: &[u8; 16]| OrderId { uuid: *uuid, sale: view.number, segment };
        let orders: Vec<OrderId> = image.orders.keys().map(name).collect();
        for page in orders.chunks(PAGE) {
            let written: BTreeSet<OrderId> = store.bounded(store.written(page)).await?.into_iter().collect();
            if let Some(order) = page.iter().find(|order| !written.contains(*order)) {
                return Ok(Some(format!("order {order} has no row")));
            }
        }
    }
    Ok(None)
}
