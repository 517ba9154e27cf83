//! Sales and what they offer: the back office writes them here, and the warden alone carries them
//! into Redis.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_shared::clock::Millis;
use sluice_shared::ids::{SaleId, SkuId};
use sluice_shared::sale::{AcceptAfter, SaleStep};
use sluice_shared::verdict::Rejection;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;

use super::audit_log::{Actor, Deed, note};
use super::ledger::{Kind, Ledger};
use super::{Store, StoreError, millis, moment};

/// Wakes the warden when a sale changed.
pub const CHANNEL: &str = "sluice_sales";
/// How long the warden keeps the shelf of a sale that is closed and over.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A sale as the books have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRow {
    /// The sale.
    pub sale: SaleId,
    /// Its number in order ids.
    pub number: u32,
    /// Where it stands.
    pub step: SaleStep,
    /// Where a closed sale was closed from.
    pub closed_from: Option<SaleStep>,
    /// When selling starts.
    pub starts_at: Millis,
    /// When it ends.
    pub ends_at: Millis,
    /// How orders are written; `queued`.
    pub mode: String,
    /// When an order counts as accepted.
    pub accept_after: AcceptAfter,
    /// How long a buyer may take to pay.
    pub pay_within_seconds: u32,
    /// How many segments.
    pub segments: u16,
    /// Configuration version.
    pub cfg: u64,
    /// When the sale was made.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
    /// What is sold, in the order of the back office.
    pub items: Vec<OfferRow>,
}

/// One SKU of a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferRow {
    /// The SKU.
    pub sku: SkuId,
    /// What buyers read.
    pub title: String,
    /// Minor units.
    pub price: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// Preloaded + added − withdrawn.
    pub stock: u64,
    /// What live orders hold.
    pub taken: u64,
    /// Units one user may hold.
    pub per_user: u32,
}

/// What came of a change: the sale as it is since, or why it was not changed.
pub type Changed = Result<SaleRow, Rejection>;

fn column<T, U: TryInto<T>>(name: &'static str, value: U) -> Result<T, StoreError> {
    value.try_into().map_err(|_| StoreError::Broken(format!("{name} does not fit")))
}

fn word<T>(name: &'static str, text: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, StoreError> {
    read(text).ok_or_else(|| StoreError::Broken(format!("{name} is {text:?}")))
}

/// Reads [`accept_after_word`].
pub fn accept_after(text: &str) -> Option<AcceptAfter> {
    match text {
        "journal" => Some(AcceptAfter::Journal),
        "broker" => Some(AcceptAfter::Broker),
        _ => None,
    }
}

/// The word in rows and JSON.
pub fn accept_after_word(accept_after: AcceptAfter) -> &'static str {
    match accept_after {
        AcceptAfter::Journal => "journal",
        AcceptAfter::Broker => "broker",
    }
}

impl SaleRow {
    fn read(row: &PgRow) -> Result<Self, StoreError> {
        let sale: &str = row.try_get("sale")?;
        let closed_from: Option<&str> = row.try_get("closed_from")?;
        let at = |name: &str| row.try_get::<OffsetDateTime, _>(name).map(millis);
        Ok(Self {
            sale: word("sale", sale, |text| SaleId::parse(text).ok())?,
            number: column("number", row.try_get::<i32, _>("number")?)?,
            step: word("step", row.try_get("step")?, SaleStep::parse)?,
            closed_from: closed_from.map(|text| word("closed_from", text, SaleStep::parse)).transpose()?,
            starts_at: at("starts_at")?,
            ends_at: at("ends_at")?,
            mode: row.try_get("mode")?,
            accept_after: word("accept_after", row.try_get("accept_after")?, accept_after)?,
            pay_within_seconds: column("pay_within_seconds", row.try_get::<i32, _>("pay_within_seconds")?)?,
            segments: column("segments", row.try_get::<i16, _>("segments")?)?,
            cfg: column("cfg", row.try_get::<i64, _>("cfg")?)?,
            created_at: at("created_at")?,
            updated_at: at("updated_at")?,
            items: Vec::new(),
        })
    }

    /// Whether its shelf has been cleared: it is closed and long over, and the books know all.
    pub fn is_cleared(&self, now: Millis) -> bool {
        self.step == SaleStep::Closed && self.ends_at.max(self.updated_at).after(KEPT) < now
    }

    /// For the audit log.
    fn summary(&self) -> Value {
        let items: Vec<Value> = self.items.iter().map(OfferRow::summary).collect();
        json!({
            "state": self.step.as_str(),
            "starts_at": self.starts_at.to_text(),
            "ends_at": self.ends_at.to_text(),
            "mode": self.mode,
            "accept_after": accept_after_word(self.accept_after),
            "pay_within_seconds": self.pay_within_seconds,
            "segments": self.segments,
            "cfg": self.cfg,
            "items": items,
        })
    }
}

