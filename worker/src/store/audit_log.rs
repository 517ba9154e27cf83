//! The audit log: every write of the back office, in the same transaction as its effect.

use serde_json::Value;
use sqlx::PgConnection;

use super::StoreError;

/// Who does something, and in which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The name in the JWT, or the admin token's.
    pub who: String,
    /// The role that was used.
    pub role: &'static str,
    /// The request that did it.
    pub request_id: String,
}

/// What was done.
#[derive(Debug, Clone)]
pub(crate) struct Deed<'a> {
    /// `sale.open`, `stock.change`, …
    pub(crate) action: &'a str,
    /// `sale:demo`, `order:…`.
    pub(crate) target: String,
    /// How the target was.
    pub(crate) before: Option<Value>,
    /// How it is since.
    pub(crate) after: Option<Value>,
}

/// Writes one line of the log.
pub(crate) async fn note(
    transaction: &mut PgConnection,
    actor: &Actor,
    deed: Deed<'_>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_log (who, role, action, target, before, after, request_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&actor.who)
    .bind(actor.role)
    .bind(deed.action)
    .bind(deed.target)
    .bind(deed.before)
    .bind(deed.after)
    .bind(&actor.request_id)
    .execute(transaction)
    .await?;
    Ok(())
}
