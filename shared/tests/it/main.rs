//! The stock scripts against a real Redis, and the rules of this repository as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod address;
mod circles;
mod compose;
mod delay;
mod failures;
mod fence;
mod model;
mod orders;
mod restore;
mod segment;
mod tidy;
mod traps;
mod users;
mod work;
