//! What edges and wardens agree on, without I/O: the nouns, the messages, and the state machines that
//! keep an accepted order from being lost. Nothing here reads a clock, a socket or a store; the crate
//! `model` explores the same code exhaustively.
//!
//! The map, from the inside out: [`ids`], [`lines`], [`record`], [`clock`] and [`keys`] are the nouns;
//! [`sale`] is what edges and warden tell each other about a sale, [`message`] what an edge tells the
//! workers; [`place`] says which segment and which write queue an order goes to; [`edge`] and [`warden`]
//! are the machines of the two sides.

pub mod clock;
pub mod edge;
pub mod ids;
pub mod keys;
pub mod lines;
pub mod message;
pub mod place;
pub mod record;
pub mod sale;
pub mod warden;
