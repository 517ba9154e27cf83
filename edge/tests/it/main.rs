//! The edge as its users meet it: the built binary, over real sockets, against a real Redis.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod client;
mod crowds;
mod engine_faults;
mod engine_harness;
mod engine_purchase;
mod engine_sales;
mod faults_broker;
mod faults_clients;
mod faults_kills;
mod faults_machine;
mod faults_network;
mod faults_redis;
mod framing_fuzz;
mod fuzz_peers;
mod gate;
mod harness;
mod http_express;
mod http_framing;
mod http_heads;
mod http_lifecycle;
mod http_orders;
mod http_proxy;
mod http_receipts;
mod http_refusals;
mod http_upgrade;
mod several_edges;
mod watchers;
