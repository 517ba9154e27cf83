//! The register of edges: who may hold accepted orders. A rebuild waits for each one that stands here,
//! so it is read from PostgreSQL, never from the Redis that may have lost it.

use sluice_shared::ids::InstanceId;
use sluice_shared::sale::Heartbeat;

use super::segments::{id, signed, unsigned};
use super::{Store, StoreError};

/// An edge in the register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// This start of it.
    pub instance: InstanceId,
    /// Its configured name.
    pub name: String,
    /// Its lock file.
    pub lock: String,
    /// Which start of that lock file.
    pub start: u64,
}

type EdgeLine = (String, String, String, i64);

impl Store {
    /// Every edge that is not struck off.
    pub async fn registered_edges(&self) -> Result<Vec<Registered>, StoreError> {
        let rows: Vec<EdgeLine> = sqlx::query_as(
            "SELECT instance, name, lock, start FROM edges WHERE struck_at IS NULL ORDER BY instance",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(registered).collect()
    }

    /// Writes an edge into the register. `false`: it was struck off, or a later start of its lock file
    /// is known, which proves this one dead; it must not sell.
    pub async fn register_edge(&self, edge: &Heartbeat) -> Result<bool, StoreError> {
        sqlx::query(
            "INSERT INTO edges (instance, name, lock, start)
             SELECT $1, $2, $3, $4
             WHERE NOT EXISTS (SELECT 1 FROM edges WHERE lock = $3 AND start > $4)
             ON CONFLICT DO NOTHING",
        )
        .bind(edge.instance.as_str())
        .bind(&edge.name)
        .bind(&edge.lock)
        .bind(signed(edge.start))
        .execute(&self.pool)
        .await?;
        let stands = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM edges WHERE instance = $1 AND struck_at IS NULL)",
        );
        Ok(stands.bind(edge.instance.as_str()).fetch_one(&self.pool).await?)
    }

    /// Strikes an edge off; says why.
    pub async fn strike_edge(&self, instance: &InstanceId, why: &str) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE edges SET struck_at = now(), struck_why = $2
             WHERE instance = $1 AND struck_at IS NULL",
        )
        .bind(instance.as_str())
        .bind(why)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

fn registered((instance, name, lock, start): EdgeLine) -> Result<Registered, StoreError> {
    Ok(Registered { instance: id(InstanceId::parse(&instance))?, name, lock, start: unsigned(start) })
}
