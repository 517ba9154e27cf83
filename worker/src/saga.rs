//! Sagas: what happens in steps, each with its undo. [`purchase`] is the only one; [`deadlines`] is
//! the queue that wakes up expiry.

pub mod deadlines;
mod pauses;
pub mod purchase;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_shared::ids::SkuId;
use sluice_shared::keys::Segment;
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::script::{SegmentScripts, mark_work};

/// Segments that are known at the same time; beyond, all are read anew.
const KNOWN_MAX: usize = 1_000;

/// A segment as it was when it was read.
#[derive(Debug)]
pub struct Known {
    /// Its scripts, in the epoch that Redis had.
    pub scripts: SegmentScripts,
    /// What a buyer's mark may cost them.
    pub mark_work: usize,
}

/// The segments that this process has worked on.
/// Their scripts are never loaded here: loading is what re-opens a frozen sale, and the warden's alone.
#[derive(Debug)]
pub struct KnownSegments {
    redis: Redis,
    known: Mutex<HashMap<Segment, Arc<Known>>>,
}

impl KnownSegments {
    /// Knows none yet.
    pub fn new(redis: Redis) -> Self {
        Self { redis, known: Mutex::default() }
    }

    /// A segment; `None` when Redis has no such.
    pub async fn find(&self, segment: &Segment) -> Result<Option<Arc<Known>>, Fault> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(segment).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let epoch = cmd("HGET").arg(segment.meta()).arg("epoch").to_owned();
        let skus = cmd("HKEYS").arg(segment.stock()).to_owned();
        let (epoch, skus): (Option<u64>, Vec<String>) =
            self.redis.run_all("reading an epoch", [epoch, skus]).await?;
        let Some(epoch) = epoch else { return Ok(None) };
        let skus: Vec<SkuId> = skus.iter().filter_map(|sku| SkuId::parse(sku).ok()).collect();
        let found = Arc::new(Known {
            scripts: SegmentScripts::new(segment.clone(), epoch),
            mark_work: mark_work(&skus),
        });
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(segment.clone(), found.clone());
        Ok(Some(found))
    }

    /// Reads the epoch anew the next time: the one that is known has ended.
    pub fn forget(&self, segment: &Segment) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(segment);
    }
}
