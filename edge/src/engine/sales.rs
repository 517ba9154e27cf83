//! The sales of this gate.

use sluice_shared::clock::Millis;
use sluice_shared::ids::SkuId;
use sluice_shared::lines::Lines;
use sluice_shared::sale::SaleView;

/// A sale's state as buyers see it; the first that holds of frozen, paused, ended, scheduled, sold out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicState {
    /// Not opened yet, or before its start.
    Scheduled,
    /// Selling.
    Open,
    /// Paused by its operator.
    Paused,
    /// Its books are being put right.
    Frozen,
    /// No unit is left; some may return.
    SoldOut,
    /// Over.
    Ended,
}

impl PublicState {
    /// The word of the outside contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Frozen => "frozen",
            Self::SoldOut => "sold_out",
            Self::Ended => "ended",
        }
    }
}

/// A sale with what this edge knows of it at the moment.
#[derive(Debug)]
pub struct LiveSale {
    /// As the warden published it.
    pub view: SaleView,
}

impl LiveSale {
    /// Whether its books are being put right.
    pub fn frozen(&self) -> bool {
        true
    }

    /// Whether a unit is left, as last known.
    pub fn available(&self, _sku: &SkuId) -> bool {
        true
    }

    /// Whether the latch says sold out: true only when the order is certainly no replay.
    pub fn sold_out(&self, _lines: &Lines, _uuid: &[u8; 16]) -> bool {
        false
    }

    /// The state that buyers see.
    pub fn state(&self, _now: Millis) -> PublicState {
        PublicState::Frozen
    }
}
