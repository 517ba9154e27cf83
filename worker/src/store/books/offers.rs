//! What a sale offers, and how its stock was changed.

use sluice_shared::ids::SkuId;

use super::{Books, Currency, currency};
use crate::store::StoreError;
use crate::store::{id, unsigned};

/// An offer's row.
#[derive(Debug, Clone)]
pub struct OfferFact {
    /// The SKU.
    pub sku: SkuId,
    /// What a unit costs, which never changes once it is on sale.
    pub price: i64,
    /// In which currency.
    pub currency: Currency,
    /// Units that may be sold in all.
    pub stock: u64,
    /// Units that live orders hold.
    pub taken: u64,
    /// Units a user may hold now.
    pub per_user: u64,
    /// The ledger's head.
    pub line: u64,
    /// The head's hash.
    pub hash: Vec<u8>,
}

/// A stock change's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeFact {
    /// Its idempotency key.
    pub key: String,
    /// The SKU.
    pub sku: SkuId,
    /// Units added; withdrawn when negative.
    pub delta: i64,
    /// pending, done or refused.
    pub state: String,
}

type OfferLine = (String, i64, String, i64, i64, i32, i64, Vec<u8>);

impl Books {
    /// Its offers.
    pub async fn offers(&mut self) -> Result<Vec<OfferFact>, StoreError> {
        let rows: Vec<OfferLine> = sqlx::query_as(
            "SELECT sku, price, currency, stock, taken, per_user, ledger_line, ledger_hash FROM offers
             WHERE sale = $1 ORDER BY place, sku",
        )
        .bind(self.sale.as_str())
        .fetch_all(&mut *self.snapshot)
        .await?;
        rows.into_iter()
            .map(|(sku, price, code, stock, taken, per_user, line, hash)| {
                Ok(OfferFact {
                    sku: id(SkuId::parse(&sku))?,
                    price,
                    currency: currency(&code)?,
                    stock: unsigned(stock),
                    taken: unsigned(taken),
                    per_user: u64::try_from(per_user).unwrap_or(0),
                    line: unsigned(line),
                    hash,
                })
            })
            .collect()
    }

    /// The most units that a user was ever allowed of each SKU: a limit that is lowered later makes
    /// nobody a wrongdoer.
    pub async fn limits(&mut self) -> Result<Vec<(SkuId, u64)>, StoreError> {
        let rows: Vec<(String, i32)> = sqlx::query_as(
            "SELECT sku, max(per_user) FROM (
                 SELECT sku, per_user FROM offers WHERE sale = $1
                 UNION ALL
                 SELECT item->>'sku', (item->>'per_user')::integer
                 FROM audit_log, jsonb_array_elements(coalesce(before->'items', '[]')) item
                 WHERE target = 'sale:' || $1) known
             WHERE sku IS NOT NULL AND per_user IS NOT NULL GROUP BY sku",
        )
        .bind(self.sale.as_str())
        .fetch_all(&mut *self.snapshot)
        .await?;
        rows.into_iter()
            .map(|(sku, most)| Ok((id(SkuId::parse(&sku))?, u64::try_from(most).unwrap_or(0))))
            .collect()
    }

    /// Every stock change that was ever asked for.
    pub async fn stock_changes(&mut self) -> Result<Vec<ChangeFact>, StoreError> {
        let rows: Vec<(String, String, i64, String)> =
            sqlx::query_as("SELECT key, sku, delta, state FROM stock_changes WHERE sale = $1 ORDER BY key")
                .bind(self.sale.as_str())
                .fetch_all(&mut *self.snapshot)
                .await?;
        let fact = |(key, sku, delta, state): (String, String, i64, String)| {
            Ok(ChangeFact { key, sku: id(SkuId::parse(&sku))?, delta, state })
        };
        rows.into_iter().map(fact).collect()
    }
}
