//! The life of a sale: which step leads where, and what must hold before selling.

use std::sync::Arc;

use sluice_shared::clock::Millis;
use sluice_shared::redis::{Fault, cmd};
use sluice_shared::sale::{AcceptAfter, SaleStep};
use sluice_shared::verdict::{Code, Rejection};

use super::Api;
use super::call::Call;
use super::reply::{self, Answer};
use super::sales::no_such_sale;
use super::sheet::SaleSheet;
use super::spread::until_edges_know;
use crate::store::sales::{Changed, SaleRow};

/// Sales on the shelf at the most: edges know so many.
const SALES_MAX: u64 = 10_000;

/// What an operator may ask of a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Put it on the shelf.
    Preload,
    /// Arm it.
    Open,
    /// Stop selling for a while.
    Pause,
    /// Go on selling.
    Resume,
    /// End it.
    Close,
    /// Take the end back.
    Reopen,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Preload, Self::Open, Self::Pause, Self::Resume, Self::Close, Self::Reopen];

    /// The last word of the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preload => "preload",
            Self::Open => "open",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Close => "close",
            Self::Reopen => "reopen",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Self::Preload => "sale.preload",
            Self::Open => "sale.open",
            Self::Pause => "sale.pause",
            Self::Resume => "sale.resume",
            Self::Close => "sale.close",
            Self::Reopen => "sale.reopen",
        }
    }

    /// Where this step leads from here; the same place when the sale is there already, `None` when it
    /// does not lead from here.
    pub fn leads(self, from: SaleStep, closed_from: Option<SaleStep>) -> Option<SaleStep> {
        use SaleStep::{Closed, Created, Open, Paused, Preloaded};
        match (self, from) {
            (Self::Preload, Created | Preloaded) => Some(Preloaded),
            (Self::Open, Preloaded | Open) | (Self::Resume, Paused | Open) => Some(Open),
            (Self::Pause, Open | Paused) => Some(Paused),
            (Self::Close, Preloaded | Open | Paused | Closed) => Some(Closed),
            (Self::Reopen, Closed) => closed_from,
            _ => None,
        }
    }

    fn judge(self, before: &SaleRow, now: Millis) -> Changed {
        if self == Self::Reopen && before.is_cleared(now) {
            return Err(Rejection::new(Code::WrongState, "the sale is over for good: its shelf is cleared"));
        }
        let to = self.leads(before.step, before.closed_from).ok_or_else(|| {
            let (step, state) = (self.as_str(), before.step.as_str());
            Rejection::new(Code::WrongState, format!("{step} does not lead from {state}"))
        })?;
        let mut after = before.clone();
        if to != before.step {
            after.step = to;
            after.closed_from = (to == SaleStep::Closed).then_some(before.step);
        }
        Ok(after)
    }
}

/// `POST /admin/v1/sales/{sale}/STEP`
pub async fn step(api: Arc<Api>, call: Call, step: Step) -> Answer {
    call.no_members()?;
    let sale = call.sale()?;
    let seen = api.store.sale(&sale).await.map_err(reply::store)?.ok_or_else(no_such_sale)?;
    let to = step.judge(&seen, Millis::now())?;
    if to.step == SaleStep::Open && seen.step != SaleStep::Open {
        durable(&api, to.accept_after).await?;
    }
    if to.step == SaleStep::Preloaded && seen.step == SaleStep::Created {
        has_room(&api).await?;
    }
    // What was seen is judged again under the lock.
    let changed = api
        .store
        .change_sale(&sale, &call.actor()?, step.action(), |before, now| step.judge(before, now))
        .await
        .map_err(reply::store)?;
    let row = changed.ok_or_else(no_such_sale)??;
    until_edges_know(&api, &row).await;
    reply::json(200, &SaleSheet::of(&row))
}

/// Edges would leave out the oldest of too many sales, whether they sell or not.
async fn has_room(api: &Api) -> Result<(), Rejection> {
    if api.store.sales_on_the_shelf().await.map_err(reply::store)? < SALES_MAX {
        return Ok(());
    }
    let detail = format!(
        "there are {SALES_MAX} sales on the shelf, and may be no more; one leaves it 24 hours after it was \
         closed and has ended"
    );
    Err(Rejection::new(Code::WrongState, detail))
}

/// What Redis must be like: no sale opens where it may throw keys away, or stands still while it frees a
/// large one; and none whose orders count as accepted by their journal alone where a power cut may take what
/// was answered.
const ALWAYS: [(&str, &str); 3] = [
    ("maxmemory-policy", "noeviction"),
    ("lazyfree-lazy-expire", "yes"),
    ("lazyfree-lazy-server-del", "yes"),
];
const DURABLE: [(&str, &str); 2] = [("appendonly", "yes"), ("appendfsync", "always")];

async fn durable(api: &Api, accept_after: AcceptAfter) -> Result<(), Rejection> {
    let journal = DURABLE.iter().filter(|_| accept_after == AcceptAfter::Journal);
    for (name, needed) in ALWAYS.iter().chain(journal) {
        let mut ask = cmd("CONFIG");
        ask.arg("GET").arg(name);
        let found: Vec<String> = match api.redis.run("reading redis' configuration", &ask).await {
            Err(Fault::Refused { why, .. }) => {
                let detail = format!("redis does not let its setting {name} be read (CONFIG GET): {why}");
                return Err(Rejection::new(Code::WrongState, detail));
            }
            other => other.map_err(reply::redis)?,
        };
        let found = found.get(1).map_or("unknown", String::as_str);
        if found != *needed {
            let detail = format!("redis' setting {name} is {found}; a sale opens only on {needed}");
            return Err(Rejection::new(Code::WrongState, detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: from; columns: preload, open, pause, resume, close, reopen. The outside contract's table.
    #[test]
    fn steps_lead_where_the_contract_says() {
        use SaleStep::{Closed, Created, Open, Paused, Preloaded};
        let (no, back) = (None, Some(Paused));
        let table = [
            (Created, [Some(Preloaded), no, no, no, no, no]),
            (Preloaded, [Some(Preloaded), Some(Open), no, no, Some(Closed), no]),
            (Open, [no, Some(Open), Some(Paused), Some(Open), Some(Closed), no]),
            (Paused, [no, no, Some(Paused), Some(Open), Some(Closed), no]),
            (Closed, [no, no, no, no, Some(Closed), back]),
        ];
        for (from, leads) in table {
            for (step, to) in Step::ALL.into_iter().zip(leads) {
                assert_eq!(step.leads(from, back.filter(|_| from == Closed)), to, "{step:?} from {from:?}");
            }
        }
    }
}
