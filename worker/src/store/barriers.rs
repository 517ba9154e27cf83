//! Barriers: what the orders role notes when a warden's message came through its queue.

use super::{Store, StoreError};

impl Store {
    /// How many queues a barrier has come through.
    pub async fn barrier_shards(&self, barrier: &str) -> Result<usize, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM barriers WHERE id = $1")
            .bind(barrier)
            .fetch_one(&self.pool)
            .await?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Forgets the barriers of rebuilds long past.
    pub async fn forget_old_barriers(&self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM barriers WHERE at < now() - interval '1 day'").execute(&self.pool).await?;
        Ok(())
    }
}
