//! The load loop against servers that behave, and servers that do not; the proxy that breaks connections;
//! whole small systems whose parts are killed, paused and cut off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod engine;
mod faults_kills;
mod fleet;
mod proxy;
mod server;
mod world;
