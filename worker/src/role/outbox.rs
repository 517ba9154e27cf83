//! The `outbox` role: what the books tell, to RabbitMQ.
//!
//! Rows are claimed, published, confirmed and marked in one transaction. Whoever dies between confirm
//! and mark has them published again, which changes nothing: every reader is idempotent.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_shared::amqp::{AmqpError, Link, Outgoing, Publisher};
use sluice_shared::failpoint;
use sluice_shared::topology::EVENTS;

use crate::process::{Context, Stop};
use crate::store::outbox::OutboxRow;

/// How long the broker may take to confirm a batch: less than a transaction may be idle.
const CONFIRM: Duration = Duration::from_secs(10);
/// Rows that the broker has refused are let alone until all others are published, or there are so many.
const REFUSED_MAX: usize = 5_000;
/// Rows that come within it go out together: a transaction for each would cost more than the waiting.
const LINGER: Duration = Duration::from_millis(50);
/// Published rows deleted at once, and how often it is looked for them.
const TIDY_MAX: u32 = 1000;
const TIDY: Duration = Duration::from_secs(60);

/// Of a row's payload, what its message is labelled with.
#[derive(serde::Deserialize)]
struct Events<'a> {
    #[serde(borrow)]
    events: Vec<Event<'a>>,
}

#[derive(serde::Deserialize)]
struct Event<'a> {
    sale: &'a str,
}

/// Runs until told to stop.
pub async fn run(context: Context, mut stop: Stop) -> anyhow::Result<()> {
    let name = format!("{} outbox", context.who);
    let link = Link::connect(context.config.amqp.url.reveal(), &name).await?;
    let publisher = link.publisher().await?;
    let store = &context.store;
    let mut bell = store.bounded(store.outbox_bell()).await?;
    let (mut refused, mut tidied) = (Vec::new(), Instant::now());
    while !*stop.borrow() {
        if publish_some(&context, &publisher, &mut refused).await? {
            continue;
        }
        refused.clear();
        if tidied.elapsed() > TIDY {
            let kept = context.config.outbox.keep;
            while store.bounded(store.forget_published(kept, TIDY_MAX)).await? == u64::from(TIDY_MAX) {}
            // One whose server is gone without a word never rings again.
            drop(bell);
            bell = store.bounded(store.outbox_bell()).await?;
            tidied = Instant::now();
            // What came between the two.
            continue;
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            rung = bell.ring(LINGER) => rung?,
            () = tokio::time::sleep(context.config.outbox.poll) => {}
        }
    }
    link.close().await;
    Ok(())
}

/// Publishes a batch of rows, but for those that were refused; answers whether there may be more.
async fn publish_some(
    context: &Context,
    publisher: &Publisher,
    refused: &mut Vec<i64>,
) -> anyhow::Result<bool> {
    let began = Instant::now();
    let most = context.config.outbox.batch_max;
    let store = &context.store;
    let batch = store.bounded(store.claim_outbox(most, refused)).await?;
    if batch.rows.is_empty() {
        return Ok(false);
    }
    let full = u32::try_from(batch.rows.len()).is_ok_and(|rows| rows >= most);
    let (confirmed, broken) = tokio::time::timeout(CONFIRM, hand_over(publisher, &batch.rows))
        .await
        .context("rabbitmq did not confirm in time")?;
    failpoint::reach("F69.before-mark");
    refused.extend(batch.rows.iter().map(|row| row.id).filter(|id| !confirmed.contains(id)));
    store.bounded(batch.mark(&confirmed)).await?;
    context.metrics.job("outbox", if broken.is_none() { "done" } else { "broken" }, began.elapsed());
    match broken {
        None => Ok(full && refused.len() < REFUSED_MAX),
        Some(error) => Err(error.into()),
    }
}

/// The sale that all events of a row are about; `None` where they are of several.
fn sale_of(payload: &str) -> Option<&str> {
    let Events { events } = serde_json::from_str(payload).ok()?;
    let first = events.first()?.sale;
    events.iter().all(|event| event.sale == first).then_some(first)
}

/// Publishes rows and waits for the confirms: those that came, and what broke the connection if it
/// did. A row that the broker refuses stays for later and holds up none of the others.
async fn hand_over(publisher: &Publisher, rows: &[OutboxRow]) -> (Vec<i64>, Option<AmqpError>) {
    let (mut confirms, mut confirmed, mut broken) = (Vec::with_capacity(rows.len()), Vec::new(), None);
    for row in rows {
        let id = format!("outbox-{}", row.id);
        let (key, body) = (row.topic.as_str(), row.payload.as_bytes());
        let sale = sale_of(&row.payload);
        let message =
            Outgoing { exchange: EVENTS, key, id: &id, kind: key, sale, body, ..Outgoing::default() };
        match publisher.publish(message).await {
            Ok(confirm) => confirms.push((row, confirm)),
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    for (row, confirm) in confirms {
        match confirm.await {
            Ok(()) => confirmed.push(row.id),
            Err(error @ AmqpError::Broken(_)) => broken = Some(error),
            Err(error) => tracing::warn!(row = row.id, topic = row.topic, %error, "an event stays"),
        }
    }
    (confirmed, broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_sale_of_all_its_events_or_none() {
        let row = |sales: &[&str]| {
            let events: Vec<_> = sales.iter().map(|sale| format!(r#"{{"v":1,"sale":"{sale}"}}"#)).collect();
            format!(r#"{{"v": 1, "events": [{}]}}"#, events.join(", "))
        };
        assert_eq!(sale_of(&row(&["demo", "demo"])), Some("demo"));
        assert_eq!(sale_of(&row(&["demo", "other"])), None);
        assert_eq!((sale_of(&row(&[])), sale_of("{")), (None, None));
    }
}
