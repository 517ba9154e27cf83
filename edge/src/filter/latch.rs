//! The sold-out latch: no call to Redis for what certainly ends as `sold_out`.

use sluice_shared::clock::Millis;
use sluice_shared::lines::Lines;
use sluice_shared::sale::SaleStep;
use sluice_shared::token::Claim;
use sluice_shared::verdict::{Code, Rejection};

use crate::engine::LiveSale;

/// Refuses when the latch is closed and nothing comes before `sold_out`; whatever does is told by
/// the script, as is every replay.
pub fn judge(sale: &LiveSale, claim: &Claim, lines: &Lines, now: Millis) -> Result<(), Rejection> {
    let view = &sale.view;
    let selling = view.step == SaleStep::Open && view.starts_at <= now && now < view.ends_at;
    let live = now < claim.expires;
    let known = || lines.iter().all(|(sku, _)| view.items.iter().any(|item| item.sku == *sku));
    if selling && live && sale.sold_out(lines, &claim.order.uuid) && known() {
        return Err(Rejection::new(Code::SoldOut, "not enough units are left; some may return"));
    }
    Ok(())
}
