//! What an edge answers for: the orders that it holds until the broker has them, the places that they
//! take up, the copies that it keeps, and when it sends.

pub mod departure;
pub mod dues;
pub mod held;
mod lane;
pub mod pace;
pub mod room;
pub mod spares;
