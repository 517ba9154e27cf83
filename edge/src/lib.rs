//! The gate at the edge.
//!
//! A request comes in by [`front`] (deadlines, keep-alive). A plain one for a sale goes the short way,
//! [`express`], every other one the long way, [`session`]; both by the
//! table of [`calls`], whose requests pass the [`chain`] of [`filter`]s.
//! The answer leaves by [`respond`], or the request goes on to a server behind us by [`upstream`].
//! What is accepted belongs to the [`engine`], on threads of its own.

pub mod books;
pub mod buckets;
pub mod calls;
pub mod chain;
pub mod command;
pub mod config;
pub mod conn;
pub mod connections;
pub mod descriptors;
pub mod engine;
pub mod events;
pub mod exchange;
pub mod express;
pub mod fields;
pub mod filter;
pub mod framing;
pub mod front;
pub mod gate;
pub mod guarded;
pub mod handover;
pub mod head;
pub mod hops;
pub mod keys;
pub mod listeners;
pub mod lookups;
pub mod metrics;
pub mod phase;
pub mod respond;
pub mod route;
pub mod server;
pub mod session;
pub mod signals;
pub mod status;
pub mod streams;
pub mod upstream;
pub mod view;
