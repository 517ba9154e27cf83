//! Sagas: what happens in steps, each with its undo. [`purchase`] is the only one; [`deadlines`] is
//! the queue that wakes up expiry.

pub mod deadlines;
mod pauses;
pub mod purchase;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_shared::keys::Shelf;
use sluice_shared::redis::{Fault, Redis, cmd};
use sluice_shared::script::ShelfScripts;

/// The scripts of the segments that this process has worked on, each in the epoch that Redis had.
/// They are never loaded here: loading is what re-opens a frozen sale, and the warden's alone.
#[derive(Debug)]
pub struct Shelves {
    redis: Redis,
    known: Mutex<HashMap<Shelf, Arc<ShelfScripts>>>,
}

impl Shelves {
    /// Knows none yet.
    pub fn new(redis: Redis) -> Self {
        Self { redis, known: Mutex::default() }
    }

    /// The scripts of a segment; `None` when Redis has no such segment.
    pub async fn scripts(&self, shelf: &Shelf) -> Result<Option<Arc<ShelfScripts>>, Fault> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(shelf).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let read = cmd("HGET").arg(shelf.meta()).arg("epoch").to_owned();
        let epoch: Option<u64> = self.redis.run("reading an epoch", &read).await?;
        let Some(epoch) = epoch else { return Ok(None) };
        let scripts = Arc::new(ShelfScripts::new(shelf.clone(), epoch));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(shelf.clone(), scripts.clone());
        Ok(Some(scripts))
    }

    /// Reads the epoch anew the next time: the one that is known has ended.
    pub fn forget(&self, shelf: &Shelf) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(shelf);
    }
}
