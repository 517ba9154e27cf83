//! What a body may say about a sale, what may change when, and how a sale is shown.

use serde::Serialize;
use sluice_shared::clock::Millis;
use sluice_shared::currency;
use sluice_shared::ids::{SaleId, SkuId};
use sluice_shared::sale::{AcceptAfter, SaleStep};
use sluice_shared::verdict::{Code, Extra, Rejection};

use super::json::{Json, Members, TIME};
use crate::store::sales::{Changed, OfferRow, SaleRow, accept_after};

/// Different SKUs of a sale, at the most.
const ITEMS_MAX: usize = 100;
/// A price at the most: the dearest order that can be asked for still fits an amount.
const PRICE_MAX: i64 = 1_000_000_000_000;
/// Units of one SKU at the most.
pub const STOCK_MAX: i64 = 1_000_000_000;
const PER_USER_MAX: i64 = 1_000_000_000;
const PAY_WITHIN_MAX: i64 = 2_592_000;
const TITLE_MAX: usize = 200;
const ID: &str = "must match ^[A-Za-z0-9_-]{1,64}$";

/// A sale as a body tells it: each member may be missing.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    sale: Option<SaleId>,
    starts_at: Option<Millis>,
    ends_at: Option<Millis>,
    accept_after: Option<AcceptAfter>,
    pay_within_seconds: Option<u32>,
    segments: Option<u16>,
    items: Option<Vec<ItemSheet>>,
}

#[derive(Debug, Clone)]
struct ItemSheet {
    sku: SkuId,
    title: Option<String>,
    price: Option<i64>,
    currency: Option<String>,
    stock: Option<u64>,
    per_user: Option<u32>,
}

fn whole<T: TryFrom<i64>>(number: Option<i64>) -> Option<T> {
    number.and_then(|number| T::try_from(number).ok())
}

fn currency_code(text: &str) -> Option<String> {
    currency::decimals(text).map(|_| text.to_owned())
}

impl Sheet {
    /// Reads a body. What this version cannot do yet is refused by name, never taken and ignored.
    pub fn read(mut body: Members) -> Result<Self, Rejection> {
        let sale = body.parsed("sale", ID, |text| SaleId::parse(text).ok())?;
        let starts_at = body.parsed("starts_at", TIME, Millis::from_text)?;
        let ends_at = body.parsed("ends_at", TIME, Millis::from_text)?;
        body.parsed("mode", "must be queued; direct and auto are not available yet", |text| {
            (text == "queued").then_some(())
        })?;
        let accept_after = body.parsed("accept_after", "must be journal or broker", accept_after)?;
        let pay_within_seconds = whole(body.integer("pay_within_seconds", 1..=PAY_WITHIN_MAX)?);
        let segments = whole(body.integer("segments", 1..=64)?);
        if segments.is_some_and(|n: u16| n > 1) {
            return Err(body.wrong("segments", "must be 1; more segments are not available yet"));
        }
        let items = body.list("items")?.map(|list| {
            let read = |(at, item)| ItemSheet::read(item, &format!("items[{at}]"));
            list.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()
        });
        let items = items.transpose()?;
        if let Some((at, _)) = items
            .iter()
            .flatten()
            .enumerate()
            .find(|(at, item)| items.iter().flatten().take(*at).any(|before| before.sku == item.sku))
        {
            let field = format!("items[{at}].sku");
            return Err(Rejection::field(field.clone(), format!("{field} names a SKU twice")));
        }
        body.finish()?;
        Ok(Self { sale, starts_at, ends_at, accept_after, pay_within_seconds, segments, items })
    }

    /// A new sale out of a sheet that says enough.
    pub fn create(self) -> Changed {
        let need = |name: &'static str| Rejection::field(name, format!("{name} is missing"));
        let new = SaleRow {
            sale: self.sale.clone().ok_or_else(|| need("sale"))?,
            number: 0,
            step: SaleStep::Created,
            closed_from: None,
            starts_at: self.starts_at.ok_or_else(|| need("starts_at"))?,
            ends_at: self.ends_at.ok_or_else(|| need("ends_at"))?,
            mode: "queued".to_owned(),
            accept_after: AcceptAfter::Journal,
            pay_within_seconds: 900,
            segments: 1,
            cfg: 0,
            created_at: Millis(0),
            updated_at: Millis(0),
            items: Vec::new(),
        };
        if self.items.as_ref().is_none_or(Vec::is_empty) {
            return Err(Rejection::field("items", "items must list 1 to 100 items"));
        }
        self.patch(&new, Millis(0))
    }

