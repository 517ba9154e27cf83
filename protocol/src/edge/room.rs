//! How many orders this edge may be answerable for, asked and held together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Places for orders; a place is taken before an order is asked for and kept while it is held, so that
/// no answer of the script can find the held orders full.
#[derive(Debug, Clone)]
pub struct Room {
    taken: Arc<AtomicUsize>,
    most: usize,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Room {
    /// Room for so many.
    pub fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// A place, while there is one.
    pub fn take(&self) -> Option<Place> {
        let place = Place(Arc::clone(&self.taken));
        // Counted first: the place gives back what it counted also when it was one too many.
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.most).then_some(place)
    }

    /// A place even where there is none: for orders that were here before and come back.
    pub fn insist(&self) -> Place {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.taken))
    }

    /// Places taken now.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_room_has_a_place_again_when_one_is_given_back() {
        let room = Room::new(2);
        let (first, second) = (room.take(), room.take());
        assert!(first.is_some() && second.is_some() && room.take().is_none());
        drop(first);
        assert_eq!(room.taken(), 1);
        assert!(room.take().is_some());
    }
}
