//! Takes sales out of Redis that are long over.

use std::collections::BTreeSet;

use sluice_shared::ids::SaleId;
use sluice_shared::keys::{REOPENING, SALES, Shelf};
use sluice_shared::redis::cmd;
use sluice_shared::sale::SaleView;

use super::{Shelves, Standing};
use crate::store::segments::Projection;
use crate::warden::scan::{Journal, Scan, Wanted};
use crate::warden::{Trouble, reopen};

impl Shelves {
    /// Takes sales out of Redis that are long over; whatever of them is not in the books yet keeps
    /// them there.
    pub(super) async fn withdraw(&mut self, sales: &[Projection]) -> Result<(), Trouble> {
        let known: BTreeSet<&SaleId> = sales.iter().map(|rows| &rows.sale).collect();
        for view in self.warden.views().await?.iter().filter(|view| !known.contains(&view.sale)) {
            // A re-opening that is on would put back what is taken away here.
            if self.reopens(&view.sale) {
                continue;
            }
            match self.is_written(view).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(trouble) if trouble.is_local() => {
                    self.puzzle(Shelf::new(view.sale.clone(), 0), &trouble);
                    continue;
                }
                Err(trouble) => return Err(trouble),
            }
            // Off the list last: what is on it is come back to.
            for segment in 0..view.segments {
                let shelf = Shelf::new(view.sale.clone(), segment);
                self.standing.remove(&shelf);
                self.ended.remove(&shelf);
                self.frozen.remove(&shelf);
                self.controlled.remove(&shelf);
                self.odd.remove(&shelf);
                self.warden.take_off(&shelf).await;
                let mut unask = cmd("HDEL");
                unask.arg(REOPENING).arg(shelf.name());
                self.warden.redis().run::<u64>("ending a collection", &unask).await?;
                let mut unlink = cmd("UNLINK");
                unlink.arg(&[shelf.meta(), shelf.stock(), shelf.orders(), shelf.journal()][..]);
                self.warden.redis().run::<u64>("deleting a segment", &unlink).await?;
            }
            let mut unlist = cmd("HDEL");
            unlist.arg(SALES).arg(view.sale.as_str());
            self.warden.redis().run::<u64>("taking a sale out", &unlist).await?;
            self.published.remove(&view.sale);
            self.unrung = true;
            tracing::info!(sale = %view.sale, "out of redis; the books answer from now on");
        }
        Ok(())
    }

    /// Whether a segment of it is being re-opened.
    fn reopens(&self, sale: &SaleId) -> bool {
        let mut on = self.standing.iter().filter(|(_, standing)| **standing == Standing::Reopening);
        on.any(|(shelf, _)| shelf.sale == *sale && !self.ended.contains_key(shelf))
    }

    async fn is_written(&self, view: &SaleView) -> Result<bool, Trouble> {
        for segment in 0..view.segments {
            let shelf = Shelf::new(view.sale.clone(), segment);
            let mut scan = Scan::of(self.warden.redis(), &shelf, Wanted::Orders);
            while let Some(page) = scan.next_orders().await? {
                if !reopen::unwritten(&self.warden, &shelf, view.number, &page, |_| true).await?.is_empty() {
                    return Ok(false);
                }
            }
            if Journal::of(self.warden.redis(), &shelf).next().await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
