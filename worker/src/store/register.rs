//! The register of edges: who may hold accepted orders. A rebuild waits for each one that stands here,
//! so it is read from PostgreSQL, never from the Redis that may have lost it.

use serde_json::json;
use sluice_protocol::warden::register::Registered;
use sluice_shared::ids::InstanceId;
use sluice_shared::sale::Heartbeat;
use time::OffsetDateTime;

use super::audit_log::{Actor, Deed, note};
use super::{Store, StoreError, millis};
use crate::store::{id, signed, unsigned};

type EdgeLine = (String, String, String, i64, OffsetDateTime);

impl Store {
    /// Every edge that is not struck off.
    pub async fn registered_edges(&self) -> Result<Vec<Registered>, StoreError> {
        let rows: Vec<EdgeLine> = sqlx::query_as(
            "SELECT instance, name, lock, start, registered_at FROM edges
             WHERE struck_at IS NULL ORDER BY instance",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(registered).collect()
    }

    /// Which of these instances are struck off.
    pub async fn struck_edges(&self, instances: &[String]) -> Result<Vec<String>, StoreError> {
        let struck = sqlx::query_scalar(
            "SELECT instance FROM edges WHERE instance = ANY($1) AND struck_at IS NOT NULL",
        );
        Ok(struck.bind(instances).fetch_all(&self.pool).await?)
    }

    /// Writes an edge into the register. `false`: it was struck off, or a later start of its lock file
    /// is known, which proves this one dead; it must not sell.
    pub async fn register_edge(&self, edge: &Heartbeat) -> Result<bool, StoreError> {
        sqlx::query(
            "INSERT INTO edges (instance, name, lock, start)
             SELECT $1, $2, $3, $4
             WHERE NOT EXISTS (SELECT 1 FROM edges WHERE lock = $3 AND start > $4)
             ON CONFLICT (instance) DO UPDATE
             SET struck_at = NULL, struck_why = NULL, registered_at = now() WHERE edges.returns",
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

    /// Notes an operator's word that an edge is dead. `false`: it is not in the register.
    pub async fn condemn_edge(
        &self,
        instance: &InstanceId,
        actor: &Actor,
        why: &str,
    ) -> Result<bool, StoreError> {
        let mut writing = self.pool.begin().await?;
        let noted = sqlx::query(
            "UPDATE edges SET condemned_at = now(), condemned_why = $2
             WHERE instance = $1 AND struck_at IS NULL",
        )
        .bind(instance.as_str())
        .bind(why)
        .execute(&mut *writing)
        .await?;
        if noted.rows_affected() == 0 {
            return Ok(false);
        }
        let after = Some(json!({ "why": why }));
        let target = format!("edge:{instance}");
        note(&mut writing, actor, Deed { action: "edge.strike", target, before: None, after }).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Edges that operators called dead within the last ten minutes, with the reason.
    pub async fn condemned_edges(&self) -> Result<Vec<(InstanceId, String)>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT instance, condemned_why FROM edges
             WHERE struck_at IS NULL AND condemned_at > now() - interval '10 minutes'",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|(instance, why)| Ok((id(InstanceId::parse(&instance))?, why))).collect()
    }

    /// Strikes an edge off; says why, and whether it may be registered again.
    pub async fn strike_edge(
        &self,
        instance: &InstanceId,
        why: &str,
        returns: bool,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE edges SET struck_at = now(), struck_why = $2, returns = $3
             WHERE instance = $1 AND struck_at IS NULL",
        )
        .bind(instance.as_str())
        .bind(why)
        .bind(returns)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

fn registered((instance, name, lock, start, since): EdgeLine) -> Result<Registered, StoreError> {
    let (instance, start) = (id(InstanceId::parse(&instance))?, unsigned(start));
    Ok(Registered { instance, name, lock, start, since: millis(since) })
}