impl OfferRow {
    fn read(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self {
            sku: word("sku", row.try_get("sku")?, |text| SkuId::parse(text).ok())?,
            title: row.try_get("title")?,
            price: row.try_get("price")?,
            currency: row.try_get("currency")?,
            stock: column("stock", row.try_get::<i64, _>("stock")?)?,
            taken: column("taken", row.try_get::<i64, _>("taken")?)?,
            per_user: column("per_user", row.try_get::<i32, _>("per_user")?)?,
        })
    }

    fn summary(&self) -> Value {
        json!({
            "sku": self.sku, "title": self.title, "price": self.price, "currency": self.currency,
            "stock": self.stock, "per_user": self.per_user,
        })
    }
}

macro_rules! select_sales {
    ($tail:literal) => {
        concat!(
            "SELECT sale, number, step, closed_from, starts_at, ends_at, mode, accept_after, ",
            "pay_within_seconds, segments, cfg, created_at, updated_at FROM sales ",
            $tail
        )
    };
}

async fn offers(connection: &mut PgConnection, sale: &SaleId) -> Result<Vec<OfferRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT sku, title, price, currency, stock, taken, per_user FROM offers \
         WHERE sale = $1 ORDER BY place, sku",
    )
    .bind(sale.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter().map(OfferRow::read).collect()
}

/// The sale, locked against other changes of it; orders go on being written.
pub(crate) async fn locked(
    transaction: &mut PgConnection,
    sale: &SaleId,
) -> Result<Option<SaleRow>, StoreError> {
    let row = sqlx::query(select_sales!("WHERE sale = $1 FOR NO KEY UPDATE"))
        .bind(sale.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let mut found = SaleRow::read(&row)?;
    found.items = offers(transaction, sale).await?;
    Ok(Some(found))
}

async fn wake_warden(transaction: &mut PgConnection, sale: &SaleId) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(sale.as_str()).execute(transaction).await?;
    Ok(())
}

fn time(at: Millis) -> Result<OffsetDateTime, StoreError> {
    moment(at).ok_or_else(|| StoreError::Broken("no calendar has this time".to_owned()))
}

impl Store {
    /// One sale.
    pub async fn sale(&self, sale: &SaleId) -> Result<Option<SaleRow>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let row = sqlx::query(select_sales!("WHERE sale = $1"))
            .bind(sale.as_str())
            .fetch_optional(&mut *connection)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let mut found = SaleRow::read(&row)?;
        found.items = offers(&mut connection, sale).await?;
        Ok(Some(found))
    }

    /// Sales by number, those after `after`.
    pub async fn sales(&self, after: u32, limit: u32) -> Result<Vec<SaleRow>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let rows = sqlx::query(select_sales!("WHERE number > $1 ORDER BY number LIMIT $2"))
            .bind(i32::try_from(after).unwrap_or(i32::MAX))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
        let mut found = rows.iter().map(SaleRow::read).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<&str> = found.iter().map(|sale| sale.sale.as_str()).collect();
        let rows = sqlx::query(
            "SELECT sale, sku, title, price, currency, stock, taken, per_user FROM offers \
             WHERE sale = ANY($1) ORDER BY place, sku",
        )
        .bind(names)
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            let name: &str = row.try_get("sale")?;
            let item = OfferRow::read(row)?;
            if let Some(sale) = found.iter_mut().find(|sale| sale.sale.as_str() == name) {
                sale.items.push(item);
            }
        }
        Ok(found)
    }

    /// Makes a sale; `None` when there is one of this name. Number, step and times are the books' own.
    pub async fn create_sale(&self, new: &SaleRow, actor: &Actor) -> Result<Option<SaleRow>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let row = sqlx::query(
            "INSERT INTO sales (sale, starts_at, ends_at, mode, accept_after, pay_within_seconds, segments) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (sale) DO NOTHING \
             RETURNING number, cfg, created_at, updated_at",
        )
        .bind(new.sale.as_str())
        .bind(time(new.starts_at)?)
        .bind(time(new.ends_at)?)
        .bind(&new.mode)
        .bind(accept_after_word(new.accept_after))
        .bind(column::<i32, _>("pay_within_seconds", new.pay_within_seconds)?)
        .bind(column::<i16, _>("segments", new.segments)?)
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut made = new.clone();
        made.number = column("number", row.try_get::<i32, _>("number")?)?;
        made.cfg = column("cfg", row.try_get::<i64, _>("cfg")?)?;
        made.created_at = millis(row.try_get("created_at")?);
        made.updated_at = millis(row.try_get("updated_at")?);
        write_offers(&mut transaction, &made).await?;
        let target = format!("sale:{}", made.sale);
        let deed = Deed { action: "sale.create", target, before: None, after: Some(made.summary()) };
        note(&mut transaction, actor, deed).await?;
        transaction.commit().await?;
        Ok(Some(made))
    }

    /// Changes a sale under its lock: `judge` gets it as it is, with the time, and makes of it what it
    /// shall be. Equal: nothing is written. `None`: there is no such sale.
    pub async fn change_sale(
        &self,
        sale: &SaleId,
        actor: &Actor,
        action: &str,
        judge: impl FnOnce(&SaleRow, Millis) -> Changed + Send,
    ) -> Result<Option<Changed>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let Some(before) = locked(&mut transaction, sale).await? else { return Ok(None) };
        let now: OffsetDateTime =
            sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut *transaction).await?;
        let mut after = match judge(&before, millis(now)) {
            Ok(after) if after == before => return Ok(Some(Ok(after))),
            Ok(after) => after,
            Err(rejection) => return Ok(Some(Err(rejection))),
        };
        after.cfg = before.cfg + 1;
        after.updated_at = millis(now);
        write_sale(&mut transaction, &after, now).await?;
        if after.items != before.items {
            write_offers(&mut transaction, &after).await?;
        }
        if before.step == SaleStep::Created && after.step == SaleStep::Preloaded {
            put_on_the_books(&mut transaction, &after).await?;
        }
        let target = format!("sale:{sale}");
        let deed = Deed { action, target, before: Some(before.summary()), after: Some(after.summary()) };
        note(&mut transaction, actor, deed).await?;
        wake_warden(&mut transaction, sale).await?;
        transaction.commit().await?;
        Ok(Some(Ok(after)))
    }
}

