//! An order as buyers and the back office see it.

use serde::Serialize;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId, UserId};
use sluice_shared::lines::Lines;
use sluice_shared::record::{OrderState, Record};

use crate::store::orders::OrderRow;

/// One line of it.
#[derive(Debug, Serialize)]
pub struct Line {
    sku: SkuId,
    quantity: u32,
}

/// What a buyer is told; the same members whether it comes from the books or from the shelf.
#[derive(Debug, Serialize)]
pub struct OrderSheet {
    order_id: OrderId,
    state: OrderState,
    sale: SaleId,
    lines: Vec<Line>,
    amount: Option<i64>,
    currency: Option<String>,
    pay_before: Option<String>,
    refund: Option<&'static str>,
    message: Option<String>,
    updated_at: String,
}

/// What is shown of lines.
pub fn lines(lines: &Lines) -> Vec<Line> {
    lines.iter().map(|(sku, quantity)| Line { sku: sku.clone(), quantity }).collect()
}

impl OrderSheet {
    /// An order of the books.
    pub fn of_row(row: &OrderRow) -> Self {
        Self {
            order_id: row.id,
            state: row.state,
            sale: row.sale.clone(),
            lines: lines(&row.lines),
            amount: Some(row.amount),
            currency: Some(row.currency.clone()),
            pay_before: Some(row.pay_before.to_text()),
            refund: row.refund.for_buyer(),
            message: row.message.clone(),
            updated_at: row.updated_at.to_text(),
        }
    }

    /// An order that is not in the books yet.
    pub fn of_record(order: OrderId, sale: &SaleId, record: &Record) -> Self {
        Self {
            order_id: order,
            state: record.state,
            sale: sale.clone(),
            lines: lines(&record.lines),
            amount: None,
            currency: None,
            pay_before: record.pay_before.map(Millis::to_text),
            refund: record.refund.for_buyer(),
            message: None,
            updated_at: record.updated.to_text(),
        }
    }
}

/// What the back office is shown besides.
#[derive(Debug, Serialize)]
pub struct StaffSheet {
    #[serde(flatten)]
    order: OrderSheet,
    user: UserId,
    live: bool,
    epoch: u64,
    seq: u64,
    accepted_at: String,
    created_at: Option<String>,
}

impl StaffSheet {
    /// An order of the books.
    pub fn of_row(row: &OrderRow) -> Self {
        Self {
            order: OrderSheet::of_row(row),
            user: row.user.clone(),
            live: row.live,
            epoch: row.epoch,
            seq: row.seq,
            accepted_at: row.accepted_at.to_text(),
            created_at: Some(row.created_at.to_text()),
        }
    }

    /// An order that is not in the books yet.
    pub fn of_record(order: OrderId, sale: &SaleId, record: &Record) -> Self {
        Self {
            order: OrderSheet::of_record(order, sale, record),
            user: record.user.clone(),
            live: !record.released,
            epoch: record.epoch,
            seq: record.seq,
            accepted_at: record.accepted.to_text(),
            created_at: None,
        }
    }
}
