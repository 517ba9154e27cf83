//! What buyers have proved by their receipts.

use super::Sheet;
use crate::audit::gather::Gathered;

/// Every claimed order is in the books, on the shelf on its way there, or resolved by an operator.
pub(super) fn judge(all: &Gathered) -> Sheet {
    let mut sheet = Sheet::default();
    let shelved = |order: &sluice_shared::ids::OrderId| {
        let mut seen = all.segments.iter().filter(|seen| seen.segment.index == order.segment);
        seen.any(|seen| seen.find(&order.uuid, 0).is_some())
    };
    let open = all.claims.open.iter().filter(|(order, _)| !shelved(order));
    let lost = open.map(|(order, reason)| format!("{order} {reason}")).collect();
    let title = ("A6", "every order accepted by its receipt is honoured, or an operator has resolved it");
    sheet.each(title, "", all.claims.all, lost);
    sheet
}
