//! Adding and withdrawing units while a sale is on the shelf; once per idempotency key.

use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};
use sluice_shared::ids::{SaleId, SkuId};
use sluice_shared::keys::Segment;
use sluice_shared::redis::{Fault, Redis};
use sluice_shared::script::{Adjusted, SegmentScripts};
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::reply::{self, Answer};
use super::sales::no_such_sale;
use super::sheet::STOCK_MAX;
use crate::store::stock_changes::{Begun, Completing, SEGMENT, Standing, StockChange};
use crate::store::{Store, StoreError};

const KEY: &str = "Idempotency-Key";
const REASON_MAX: usize = 500;

/// What came of completing a change.
#[derive(Debug, Clone, PartialEq)]
pub enum Completed {
    /// Done, now or before: the answer.
    Done(Value),
    /// Refused, now or before: so many units were left.
    Refused(u64),
    /// The shelf is frozen; the change is pending.
    Frozen,
}

/// Why a change could not be completed; it is pending.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The books.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Redis.
    #[error(transparent)]
    Redis(#[from] Fault),
}

/// Completes one noted change. Safe to repeat and to run twice at a time.
pub async fn complete(store: &Store, redis: &Redis, sale: &SaleId, key: &str) -> Result<Completed, Trouble> {
    match store.stock_change(sale, key).await? {
        None => Ok(Completed::Frozen),
        Some(Standing::Done(answer)) => Ok(Completed::Done(answer)),
        Some(Standing::Refused(left)) => Ok(Completed::Refused(left)),
        Some(Standing::Pending(completing)) => adjust(redis, *completing).await,
    }
}

async fn adjust(redis: &Redis, completing: Completing) -> Result<Completed, Trouble> {
    let change = &completing.change;
    let scripts = SegmentScripts::new(Segment::new(change.sale.clone(), SEGMENT), completing.epoch);
    match scripts.adjust(redis, &change.key, &change.sku, change.delta).await {
        Ok(Adjusted::Adjusted(left) | Adjusted::Already(left)) => {
            Ok(Completed::Done(completing.done(left).await?))
        }
        Ok(Adjusted::Insufficient(left)) => {
            completing.refused(left).await?;
            Ok(Completed::Refused(left))
        }
        // The SKU is in the books: data that lacks it is not what the warden put there.
        Ok(Adjusted::Frozen(_) | Adjusted::UnknownSku) | Err(Fault::NoScript { .. }) => Ok(Completed::Frozen),
        Err(fault) => Err(fault.into()),
    }
}

/// Completes what crashes and freezes have interrupted; answers how many changes are done.
pub async fn complete_pending(store: &Store, redis: &Redis) -> Result<usize, Trouble> {
    let mut done = 0;
    for (sale, key) in store.pending_stock_changes().await? {
        match complete(store, redis, &sale, &key).await {
            Ok(Completed::Frozen) => {}
            Ok(_) => {
                tracing::info!(%sale, key, "an interrupted stock change is completed");
                done += 1;
            }
            // One segment's oddity is not another's.
            Err(Trouble::Redis(fault)) if fault.is_local() => {
                tracing::warn!(%sale, key, %fault, "an interrupted stock change waits");
            }
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(done)
}

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
