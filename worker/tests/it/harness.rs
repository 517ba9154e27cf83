//! What tests of workers stand on: a database from a migrated template, a virtual host, a Redis, and
//! a sale in all three.

pub mod broker;
pub mod compose;
pub mod database;
pub mod postgres;
pub mod process;
pub mod world;

pub use broker::Vhost;
pub use database::TestDatabase;
pub use postgres::PrivatePostgres;
pub use world::{Running, World, accepted, accepted_of, events, user};
