//! Stock changes: first the intent, then Redis and the books, each once per key, and whatever a crash
//! interrupts is finished later from the intent.
//!
//! Units are added to the books first and then to Redis, and withdrawn from Redis first, so that at no
//! instant Redis can sell a unit that the books do not have. A completion holds the segment's epoch
//! (`FOR SHARE`): no rebuild of Redis comes between its two halves.

use serde_json::{Value, json};
use sluice_shared::ids::{SaleId, SkuId};
use sluice_shared::sale::SaleStep;
use sqlx::{PgConnection, Postgres, Row, Transaction};

use super::audit_log::{Actor, Deed, note};
use super::ledger::{Kind, Ledger, id};
use super::sales::locked;
use super::{Store, StoreError};

/// Segment whose shelf gets the change: the only one while sales have one.
pub const SEGMENT: u16 = 0;

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockChange {
    /// The sale.
    pub sale: SaleId,
    /// The operator's idempotency key.
    pub key: String,
    /// Of what.
    pub sku: SkuId,
    /// Units; negative withdraws.
    pub delta: i64,
    /// Why.
    pub reason: String,
    /// Digest of the body, by which a repeat is told from another wish with the same key.
    pub fingerprint: Vec<u8>,
}

/// What came of the intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is noted now, or was before with the same body.
    Noted,
    /// The key was used with another body.
    OtherBody,
    /// There is no such sale.
    NoSale,
    /// The sale has no such SKU.
    NoSku,
    /// Not preloaded, open or paused.
    WrongState(SaleStep),
    /// The offer would have more units than an offer may have.
    TooMany,
    /// The sale is preloaded in the books, but the warden has not put it on the shelf yet.
    NotShelved,
}

/// A change as it stands.
#[derive(Debug)]
pub enum Standing {
    /// Done; the answer that was given.
    Done(Value),
    /// Refused: so many units were left.
    Refused(u64),
    /// To be completed.
    Pending(Box<Completing>),
}

/// A pending change, its row and the epoch locked until it is completed or left.
#[derive(Debug)]
pub struct Completing {
    transaction: Transaction<'static, Postgres>,
    /// What is to be done.
    pub change: StockChange,
    /// The epoch of its shelf.
    pub epoch: u64,
}

/// Epoch of the change's shelf, held until the transaction ends; `None` before it is on the shelf.
async fn hold_epoch(connection: &mut PgConnection, sale: &SaleId) -> Result<Option<u64>, StoreError> {
    let epoch: Option<i64> = sqlx::query_scalar(
        "SELECT epoch FROM segments WHERE sale = $1 AND segment = $2 AND shelved_at IS NOT NULL FOR SHARE",
    )
    .bind(sale.as_str())
    .bind(i16::try_from(SEGMENT).unwrap_or(0))
    .fetch_optional(connection)
    .await?;
    Ok(epoch.and_then(|epoch| u64::try_from(epoch).ok()))
}

