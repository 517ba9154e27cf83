//! The load loop against servers that behave, and servers that do not; the proxy that breaks connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod engine;
mod proxy;
mod server;
