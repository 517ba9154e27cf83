//! What a warden decides: who leads, which edges may hold orders, and how a segment is re-opened.

pub mod lead;
pub mod register;
pub mod reopening;
