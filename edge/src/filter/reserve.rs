//! The last filter, and the only one with I/O: take the units.

use sluice_shared::clock::Millis;
use sluice_shared::record::OrderState;
use sluice_shared::sale::SaleView;
use sluice_shared::verdict::{Code, Extra, Rejection};

use crate::engine::{Answer, Outcome};

/// Units taken, now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The present state of the order.
    pub state: OrderState,
    /// Whether an earlier request took them.
    pub replayed: bool,
    /// Epoch of the reply that took them.
    pub epoch: u64,
    /// Place in the segment's sequence.
    pub seq: u64,
    /// When they were taken.
    pub at: Millis,
}

/// Puts the engine's outcome in the words of the outside contract.
pub fn judge(outcome: Outcome, view: &SaleView) -> Result<Taken, Rejection> {
    match outcome {
        Outcome::Accepted { state, replayed, epoch, seq, at } => {
            Ok(Taken { state, replayed, epoch, seq, at })
        }
        Outcome::Refused(answer) => Err(refusal(answer, view)),
        Outcome::Frozen => Err(frozen()),
        Outcome::Overloaded => Err(Rejection::new(Code::Overloaded, "too many orders wait; try again")),
        Outcome::Unavailable => Err(unknown()),
    }
}

fn refusal(answer: Answer, view: &SaleView) -> Rejection {
    match answer {
        Answer::Spent => {
            Rejection::new(Code::TokenSpent, "the order of this token was released; get a new token")
        }
        Answer::Reused => {
            Rejection::new(Code::TokenReused, "this token was used for other lines; get a new one")
        }
        Answer::Paused => paused(),
        Answer::Ended => ended(),
        Answer::NotStarted => not_started(view),
        Answer::TokenExpired => Rejection::new(Code::TokenExpired, "the token has expired; get a new one"),
        Answer::UnknownSku(sku) => {
            Rejection::new(Code::UnknownSku, format!("the sale {} has no SKU {sku}", view.sale))
        }
        Answer::Overloaded => Rejection::new(Code::Overloaded, "too many orders wait; try again"),
        Answer::Limit { held, limit } => {
            Rejection::new(Code::PurchaseLimit, format!("you hold {held} of at most {limit} units"))
                .with(Extra::Limit { held, limit })
        }
        Answer::SoldOut(sku) => {
            Rejection::new(Code::SoldOut, format!("not enough units of {sku} are left; some may return"))
        }
        // No refusals; should the engine ever say so, the same token tells the truth.
        Answer::Ok(_) | Answer::Replay(_) => unknown(),
    }
}

/// `frozen`.
pub fn frozen() -> Rejection {
    Rejection::new(Code::Frozen, "the sale is frozen for a moment; try again with the same token")
}

/// `paused`.
pub fn paused() -> Rejection {
    Rejection::new(Code::Paused, "the sale is paused; try again with the same token")
}

/// `ended`.
pub fn ended() -> Rejection {
    Rejection::new(Code::Ended, "the sale is over")
}

/// `not_started`, with the time when it does.
pub fn not_started(view: &SaleView) -> Rejection {
    let detail = format!("the sale starts at {}", view.starts_at.to_text());
    Rejection::new(Code::NotStarted, detail).with(Extra::StartsAt(view.starts_at))
}

/// `unavailable`.
pub fn unknown() -> Rejection {
    Rejection::new(Code::Unavailable, "the outcome is not known; ask again with the same token")
}
