//! Sales of Redis that the books do not know: an old or a wrong database must never cost what is there.

use std::collections::{BTreeMap, BTreeSet};

use sluice_shared::ids::SaleId;
use sluice_shared::keys::Segment;
use sluice_shared::sale::SaleView;

use super::{KEYS_KEPT, Segments};
use crate::store::segments::Word;
use crate::warden::Trouble;

/// Sales told by name, at the most.
const NAMED: usize = 10;

impl Segments {
    /// Sorts the sales out that the list has and the books do not show. Those that they call closed and over
    /// may leave Redis. Those that they do not know, or not as ever on the shelf, or under another number,
    /// stay as they are and sell nothing: these books are older than Redis, or another Redis' books.
    pub(super) async fn sort_out(&mut self) -> Result<(), Trouble> {
        let known =
            |view: &&SaleView| self.rows.get(&view.sale).is_some_and(|rows| rows.number == view.number);
        let absent: Vec<SaleView> = self.published.values().filter(|view| !known(view)).cloned().collect();
        let names: Vec<(SaleId, u32)> = absent.iter().map(|view| (view.sale.clone(), view.number)).collect();
        let words = if names.is_empty() {
            BTreeMap::new()
        } else {
            self.warden.context.store.words(&names, KEYS_KEPT).await?
        };
        self.over.clear();
        let mut unknown = BTreeMap::new();
        for view in absent {
            match words.get(&view.sale) {
                Some(Word::Over) => self.over.push(view),
                // It has come to the books since they were read.
                Some(Word::Shelved) => {}
                None => drop(unknown.insert(view.sale.clone(), view.segments)),
            }
        }
        self.keep_unknown(unknown).await;
        Ok(())
    }

    /// Nothing is sold that cannot be booked: no lease of these sales is renewed until the books know them.
    async fn keep_unknown(&mut self, unknown: BTreeMap<SaleId, u16>) {
        let of = |sale: &SaleId, segments: u16| -> Vec<Segment> {
            (0..segments).map(|segment| Segment::new(sale.clone(), segment)).collect()
        };
        let segments: BTreeSet<Segment> =
            unknown.iter().flat_map(|(sale, segments)| of(sale, *segments)).collect();
        self.warden.floor(|floor| floor.serving.retain(|segment, _| !segments.contains(segment)));
        if unknown != self.unknown {
            let names: Vec<&str> = unknown.keys().take(NAMED).map(SaleId::as_str).collect();
            if names.is_empty() {
                tracing::info!("the books know every sale of redis again");
            } else {
                tracing::error!(
                    sales = unknown.len(),
                    ?names,
                    "redis holds sales that postgresql does not know: is it the right database, and not \
                     older than redis? they are left as they are, and sell nothing"
                );
            }
        }
        self.warden.metrics().unknown_sales.set(i64::try_from(unknown.len()).unwrap_or(i64::MAX));
        self.unknown = unknown;
    }
}
