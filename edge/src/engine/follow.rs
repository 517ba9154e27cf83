//! Orders that somebody watches.

use sluice_shared::record::Record;

/// The changes of one order.
#[derive(Debug)]
pub struct Follower;

impl Follower {
    /// The next record that differs from the last one; `None` when the engine has ended.
    pub async fn next(&mut self) -> Option<Record> {
        None
    }
}
