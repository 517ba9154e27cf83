//! The list of sales that edges read, and the bell that makes them read it.

use sluice_shared::keys::{GENERATION, SALES, SALES_CHANNEL};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleView;

use super::Shelves;
use crate::warden::Trouble;

impl Shelves {
    /// Writes a view that edges do not have yet.
    pub(super) async fn publish(&mut self, view: SaleView) -> Result<(), Trouble> {
        if self.published.get(&view.sale) == Some(&view) {
            return Ok(());
        }
        let text = serde_json::to_string(&view).map_err(|error| Trouble::Odd(error.to_string()))?;
        let mut write = cmd("HSET");
        write.arg(SALES).arg(view.sale.as_str()).arg(text);
        self.warden.redis().run::<u64>("writing a sale", &write).await?;
        self.published.insert(view.sale.clone(), view);
        self.unrung = true;
        Ok(())
    }

    /// Tells the edges that sales have changed.
    pub(super) async fn ring(&self) -> Result<(), Trouble> {
        let redis = self.warden.redis();
        let generation: u64 = redis.run("counting up", cmd("INCR").arg(GENERATION)).await?;
        let mut tell = cmd("PUBLISH");
        tell.arg(SALES_CHANNEL).arg(generation);
        redis.run::<u64>("telling the edges", &tell).await?;
        Ok(())
    }
}
