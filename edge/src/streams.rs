//! Places for event streams: so many for each user.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// How many streams each user has open; where the buyer of an order is not known, each order. Its lock is
/// taken when a stream opens and closes, never on a purchase.
#[derive(Debug)]
pub struct Streams {
    open: Mutex<HashMap<String, usize>>,
    per_user: usize,
}

/// A place for one stream; given back when it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    streams: &'a Streams,
    user: String,
}

impl Streams {
    /// So many at a time for each user.
    pub fn new(per_user: usize) -> Self {
        Self { open: Mutex::default(), per_user }
    }

    /// A place for one more stream of a user, if he may have one.
    pub fn open(&self, user: &str) -> Option<Place<'_>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(user.to_owned()).or_default();
        if *count >= self.per_user {
            return None;
        }
        *count += 1;
        Some(Place { streams: self, user: user.to_owned() })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_two_streams_and_gets_a_place_back() {
        let streams = Streams::new(2);
        let first = streams.open("alice").unwrap();
        let _second = streams.open("alice").unwrap();
        assert!(streams.open("alice").is_none());
        assert!(streams.open("bob").is_some());
        drop(first);
        assert!(streams.open("alice").is_some());
    }
}
