//! Workers: what happens to an order after the gate said yes.
//!
//! From the bottom up: [`store`] is PostgreSQL, the truth, and the only part that names sqlx; [`process`]
//! is what every part of a process works with; [`consumer`] is the one loop that reads a queue of events;
//! [`saga`] is the purchase, step by step; [`warden`] keeps Redis and the books in agreement; [`api`] is
//! the back office; [`role`] begins and ends what a process is told to be. [`command`] reads the command
//! line, and [`audit`] and [`explain`] are commands that the back office runs too.

pub mod api;
pub mod audit;
pub mod backoff;
pub mod command;
pub mod config;
pub mod consumer;
pub mod explain;
pub mod metrics;
pub mod parking;
pub mod process;
pub mod role;
pub mod saga;
pub mod sources;
pub mod status;
pub mod stock;
pub mod store;
pub mod warden;
