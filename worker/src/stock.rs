//! Completes noted changes of stock in Redis: at once by the back office, later by the warden where a
//! crash or a freeze came in between.

use serde_json::Value;
use sluice_shared::ids::SaleId;
use sluice_shared::keys::Segment;
use sluice_shared::redis::{Fault, Redis};
use sluice_shared::script::{Adjusted, SegmentScripts};

use crate::store::stock_changes::{Completing, SEGMENT, Standing};
use crate::store::{Store, StoreError};

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