    /// What becomes of a sale by this sheet at a time, or why it must not.
    pub fn patch(&self, before: &SaleRow, now: Millis) -> Changed {
        let mut after = before.clone();
        if self.sale.as_ref().is_some_and(|sale| *sale != before.sale) {
            let other = Rejection::field("sale", "a sale keeps its name");
            return Err(settled(before, now, "sale").unwrap_or(other));
        }
        after.starts_at = self.starts_at.unwrap_or(before.starts_at);
        after.ends_at = self.ends_at.unwrap_or(before.ends_at);
        after.pay_within_seconds = self.pay_within_seconds.unwrap_or(before.pay_within_seconds);
        after.accept_after = self.accept_after.unwrap_or(before.accept_after);
        after.segments = self.segments.unwrap_or(before.segments);
        for (at, item) in self.items.iter().flatten().enumerate() {
            match after.items.iter_mut().find(|there| there.sku == item.sku) {
                Some(there) => item.merge(there),
                None if before.step == SaleStep::Created => after.items.push(item.create(at)?),
                None => return Err(settled(before, now, "items").unwrap_or_else(no_further)),
            }
        }
        judge_moment(before, &after, now)?;
        self.judge_whole(&after)?;
        Ok(after)
    }

    fn judge_whole(&self, after: &SaleRow) -> Result<(), Rejection> {
        if after.starts_at >= after.ends_at {
            let field = if self.ends_at.is_some() { "ends_at" } else { "starts_at" };
            return Err(Rejection::field(field, "starts_at must be before ends_at"));
        }
        if after.items.len() > ITEMS_MAX {
            return Err(Rejection::field("items", "items must list 1 to 100 items"));
        }
        // An order has one amount, so a sale has one currency.
        let first = after.items.first().map(|item| &item.currency);
        match after.items.iter().find(|item| Some(&item.currency) != first) {
            None => Ok(()),
            Some(other) => {
                let at = self.items.iter().flatten().position(|item| item.sku == other.sku).unwrap_or(0);
                let detail = "all items of a sale have the same currency";
                Err(Rejection::field(format!("items[{at}].currency"), detail))
            }
        }
    }
}

impl ItemSheet {
    fn read(value: Json, path: &str) -> Result<Self, Rejection> {
        let mut item = Members::of(value, path)?;
        let sku = item.parsed("sku", ID, |text| SkuId::parse(text).ok())?;
        let read = Self {
            sku: item.need("sku", sku)?,
            title: item.prose("title", TITLE_MAX)?,
            price: item.integer("price", 0..=PRICE_MAX)?,
            currency: item.parsed("currency", "must be a code of ISO 4217 such as EUR", currency_code)?,
            stock: whole(item.integer("stock", 1..=STOCK_MAX)?),
            per_user: whole(item.integer("per_user", 1..=PER_USER_MAX)?),
        };
        item.finish()?;
        Ok(read)
    }

    fn merge(&self, there: &mut OfferRow) {
        if let Some(title) = &self.title {
            there.title.clone_from(title);
        }
        if let Some(currency) = &self.currency {
            there.currency.clone_from(currency);
        }
        there.price = self.price.unwrap_or(there.price);
        there.stock = self.stock.unwrap_or(there.stock);
        there.per_user = self.per_user.unwrap_or(there.per_user);
    }

    fn create(&self, at: usize) -> Result<OfferRow, Rejection> {
        let missing = |name: &str| {
            let field = format!("items[{at}].{name}");
            Rejection::field(field.clone(), format!("{field} is missing"))
        };
        Ok(OfferRow {
            sku: self.sku.clone(),
            title: self.title.clone().ok_or_else(|| missing("title"))?,
            price: self.price.ok_or_else(|| missing("price"))?,
            currency: self.currency.clone().ok_or_else(|| missing("currency"))?,
            stock: self.stock.ok_or_else(|| missing("stock"))?,
            taken: 0,
            per_user: self.per_user.ok_or_else(|| missing("per_user"))?,
        })
    }
}

