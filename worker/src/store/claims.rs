//! Claims by receipt that could not be honoured: orders that were accepted and lost.

use serde_json::json;
use sqlx::{Postgres, QueryBuilder};
use time::OffsetDateTime;

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::lines::Lines;

use super::audit_log::{Actor, Deed, note};
use super::ledger::id;
use super::{Store, StoreError, millis, moment};
use crate::store::{signed, unsigned};

/// A claim as an edge tells it, which has verified the receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The order that was accepted.
    pub order: OrderId,
    /// Its sale.
    pub sale: SaleId,
    /// Who bought.
    pub user: UserId,
    /// What.
    pub lines: Lines,
    /// Epoch of the acceptance.
    pub epoch: u64,
    /// Place in its segment's sequence.
    pub seq: u64,
    /// When it was accepted.
    pub accepted: Millis,
    /// Why it cannot be honoured: a code of the outside contract.
    pub reason: String,
}

/// What has become of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet: the buyer has no order.
    Open,
    /// The order is in the books after all.
    Honoured,
    /// An operator has seen to it.
    Resolved,
}

impl Standing {
    /// The word in the back office.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Honoured => "honoured",
            Self::Resolved => "resolved",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Open, Self::Honoured, Self::Resolved].into_iter().find(|standing| standing.as_str() == word)
    }
}

/// A claim in the books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    /// As it came the last time.
    pub claim: Claim,
    /// What has become of it.
    pub standing: Standing,
    /// How often it came.
    pub times: u64,
    /// When it came first.
    pub claimed_at: Millis,
    /// When it came last.
    pub last_at: Millis,
    /// When and why an operator has resolved it.
    pub resolved: Option<(Millis, String)>,
}

#[derive(sqlx::FromRow)]
struct RawClaim {
    order_id: String,
    sale: String,
    user_id: String,
    lines: String,
    epoch: i64,
    seq: i64,
    accepted_at: OffsetDateTime,
    reason: String,
    times: i64,
    claimed_at: OffsetDateTime,
    last_at: OffsetDateTime,
    resolved_at: Option<OffsetDateTime>,
    resolved_why: Option<String>,
    standing: String,
}

/// What [`RawClaim`] is read from; an order's row counts for more than anybody's word.
const READ: &str = "SELECT * FROM (
    SELECT c.*, CASE WHEN EXISTS (SELECT 1 FROM orders o WHERE o.id = c.order_id) THEN 'honoured'
                     WHEN c.resolved_at IS NOT NULL THEN 'resolved' ELSE 'open' END AS standing
    FROM claims c) claims WHERE true";

impl TryFrom<RawClaim> for ClaimRow {
    type Error = StoreError;

    fn try_from(raw: RawClaim) -> Result<Self, StoreError> {
        let bad = |what: &str| StoreError::Broken(format!("claim {}: {what}", raw.order_id));
        Ok(Self {
            claim: Claim {
                order: OrderId::parse(&raw.order_id).ok_or_else(|| bad("order"))?,
                sale: id(SaleId::parse(&raw.sale))?,
                user: id(UserId::parse(&raw.user_id))?,
                lines: Lines::parse(&raw.lines).map_err(|_| bad("lines"))?,
                epoch: unsigned(raw.epoch),
                seq: unsigned(raw.seq),
                accepted: millis(raw.accepted_at),
                reason: raw.reason.clone(),
            },
            standing: Standing::parse(&raw.standing).ok_or_else(|| bad("standing"))?,
            times: unsigned(raw.times),
            claimed_at: millis(raw.claimed_at),
            last_at: millis(raw.last_at),
            resolved: raw.resolved_at.map(millis).zip(raw.resolved_why.clone()),
        })
    }
}

impl Store {
    /// Notes a claim, once an order; one that comes again keeps what is known of it but the reason.
    pub async fn note_claim(&self, claim: &Claim) -> Result<(), StoreError> {
        let accepted = moment(claim.accepted);
        let accepted = accepted.ok_or_else(|| StoreError::Broken("no calendar has this time".to_owned()))?;
        sqlx::query(
            "INSERT INTO claims (order_id, sale, user_id, lines, epoch, seq, accepted_at, reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (order_id) DO UPDATE
             SET reason = excluded.reason, times = claims.times + 1, last_at = now()",
        )
        .bind(claim.order.to_string())
        .bind(claim.sale.as_str())
        .bind(claim.user.as_str())
        .bind(claim.lines.to_string())
        .bind(signed(claim.epoch))
        .bind(signed(claim.seq))
        .bind(accepted)
        .bind(&claim.reason)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Claims by the order's id; those after `after`.
    pub async fn claims(
        &self,
        sale: Option<&SaleId>,
        standing: Option<Standing>,
        after: Option<&OrderId>,
        limit: u32,
    ) -> Result<Vec<ClaimRow>, StoreError> {
        let mut query: QueryBuilder<Postgres> = QueryBuilder::new(READ);
        if let Some(sale) = sale {
            query.push(" AND sale = ").push_bind(sale.as_str());
        }
        if let Some(standing) = standing {
            query.push(" AND standing = ").push_bind(standing.as_str());
        }
        if let Some(after) = after {
            query.push(" AND order_id > ").push_bind(after.to_string());
        }
        query.push(" ORDER BY order_id LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<RawClaim> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(ClaimRow::try_from).collect()
    }

    /// Takes an operator's word that the buyer has been seen to; a claim that is resolved stays as it was.
    /// `None`: there is no such claim.
    pub async fn resolve_claim(
        &self,
        actor: &Actor,
        order: &OrderId,
        why: &str,
    ) -> Result<Option<ClaimRow>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let resolved = sqlx::query(
            "UPDATE claims SET resolved_at = now(), resolved_why = $2
             WHERE order_id = $1 AND resolved_at IS NULL",
        )
        .bind(order.to_string())
        .bind(why)
        .execute(&mut *transaction)
        .await?;
        if resolved.rows_affected() > 0 {
            let after = Some(json!({ "resolved": why }));
            let deed =
                Deed { action: "claim.resolve", target: format!("order:{order}"), before: None, after };
            note(&mut transaction, actor, deed).await?;
        }
        transaction.commit().await?;
        let mut query: QueryBuilder<Postgres> = QueryBuilder::new(READ);
        query.push(" AND order_id = ").push_bind(order.to_string());
        let raw: Option<RawClaim> = query.build_query_as().fetch_optional(&self.pool).await?;
        raw.map(ClaimRow::try_from).transpose()
    }
}
