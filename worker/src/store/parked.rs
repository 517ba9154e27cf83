//! Messages that no retry can mend, and barriers that came through their queue.

use super::{Store, StoreError};

impl Store {
    /// Keeps a message that cannot be worked on, for an operator: once, however often it comes, as long as
    /// no thousand others came between.
    pub async fn park(&self, queue: &str, reason: &str, body: &[u8]) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO parked (queue, reason, body)
             SELECT $1, $2, $3 WHERE NOT EXISTS (
                 SELECT 1 FROM (SELECT queue, body FROM parked ORDER BY id DESC LIMIT 1000) AS last
                 WHERE last.queue = $1 AND last.body = $3)",
        )
        .bind(queue)
        // A text of PostgreSQL cannot hold a NUL.
        .bind(reason.replace('\0', "\u{fffd}"))
        .bind(body)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes that everything before a warden's barrier in this queue is committed.
    pub async fn note_barrier(&self, barrier: &str, shard: u16) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO barriers (id, shard) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(barrier)
            .bind(i16::try_from(shard).unwrap_or(i16::MAX))
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
