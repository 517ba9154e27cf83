//! The list of sales that edges read, and the bell that makes them read it.

use std::time::Instant;

use sluice_shared::ids::SaleId;
use sluice_shared::keys::{GENERATION, SALES, SALES_CHANNEL};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleView;

use super::{Segments, TIDY};
use crate::warden::Trouble;

/// Sales written at once.
const PAGE: usize = 100;

impl Segments {
    /// Reads the list as it is in Redis, when that is due, or when somebody deleted what was written;
    /// answers whether it did.
    pub(super) async fn read_list(&mut self) -> Result<bool, Trouble> {
        let shown: usize = self.warden.redis().run("counting the sales", cmd("HLEN").arg(SALES)).await?;
        if shown >= self.published.len() && self.listed.is_some_and(|at| at.elapsed() <= TIDY) {
            return Ok(false);
        }
        let views = self.warden.views().await?;
        self.published = views.into_iter().map(|view| (view.sale.clone(), view)).collect();
        self.listed = Some(Instant::now());
        Ok(true)
    }

    /// Notes a view that edges do not have yet.
    pub(super) fn publish(&mut self, view: SaleView) {
        if self.published.get(&view.sale) != Some(&view) {
            self.unwritten.push(view);
        }
    }

    /// Writes what was noted, and tells edges which sales have changed.
    pub(super) async fn write_views(&mut self) -> Result<(), Trouble> {
        let views = std::mem::take(&mut self.unwritten);
        for page in views.chunks(PAGE) {
            let mut write = cmd("HSET");
            write.arg(SALES);
            for view in page {
                let text = serde_json::to_string(view).map_err(|error| Trouble::Odd(error.to_string()))?;
                write.arg(view.sale.as_str()).arg(text);
            }
            // If one of the next steps fails, edges are told to read the whole list.
            let unrung = std::mem::replace(&mut self.unrung, true);
            // In one transaction: the API sees a view and knows that its generation is counted.
            let count = cmd("INCR").arg(GENERATION).to_owned();
            let (_, generation): (u64, u64) =
                self.warden.redis().run_at_once("writing sales", [write, count]).await?;
            self.published.extend(page.iter().map(|view| (view.sale.clone(), view.clone())));
            self.tell(generation, page.iter().map(|view| &view.sale)).await?;
            self.unrung = unrung;
        }
        Ok(())
    }

    /// Tells the edges that sales have changed, but not which: they read the whole list.
    pub(super) async fn ring(&self) -> Result<(), Trouble> {
        let generation: u64 = self.warden.redis().run("counting up", cmd("INCR").arg(GENERATION)).await?;
        self.tell(generation, []).await
    }

    /// Tells the edges that these sales have changed with this generation of the list.
    async fn tell(&self, generation: u64, changed: impl IntoIterator<Item = &SaleId>) -> Result<(), Trouble> {
        let mut bell = generation.to_string();
        for sale in changed {
            bell.push(' ');
            bell.push_str(sale.as_str());
        }
        let mut tell = cmd("PUBLISH");
        tell.arg(SALES_CHANNEL).arg(bell);
        self.warden.redis().run::<u64>("telling the edges", &tell).await?;
        Ok(())
    }
}
