//! The acceptance protocol, explored: every order of events within bounds, with the faults of one
//! machine each, and after each step the question whether something has gone wrong.
//!
//! What an edge holds is decided by the edge's own code ([`memory`]), and what a re-opening does next
//! by the warden's ([`warden`]). The rest is what scripts, writers and servers do, in a few lines each
//! ([`step`]). A [`rules::Rules`] switches single mechanisms off, to see that each is needed.
//!
//! Bounds: one segment, one unit an order, two orders, three attempts, two edges, two wardens, five epochs. Outside:
//! stock changes, refunds, several segments, several brokers, faults of PostgreSQL.

pub mod bounds;
pub mod explore;
pub mod faults;
pub mod judge;
pub mod memory;
pub mod rules;
pub mod state;
pub mod step;
pub mod warden;
