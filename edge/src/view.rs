//! What buyers read: a sale, an order, an accepted one, as JSON.

use serde::Serialize;
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, SkuId};
use sluice_shared::record::{OrderState, Record};
use sluice_shared::sale::SaleView;

use crate::engine::LiveSale;

#[derive(Serialize)]
struct Sale<'a> {
    sale: &'a SaleId,
    state: &'static str,
    starts_at: String,
    ends_at: String,
    server_time: String,
    items: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    sku: &'a SkuId,
    title: &'a str,
    price: i64,
    currency: &'a str,
    per_user: u32,
    available: bool,
}

#[derive(Serialize)]
struct Order<'a> {
    order_id: OrderId,
    state: &'static str,
    sale: &'a SaleId,
    lines: Vec<Line<'a>>,
    amount: Option<i64>,
    currency: Option<&'a str>,
    pay_before: Option<String>,
    refund: Option<&'static str>,
    message: Option<&'static str>,
    updated_at: String,
}

#[derive(Serialize)]
struct Line<'a> {
    sku: &'a SkuId,
    quantity: u32,
}

#[derive(Serialize)]
struct Accepted<'a> {
    order_id: OrderId,
    state: &'static str,
    status_url: &'a str,
    events_url: String,
    estimated_seconds: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<&'a str>,
}

#[derive(Serialize)]
struct Token<'a> {
    token: &'a str,
    order_id: OrderId,
    expires_at: String,
}

fn write(view: &impl Serialize) -> Vec<u8> {
    // Texts, numbers and lists always serialise.
    serde_json::to_vec(view).unwrap_or_default()
}

/// A sale at Redis' time.
pub fn sale(sale: &LiveSale, now: Millis) -> Vec<u8> {
    let view = &sale.view;
    let item = |item: &'_ sluice_shared::sale::Item| sale.available(&item.sku);
    let items = view.items.iter().map(|one| Item {
        sku: &one.sku,
        title: &one.title,
        price: one.price,
        currency: &one.currency,
        per_user: one.per_user,
        available: item(one),
    });
    write(&Sale {
        sale: &view.sale,
        state: sale.state(now).as_str(),
        starts_at: view.starts_at.to_text(),
        ends_at: view.ends_at.to_text(),
        server_time: now.to_text(),
        items: items.collect(),
    })
}

/// An order from its record; prices are the sale's, which never change once it is preloaded.
pub fn order(id: &OrderId, record: &Record, view: &SaleView) -> Vec<u8> {
    let written = !matches!(record.state, OrderState::Accepted | OrderState::Pending);
    let item = |sku: &SkuId| view.items.iter().find(|item| item.sku == *sku);
    let price = |(sku, quantity): (&SkuId, u32)| item(sku)?.price.checked_mul(i64::from(quantity));
    let amount = record.lines.iter().map(price).try_fold(0_i64, |sum, price| sum.checked_add(price?));
    let currency = record.lines.iter().next().and_then(|(sku, _)| Some(item(sku)?.currency.as_str()));
    write(&Order {
        order_id: *id,
        state: record.state.as_str(),
        sale: &view.sale,
        lines: record.lines.iter().map(|(sku, quantity)| Line { sku, quantity }).collect(),
        amount: amount.filter(|_| written),
        currency: currency.filter(|_| written),
        pay_before: record.pay_before.map(Millis::to_text),
        refund: record.refund.for_buyer(),
        message: None,
        updated_at: record.updated.to_text(),
    })
}

/// An order that was just accepted, or was before; it is likely to be written within so many seconds.
pub fn accepted(
    id: &OrderId,
    state: OrderState,
    status_url: &str,
    ticket: &str,
    seconds: u32,
    receipt: Option<&str>,
) -> Vec<u8> {
    write(&Accepted {
        order_id: *id,
        state: state.as_str(),
        status_url,
        events_url: format!("{status_url}/events?ticket={ticket}"),
        estimated_seconds: seconds,
        receipt,
    })
}

/// A token.
pub fn token(token: &str, id: &OrderId, expires: Millis) -> Vec<u8> {
    write(&Token { token, order_id: *id, expires_at: expires.to_text() })
}
