//! Closes sales that ended long ago and that nobody closed: else they would stay in Redis for ever.

use sluice_shared::clock::Millis;
use sluice_shared::ids::SaleId;
use sluice_shared::sale::SaleStep;

use super::Segments;
use crate::store::StoreError;
use crate::store::audit_log::Actor;
use crate::store::sales::SaleRow;
use crate::warden::Trouble;

/// How the audit log calls it.
const WHO: &str = "sluice";

impl Segments {
    /// Closes what ended, and was not touched, longer ago than is configured, has no unpaid order and no
    /// stock change under way. An operator may reopen it like any closed sale.
    pub(super) async fn close_ended(&self) -> Result<(), Trouble> {
        let now = self.warden.redis().time().await?;
        let ended = self.rows.values().filter(|rows| rows.step != SaleStep::Closed && rows.ends_at <= now);
        self.warden.metrics().ended_sales.set(i64::try_from(ended.count()).unwrap_or(i64::MAX));
        let Some(after) = self.warden.context.config.reconcile.close_after else { return Ok(()) };
        for sale in self.warden.context.store.ended(after).await? {
            self.close(&sale).await?;
        }
        Ok(())
    }

    async fn close(&self, sale: &SaleId) -> Result<(), StoreError> {
        let after = self.warden.context.config.reconcile.close_after.unwrap_or_default();
        // What was seen is judged again under the lock.
        let judge = |before: &SaleRow, now: Millis| {
            let open = !matches!(before.step, SaleStep::Created | SaleStep::Closed);
            let mut row = before.clone();
            if open && before.ends_at.max(before.updated_at).after(after) < now {
                (row.step, row.closed_from) = (SaleStep::Closed, Some(before.step));
            }
            Ok(row)
        };
        let actor = Actor { who: WHO.to_owned(), role: "system", request_id: String::new() };
        let closed = self.warden.context.store.change_sale(sale, &actor, "sale.close", judge).await?;
        if matches!(closed, Some(Ok(row)) if row.step == SaleStep::Closed) {
            tracing::info!(%sale, "ended long ago: closed");
        }
        Ok(())
    }
}