async fn write_sale(
    transaction: &mut PgConnection,
    sale: &SaleRow,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE sales SET step = $2, closed_from = $3, starts_at = $4, ends_at = $5, mode = $6, \
         accept_after = $7, pay_within_seconds = $8, segments = $9, cfg = $10, updated_at = $11 \
         WHERE sale = $1",
    )
    .bind(sale.sale.as_str())
    .bind(sale.step.as_str())
    .bind(sale.closed_from.map(SaleStep::as_str))
    .bind(time(sale.starts_at)?)
    .bind(time(sale.ends_at)?)
    .bind(&sale.mode)
    .bind(accept_after_word(sale.accept_after))
    .bind(column::<i32, _>("pay_within_seconds", sale.pay_within_seconds)?)
    .bind(column::<i16, _>("segments", sale.segments)?)
    .bind(column::<i64, _>("cfg", sale.cfg)?)
    .bind(now)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Writes the offers as the sale has them. `taken` and the ledger's head are others' business, and
/// `stock` is written only while nothing is on the shelf: it moves by stock changes afterwards.
/// Rows are taken in the order in which everybody locks them.
async fn write_offers(transaction: &mut PgConnection, sale: &SaleRow) -> Result<(), StoreError> {
    let mut items: Vec<(usize, &OfferRow)> = sale.items.iter().enumerate().collect();
    items.sort_by(|a, b| a.1.sku.cmp(&b.1.sku));
    for (place, item) in items {
        sqlx::query(
            "INSERT INTO offers (sale, sku, place, title, price, currency, stock, per_user) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (sale, sku) DO UPDATE SET \
             title = $4, price = $5, currency = $6, per_user = $8, \
             stock = CASE WHEN $9 THEN $7 ELSE offers.stock END",
        )
        .bind(sale.sale.as_str())
        .bind(item.sku.as_str())
        .bind(column::<i16, _>("place", place)?)
        .bind(&item.title)
        .bind(item.price)
        .bind(&item.currency)
        .bind(column::<i64, _>("stock", item.stock)?)
        .bind(column::<i32, _>("per_user", item.per_user)?)
        .bind(sale.step == SaleStep::Created)
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// What preload means in the books: the first line of each offer's ledger, and the first epochs.
async fn put_on_the_books(transaction: &mut PgConnection, sale: &SaleRow) -> Result<(), StoreError> {
    for segment in 0..sale.segments {
        sqlx::query("INSERT INTO segments (sale, segment) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(sale.sale.as_str())
            .bind(column::<i16, _>("segment", segment)?)
            .execute(&mut *transaction)
            .await?;
    }
    let offers = sale.items.iter().map(|item| (sale.sale.clone(), item.sku.clone()));
    let mut ledger = Ledger::lock(transaction, offers).await?;
    for item in &sale.items {
        ledger.note(&sale.sale, &item.sku, Kind::Preload, "", column("stock", item.stock)?)?;
    }
    ledger.write(transaction).await
}