/// Why this member no longer changes, if so: anything does before preload; then only what buyers are not cheated
/// by; nothing once closed.
fn settled(before: &SaleRow, now: Millis, member: &str) -> Option<Rejection> {
    let what = match (before.step, member) {
        (SaleStep::Created, _) => return None,
        (SaleStep::Closed, _) => "the sale is closed and no longer changes",
        (_, "starts_at") if now >= before.starts_at => "starts_at has come and no longer changes",
        (_, "accept_after") => "accept_after no longer changes after preload",
        (_, "mode") => "mode no longer changes after preload",
        (_, "segments") => "segments no longer changes after preload",
        (_, "price" | "currency") => "price and currency no longer change after preload",
        (_, "stock") => "after preload, stock changes by POST …/stock",
        _ => return None,
    };
    Some(Rejection::new(Code::WrongState, what))
}

fn no_further() -> Rejection {
    Rejection::new(Code::WrongState, "a sale gets no further SKU after preload")
}

/// What is wrong with a change that cannot even be read: the sale's state is judged before any value, so a member
/// that no longer changes is not worth a better value.
pub fn unreadable(wrong: &Rejection, before: &SaleRow, now: Millis) -> Rejection {
    let Extra::Field(field) = &wrong.extra else { return wrong.clone() };
    let member = field.rsplit('.').next().unwrap_or_default();
    settled(before, now, member).unwrap_or_else(|| wrong.clone())
}

/// Whether what differs may still change. Saying what is so already is no change.
fn judge_moment(before: &SaleRow, after: &SaleRow, now: Millis) -> Result<(), Rejection> {
    let differs = |old: &OfferRow, new: &OfferRow| {
        if (old.price, &old.currency) != (new.price, &new.currency) {
            Some("price")
        } else if old.stock != new.stock {
            Some("stock")
        } else {
            (old != new).then_some("items")
        }
    };
    let top = [
        (before.starts_at != after.starts_at, "starts_at"),
        (before.accept_after != after.accept_after, "accept_after"),
        (before.segments != after.segments, "segments"),
        (before.ends_at != after.ends_at, "ends_at"),
        (before.pay_within_seconds != after.pay_within_seconds, "pay_within_seconds"),
    ];
    let top = top.into_iter().filter_map(|(differs, member)| differs.then_some(member));
    let items = before.items.iter().zip(&after.items).filter_map(|(old, new)| differs(old, new));
    match top.chain(items).find_map(|member| settled(before, now, member)) {
        None => Ok(()),
        Some(refused) => Err(refused),
    }
}

/// A sale as the back office shows it.
#[derive(Debug, Serialize)]
pub struct SaleSheet<'a> {
    sale: &'a SaleId,
    number: u32,
    state: SaleStep,
    starts_at: String,
    ends_at: String,
    mode: &'a str,
    accept_after: AcceptAfter,
    pay_within_seconds: u32,
    segments: u16,
    items: Vec<ItemShown<'a>>,
    created_at: String,
    updated_at: String,
}

#[derive(Debug, Serialize)]
struct ItemShown<'a> {
    sku: &'a SkuId,
    title: &'a str,
    price: i64,
    currency: &'a str,
    stock: u64,
    per_user: u32,
    taken: u64,
}

impl<'a> SaleSheet<'a> {
    /// What is shown of a row.
    pub fn of(row: &'a SaleRow) -> Self {
        let item = |item: &'a OfferRow| ItemShown {
            sku: &item.sku,
            title: &item.title,
            price: item.price,
            currency: &item.currency,
            stock: item.stock,
            per_user: item.per_user,
            taken: item.taken,
        };
        Self {
            sale: &row.sale,
            number: row.number,
            state: row.step,
            starts_at: row.starts_at.to_text(),
            ends_at: row.ends_at.to_text(),
            mode: &row.mode,
            accept_after: row.accept_after,
            pay_within_seconds: row.pay_within_seconds,
            segments: row.segments,
            items: row.items.iter().map(item).collect(),
            created_at: row.created_at.to_text(),
            updated_at: row.updated_at.to_text(),
        }
    }
}
