//! Load and drills: shows on a running system that what it promises holds, and counts what it costs.
//!
//! The map: [`client`] makes requests, [`schedule`] says when, [`crowd`] and [`buyers`] who and what;
//! [`log`] keeps every answer, [`oracle`] compares it with the books, [`report`] tells. [`drill`] are
//! the scenes, [`servers`] kills and restarts, [`fleet`] starts
//! processes with proxies before their stores, [`peer`] and [`compare`] measure against nginx + Lua.

pub mod admin;
pub mod buyers;
pub mod cli;
pub mod client;
pub mod compare;
pub mod cpu;
pub mod crowd;
pub mod drill;
pub mod environment;
pub mod fleet;
pub mod log;
pub mod oracle;
pub mod peer;
pub mod redis_time;
pub mod report;
pub mod resp;
pub mod schedule;
pub mod servers;
