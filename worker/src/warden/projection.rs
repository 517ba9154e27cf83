//! What a sale's rows mean for Redis; no I/O.

use sluice_shared::place::shares;
use sluice_shared::sale::SaleView;
use sluice_shared::script::{Control, Preload};

use crate::store::segments::Projection;

/// Journal entries of one segment at the most; beyond it buyers are told `overloaded`. About 100 bytes
/// each.
const JOURNAL_MAX: u64 = 1_000_000;

/// What edges are told; `epochs` has 0 where a segment does not sell.
pub fn view(rows: &Projection, epochs: Vec<u64>) -> SaleView {
    SaleView {
        sale: rows.sale.clone(),
        number: rows.number,
        step: rows.step,
        starts_at: rows.starts_at,
        ends_at: rows.ends_at,
        cfg: rows.cfg,
        segments: u16::try_from(rows.segments.len()).unwrap_or(u16::MAX),
        accept_after: rows.accept_after,
        epochs,
        items: rows.items.iter().map(|(item, _)| item.clone()).collect(),
    }
}

/// A segment as it is put on the shelf for the first time, with its share of the stock.
pub fn preload(rows: &Projection, segment: usize, epoch: u64) -> Preload {
    let segments = u16::try_from(rows.segments.len()).unwrap_or(u16::MAX);
    let share = |stock: u64| shares(stock, segments).get(segment).copied().unwrap_or(0);
    Preload {
        epoch,
        step: rows.step,
        starts_at: rows.starts_at,
        ends_at: rows.ends_at,
        cfg: rows.cfg,
        journal_max: JOURNAL_MAX,
        items: rows
            .items
            .iter()
            .map(|(item, stock)| (item.sku.clone(), share(*stock), item.per_user))
            .collect(),
    }
}

/// The present configuration of a segment.
pub fn control(rows: &Projection) -> Control {
    Control {
        cfg: rows.cfg,
        step: rows.step,
        starts_at: rows.starts_at,
        ends_at: rows.ends_at,
        limits: rows.items.iter().map(|(item, _)| (item.sku.clone(), item.per_user)).collect(),
    }
}
