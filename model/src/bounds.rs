//! How much there is of everything: more finds the same and takes longer.

/// Orders.
pub const ORDERS: usize = 2;
/// Edges.
pub const EDGES: usize = 2;
/// Wardens.
pub const WARDENS: usize = 2;
/// Attempts to buy.
pub const CALLS: usize = 3;
/// Epochs 1 to this one.
pub const EPOCHS: u8 = 5;
