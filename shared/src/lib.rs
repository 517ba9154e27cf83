//! What edge and workers share: identifiers, the stock scripts and their keys, messages, topology,
//! and the clients of Redis and RabbitMQ.
//!
//! The map, from the inside out: [`ids`], [`lines`] and [`record`] are the nouns; [`verdict`] is the
//! gate's answer; [`token`], [`ticket`], [`receipt`] and [`jwt`] prove things without I/O; [`keys`] and [`script`]
//! are the contract with `lua/`; [`message`] and [`topology`] the one with RabbitMQ; [`sale`] is what
//! edges and warden tell each other about a sale. Only [`redis`] and [`script`] name the redis
//! client, only [`amqp`] names lapin.

pub mod amqp;
pub mod config;
pub mod currency;
pub mod failpoint;
pub mod jwt;
pub mod metrics;
pub mod receipt;
pub mod redis;
pub mod script;
pub mod telemetry;
pub mod ticket;
pub mod token;
pub mod topology;
pub mod verdict;

// The nouns and messages are the protocol's, where nothing does I/O; most code needs both.
pub use sluice_protocol::{clock, ids, keys, lines, message, place, record, sale};
