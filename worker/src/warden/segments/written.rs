//! Whether the books have all that Redis holds of a sale: only then may it leave.

use std::collections::BTreeSet;

use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::sale::SaleView;

use crate::warden::scan::{Field, Journal, Scan, Wanted};
use crate::warden::{Trouble, Warden};

/// What of a sale is in Redis and not in the books, or cannot be read; nothing when it may be deleted.
pub(super) async fn missing(warden: &Warden, view: &SaleView) -> Result<Option<String>, Trouble> {
    for index in 0..view.segments {
        let segment = Segment::new(view.sale.clone(), index);
        if Journal::of(warden.redis(), &segment).next().await?.is_some() {
            return Ok(Some("its journal is not empty".to_owned()));
        }
        let mut scan = Scan::of(warden.redis(), &segment, Wanted::Orders);
        while let Some(page) = scan.next().await? {
            if let Some(what) = missing_of(warden, view, index, page).await? {
                return Ok(Some(what));
            }
        }
    }
    Ok(None)
}

/// The same of one page.
async fn missing_of(
    warden: &Warden,
    view: &SaleView,
    segment: u16,
    page: Vec<Field>,
) -> Result<Option<String>, Trouble> {
    let mut orders = Vec::with_capacity(page.len());
    for field in page {
        match field {
            Field::Order(uuid, _) => orders.push(OrderId { uuid, sale: view.number, segment }),
            Field::Mark(..) => {}
            Field::Torn(name) => {
                // A mark's field is its buyer: nobody's name belongs into a log.
                let name = if name.starts_with('@') { "a buyer's mark" } else { &name };
                return Ok(Some(format!("{name} cannot be read")));
            }
        }
    }
    let store = &warden.context.store;
    let written: BTreeSet<OrderId> = store.bounded(store.written(&orders)).await?.into_iter().collect();
    let missing = orders.iter().find(|order| !written.contains(*order));
    Ok(missing.map(|order| format!("order {order} has no row")))
}
