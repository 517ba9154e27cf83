//! The filters of the gate, cheapest first; only the last does I/O.

pub mod address;
pub mod body;
pub mod guard;
pub mod identity;
pub mod latch;
pub mod rate;
pub mod reserve;
pub mod token;
