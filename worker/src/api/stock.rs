//! Adding and withdrawing units while a sale is on the shelf; once per idempotency key.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use sluice_shared::ids::SkuId;
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::reply::{self, Answer};
use super::sales::no_such_sale;
use super::sheet::STOCK_MAX;
use crate::stock::{Completed, complete};
use crate::store::stock_changes::{Begun, StockChange};

const KEY: &str = "Idempotency-Key";
const REASON_MAX: usize = 500;

/// `POST /admin/v1/sales/{sale}/stock`
pub async fn change(api: Arc<Api>, call: Call) -> Answer {
    let change = read(&call)?;
    let begun = api.store.begin_stock_change(&change, STOCK_MAX, &call.actor()?).await;
    match begun.map_err(reply::store)? {
        Begun::Noted => {}
        other => return Err(refusal(&other)),
    }
    match complete(&api.store, &api.redis, &change.sale, &change.key).await {
        Ok(Completed::Done(answer)) => reply::json(200, &answer),
        Ok(Completed::Refused(left)) => Err(Rejection::new(
            Code::InsufficientStock,
            format!("{left} units of {} are left; fewer than shall be withdrawn", change.sku),
        )),
        Ok(Completed::Frozen) => Err(Rejection::new(
            Code::Frozen,
            "the change is noted and is completed when the sale sells again; repeat it to see the outcome",
        )),
        Err(trouble) => {
            tracing::warn!(%trouble, sale = %change.sale, "a stock change waits");
            Err(Rejection::new(
                Code::Unavailable,
                "the change is noted and will be completed; repeat it to see the outcome",
            ))
        }
    }
}

fn refusal(begun: &Begun) -> Rejection {
    match begun {
        Begun::NoSale => no_such_sale(),
        Begun::NoSku => Rejection::new(Code::UnknownSku, "the sale has no such SKU"),
        Begun::OtherBody => {
            Rejection::new(Code::IdempotencyMismatch, "this Idempotency-Key was used with another body")
        }
        Begun::WrongState(step) => Rejection::new(
            Code::WrongState,
            format!("stock changes while preloaded, open or paused; the sale is {}", step.as_str()),
        ),
        Begun::TooMany => Rejection::field("delta", format!("there may be {STOCK_MAX} units at the most")),
        Begun::NotShelved | Begun::Noted => Rejection::new(
            Code::Frozen,
            "the sale is not on the shelf yet; nothing was noted, repeat it soon",
        ),
    }
}

fn read(call: &Call) -> Result<StockChange, Rejection> {
    let sale = call.sale()?;
    let good = |key: &&str| (1..=128).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let mut keys = call.headers.get_all("idempotency-key").iter();
    let key = keys.next().and_then(|key| key.to_str().ok()).filter(good);
    let (Some(key), None) = (key, keys.next()) else {
        return Err(Rejection::field(KEY, "send one Idempotency-Key that matches ^[!-~]{1,128}$"));
    };
    let mut body = call.members()?;
    let sku = body.parsed("sku", "must match ^[A-Za-z0-9_-]{1,64}$", |text| SkuId::parse(text).ok())?;
    let sku = body.need("sku", sku)?;
    let delta = body.integer("delta", -STOCK_MAX..=STOCK_MAX)?;
    let delta = body.need("delta", delta)?;
    if delta == 0 {
        return Err(body.wrong("delta", "must not be 0"));
    }
    let reason = body.prose("reason", REASON_MAX)?;
    let reason = body.need("reason", reason)?;
    body.finish()?;
    // The SKU's alphabet has no bar, so different bodies have different texts.
    let fingerprint = Sha256::digest(format!("{sku}|{delta}|{reason}")).to_vec();
    Ok(StockChange { sale, key: key.to_owned(), sku, delta, reason, fingerprint })
}
