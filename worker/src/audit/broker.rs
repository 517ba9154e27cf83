//! How much may still be in the broker: a bound, because a queue cannot be listed by sale.

use crate::command::topology::management::Management;
use crate::sources::Sources;

/// Messages that are waiting or being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depths {
    /// In the write queues: one order each.
    pub orders: usize,
    /// In the release queue and on the retry ladder: up to a hundred orders each.
    pub releases: usize,
    /// In the saga's queue and on the retry ladder: up to a hundred orders each.
    pub changes: usize,
}

/// The management interface, where its address is known.
#[derive(Debug)]
pub struct Broker {
    management: Management,
}

impl Broker {
    /// `None` when nobody said where it is: then nothing may be in the broker unseen.
    pub fn of(sources: &Sources) -> Option<Self> {
        let management = Management::of(sources.management_url.reveal(), sources.amqp_url.reveal());
        management.ok().map(|management| Self { management })
    }

    /// The depths now; `None` when the broker does not answer.
    pub async fn depths(&self) -> Option<Depths> {
        let management = self.management.clone();
        let queues = tokio::task::spawn_blocking(move || management.queues()).await.ok()?;
        let queues = match queues {
            Ok(queues) => queues,
            Err(error) => {
                tracing::warn!(%error, "the broker's queues cannot be counted");
                return None;
            }
        };
        let depth = |prefixes: &[&str]| -> usize {
            queues
                .iter()
                .filter(|queue| {
                    let name = queue["name"].as_str().unwrap_or_default();
                    prefixes.iter().any(|prefix| name.starts_with(prefix))
                })
                .filter_map(|queue| usize::try_from(queue["messages"].as_u64()?).ok())
                .sum()
        };
        Some(Depths {
            orders: depth(&["sluice.orders.write."]),
            releases: depth(&["sluice.stock.release", "sluice.retry."]),
            changes: depth(&["sluice.saga", "sluice.retry."]),
        })
    }
}
