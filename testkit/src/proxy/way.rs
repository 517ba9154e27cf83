//! The two directions of a connection.

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// Back.
    Down,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Up, Self::Down];

    pub(super) fn at(self) -> usize {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }
}
