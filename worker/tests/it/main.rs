//! Workers against real servers: PostgreSQL, RabbitMQ and Redis, each test with its own database,
//! virtual host and Redis.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod api_auth;
mod api_changes;
mod api_claims;
mod api_commands;
mod api_orders;
mod api_payments;
mod api_requests;
mod api_sales;
mod api_stock;
mod api_world;
mod audit_books;
mod audit_traps;
mod claims_whole;
mod explain_order;
mod faults_books;
mod faults_client;
mod faults_kills;
mod faults_promotion;
mod faults_warden;
mod harness;
mod orders_cancel;
mod orders_migrate;
mod orders_poison;
mod orders_process;
mod orders_queue;
mod orders_search;
mod orders_write;
mod outbox_events;
mod payments_beside;
mod payments_group;
mod payments_notice;
mod payments_race;
mod saga_ladder;
mod saga_steps;
mod timeout_expiry;
mod topology_commands;
mod warden_broker;
mod warden_lead;
mod warden_projection;
mod warden_reconcile;
mod warden_register;
mod warden_reopen;
mod warden_turns;
mod warden_world;
