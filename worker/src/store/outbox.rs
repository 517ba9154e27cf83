//! The outbox: events written with their cause, claimed row by row, marked once the broker has them.

use std::time::Duration;

use futures_util::FutureExt;
use sqlx::postgres::PgListener;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::mpsc;

use sluice_shared::message::{OrderEvent, OrderEvents, VERSION};

use super::{Store, StoreError};

/// Topic of orders that were written.
pub const CREATED: &str = "order.created";
/// Topic of orders that moved on with their units.
pub const CHANGED: &str = "order.changed";
/// Topic of orders whose units go back.
pub const RELEASE: &str = "stock.release";

/// Events in one row, and so in one message.
pub const EVENTS_MAX: usize = 100;
/// The bell that processes ring once their writers have committed.
const BELL: &str = "sluice_outbox";

/// How often one process rings at the most.
const RING: Duration = Duration::from_millis(10);
/// Commits that notify are carried out one after another in the whole cluster, each with its write to the disk. So
/// no writer rings in its own transaction.
const RINGING: &str = "NOTIFY sluice_outbox";

/// Rings the outbox' bell for a process: all that is committed while it rings is one ring more.
#[derive(Debug, Clone)]
pub(super) struct Ringer(mpsc::Sender<()>);

impl Ringer {
    /// Rings on a connection of this pool, until the last of its copies is gone.
    pub(super) fn start(pool: PgPool) -> Self {
        let (rope, mut pulled) = mpsc::channel(1);
        tokio::spawn(async move {
            while pulled.recv().await.is_some() {
                // Whoever waits for the bell looks by himself too: a lost ring is a delay.
                if let Err(error) = sqlx::query(RINGING).execute(&pool).await {
                    tracing::debug!(%error, "the outbox' bell did not ring");
                }
                tokio::time::sleep(RING).await;
            }
        });
        Self(rope)
    }

    /// Rings soon: what has been committed before is seen by whoever hears it.
    fn ring(&self) {
        // One that is full rings anyway, later than now.
        let _ = self.0.try_send(());
    }
}

/// Adds events to the outbox. Whoever commits them rings.
pub(crate) async fn push(
    connection: &mut PgConnection,
    topic: &'static str,
    events: &[OrderEvent],
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let payloads: Result<Vec<String>, _> = events
        .chunks(EVENTS_MAX)
        .map(|chunk| serde_json::to_string(&OrderEvents { v: VERSION, events: chunk.to_vec() }))
        .collect();
    let payloads = payloads.map_err(|error| StoreError::Broken(format!("writing events: {error}")))?;
    sqlx::query(
        "INSERT INTO outbox (topic, payload) SELECT $1, payload::jsonb FROM unnest($2::text[]) AS new (payload)",
    )
    .bind(topic)
    .bind(payloads)
    .execute(connection)
    .await?;
    Ok(())
}

/// One row to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its number; not an order of commits.
    pub id: i64,
    /// Routing key.
    pub topic: String,
    /// JSON.
    pub payload: String,
}

/// Rows that nobody else publishes meanwhile; dropped unmarked, they are free again.
#[derive(Debug)]
pub struct OutboxBatch {
    claim: Transaction<'static, Postgres>,
    /// The rows.
    pub rows: Vec<OutboxRow>,
}

impl OutboxBatch {
    /// Marks the rows that the broker has confirmed, and lets go of the others.
    pub async fn mark(mut self, confirmed: &[i64]) -> Result<(), StoreError> {
        sqlx::query("UPDATE outbox SET published_at = now() WHERE id = ANY($1)")
            .bind(confirmed)
            .execute(&mut *self.claim)
            .await?;
        Ok(self.claim.commit().await?)
    }
}

/// The outbox' bell. A lost ring is made up for by looking regularly.
#[derive(Debug)]
pub struct Bell {
    listener: PgListener,
}

impl Bell {
    /// Waits until it rings, and a little longer: all that rings meanwhile is one ring. Whatever was
    /// committed before one of them can be read afterwards.
    pub async fn ring(&mut self, linger: Duration) -> Result<(), StoreError> {
        self.listener.recv().await?;
        tokio::time::sleep(linger).await;
        // Not `next_buffered`: it only knows what came during a statement of its own.
        while let Some(ring) = self.listener.recv().now_or_never() {
            ring?;
        }
        Ok(())
    }
}

impl Store {
    /// Claims the oldest unpublished rows that nobody holds, but for these. Never by a cursor: a lower
    /// number may be committed after a higher one.
    pub async fn claim_outbox(&self, most: u32, without: &[i64]) -> Result<OutboxBatch, StoreError> {
        let mut claim = self.pool.begin().await?;
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "SELECT id, topic, payload::text FROM outbox WHERE published_at IS NULL AND id <> ALL($2)
             ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED",
        )
        .bind(i64::from(most))
        .bind(without)
        .fetch_all(&mut *claim)
        .await?;
        let rows = rows.into_iter().map(|(id, topic, payload)| OutboxRow { id, topic, payload }).collect();
        Ok(OutboxBatch { claim, rows })
    }

    /// Rings the bell, once events are committed.
    pub(crate) fn ring(&self) {
        self.ringer.ring();
    }

    /// Follows the bell.
    pub async fn outbox_bell(&self) -> Result<Bell, StoreError> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(BELL).await?;
        Ok(Bell { listener })
    }

    /// Deletes some rows that were published longer ago than this; answers how many.
    pub async fn forget_published(&self, older: Duration, most: u32) -> Result<u64, StoreError> {
        let deleted = sqlx::query(
            "DELETE FROM outbox WHERE id IN (
                 SELECT id FROM outbox WHERE published_at < now() - make_interval(secs => $1)
                 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(older.as_secs_f64())
        .bind(i64::from(most))
        .execute(&self.pool)
        .await?;
        Ok(deleted.rows_affected())
    }

    /// Rows waiting to be published, and the age of the oldest.
    pub async fn outbox_depth(&self) -> Result<(u64, Duration), StoreError> {
        let (count, age): (i64, f64) = sqlx::query_as(
            "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
             FROM outbox WHERE published_at IS NULL",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((u64::try_from(count).unwrap_or(0), Duration::from_secs_f64(age.max(0.0))))
    }
}