impl Store {
    /// Notes the intent; units to add are in the books with it.
    pub async fn begin_stock_change(
        &self,
        change: &StockChange,
        stock_max: i64,
        actor: &Actor,
    ) -> Result<Begun, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let Some(sale) = locked(&mut transaction, &change.sale).await? else { return Ok(Begun::NoSale) };
        let known: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT fingerprint FROM stock_changes WHERE sale = $1 AND key = $2")
                .bind(change.sale.as_str())
                .bind(&change.key)
                .fetch_optional(&mut *transaction)
                .await?;
        if let Some(fingerprint) = known {
            return Ok(if fingerprint == change.fingerprint { Begun::Noted } else { Begun::OtherBody });
        }
        if !matches!(sale.step, SaleStep::Preloaded | SaleStep::Open | SaleStep::Paused) {
            return Ok(Begun::WrongState(sale.step));
        }
        let Some(item) = sale.items.iter().find(|item| item.sku == change.sku) else {
            return Ok(Begun::NoSku);
        };
        let before = i64::try_from(item.stock).unwrap_or(i64::MAX);
        if before.saturating_add(change.delta) > stock_max {
            return Ok(Begun::TooMany);
        }
        if hold_epoch(&mut transaction, &change.sale).await?.is_none() {
            return Ok(Begun::NotShelved);
        }
        insert(&mut transaction, change).await?;
        if change.delta > 0 {
            book(&mut transaction, change).await?;
        }
        let after = json!({
            "sku": change.sku, "delta": change.delta, "reason": change.reason, "key": change.key,
        });
        let deed = Deed {
            action: if change.delta > 0 { "stock.add" } else { "stock.withdraw" },
            target: format!("sale:{}", change.sale),
            before: Some(json!({"sku": change.sku, "stock": item.stock, "taken": item.taken})),
            after: Some(after),
        };
        note(&mut transaction, actor, deed).await?;
        transaction.commit().await?;
        Ok(Begun::Noted)
    }

    /// A change as it stands, locked when it is pending. `None`: no such change, or its shelf has gone.
    pub async fn stock_change(&self, sale: &SaleId, key: &str) -> Result<Option<Standing>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let Some(epoch) = hold_epoch(&mut transaction, sale).await? else { return Ok(None) };
        let row = sqlx::query(
            "SELECT sku, delta, reason, fingerprint, state, answer FROM stock_changes \
             WHERE sale = $1 AND key = $2 FOR UPDATE",
        )
        .bind(sale.as_str())
        .bind(key)
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let answer: Option<Value> = row.try_get("answer")?;
        let answer = answer.unwrap_or(Value::Null);
        match row.try_get::<&str, _>("state")? {
            "done" => return Ok(Some(Standing::Done(answer))),
            "refused" => return Ok(Some(Standing::Refused(answer["left"].as_u64().unwrap_or(0)))),
            _ => {}
        }
        let change = StockChange {
            sale: sale.clone(),
            key: key.to_owned(),
            sku: id(SkuId::parse(row.try_get("sku")?))?,
            delta: row.try_get("delta")?,
            reason: row.try_get("reason")?,
            fingerprint: row.try_get("fingerprint")?,
        };
        Ok(Some(Standing::Pending(Box::new(Completing { transaction, change, epoch }))))
    }

    /// Sale and key of changes that have been pending for a while, the oldest first; not those of a
    /// sale whose shelf has been cleared meanwhile.
    pub async fn pending_stock_changes(&self) -> Result<Vec<(SaleId, String)>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT c.sale, c.key FROM stock_changes c JOIN sales s USING (sale) \
             WHERE c.state = 'pending' AND c.created_at < now() - interval '2 seconds' AND NOT \
             (s.step = 'closed' AND greatest(s.ends_at, s.updated_at) < now() - interval '24 hours') \
             ORDER BY c.created_at LIMIT 100",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|(sale, key)| Ok((id(SaleId::parse(&sale))?, key))).collect()
    }
}

impl Completing {
    /// Redis has done it and has so many units left: the books follow, and the answer is kept.
    pub async fn done(mut self, left: u64) -> Result<Value, StoreError> {
        let change = &self.change;
        if change.delta < 0 {
            book(&mut self.transaction, change).await?;
        }
        let stock: i64 = sqlx::query_scalar("SELECT stock FROM offers WHERE sale = $1 AND sku = $2")
            .bind(change.sale.as_str())
            .bind(change.sku.as_str())
            .fetch_one(&mut *self.transaction)
            .await?;
        let answer = json!({
            "sale": change.sale, "sku": change.sku, "delta": change.delta, "stock": stock, "left": left,
        });
        self.settle("done", &answer).await?;
        Ok(answer)
    }

    /// Redis has too few units left: nothing was withdrawn, and nothing will be by this key.
    pub async fn refused(self, left: u64) -> Result<(), StoreError> {
        self.settle("refused", &json!({ "left": left })).await
    }

    async fn settle(mut self, state: &str, answer: &Value) -> Result<(), StoreError> {
        sqlx::query("UPDATE stock_changes SET state = $3, answer = $4 WHERE sale = $1 AND key = $2")
            .bind(self.change.sale.as_str())
            .bind(&self.change.key)
            .bind(state)
            .bind(answer)
            .execute(&mut *self.transaction)
            .await?;
        Ok(self.transaction.commit().await?)
    }
}

async fn insert(transaction: &mut PgConnection, change: &StockChange) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO stock_changes (key, sale, sku, delta, reason, fingerprint) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&change.key)
    .bind(change.sale.as_str())
    .bind(change.sku.as_str())
    .bind(change.delta)
    .bind(&change.reason)
    .bind(&change.fingerprint)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The change's line in the ledger, which moves the offer's stock.
async fn book(transaction: &mut PgConnection, change: &StockChange) -> Result<(), StoreError> {
    let offer = (change.sale.clone(), change.sku.clone());
    let mut ledger = Ledger::lock(transaction, [offer]).await?;
    let kind = if change.delta > 0 { Kind::Add } else { Kind::Withdraw };
    ledger.note(&change.sale, &change.sku, kind, &change.key, change.delta.abs())?;
    ledger.write(transaction).await
}
