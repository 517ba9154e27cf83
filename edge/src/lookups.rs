//! Buyers' calls to the back office: so many at a time, so that they do not crowd out payment notices,
//! which take no place here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_shared::verdict::{Code, Rejection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for them.
#[derive(Debug)]
pub struct Lookups {
    places: Arc<Semaphore>,
    most: usize,
    turned_away: AtomicU64,
}

/// One call's place; given back when it is dropped.
pub type Lookup = OwnedSemaphorePermit;

impl Lookups {
    /// So many at a time.
    pub fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), most, turned_away: AtomicU64::new(0) }
    }

    /// A place, while there is one: nobody waits for it.
    pub fn take(&self) -> Result<Lookup, Rejection> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            Rejection::new(Code::Overloaded, "too many orders are asked for at the moment; try again")
        })
    }

    /// Calls under way.
    pub fn busy(&self) -> u64 {
        self.most.saturating_sub(self.places.available_permits()) as u64
    }

    /// Calls that found no place.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_place_is_turned_away_and_counted() {
        let lookups = Lookups::new(1);
        let first = lookups.take().unwrap();
        assert_eq!(lookups.take().unwrap_err().code, Code::Overloaded);
        assert_eq!((lookups.busy(), lookups.turned_away()), (1, 1));
        drop(first);
        assert!(lookups.take().is_ok() && lookups.busy() == 0);
    }
}
