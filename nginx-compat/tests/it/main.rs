//! The language beside nginx itself and beside crossplane, and the promises that hold for any bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod broken;
mod crossplane;
mod files;
mod mutants;
mod page;
mod peers;
mod roundtrip;
mod table;
