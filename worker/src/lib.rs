//! Workers: what happens to an order after the gate said yes.
//!
//! [`role`] lists what a process can be. Behind the roles: [`store`] is PostgreSQL, the truth, and the
//! only part that names sqlx; [`consumer`] is the one loop that reads a queue of events; [`saga`] is
//! the purchase, step by step; [`warden`] keeps Redis and the books in agreement; [`api`] is the back
//! office. [`audit`], [`explain`] and [`topology_command`] are one-shot commands.

pub mod api;
pub mod audit;
pub mod backoff;
pub mod command;
pub mod config;
pub mod consumer;
pub mod edges_command;
pub mod explain;
pub mod metrics;
pub mod role;
pub mod saga;
pub mod status;
pub mod store;
pub mod topology_command;
pub mod warden;
