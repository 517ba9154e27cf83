//! The ledger: append-only, one hash chain an offer. Whoever writes holds the offer's row.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use time::OffsetDateTime;

use sluice_shared::ids::{SaleId, SkuId};

use super::StoreError;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The stock that a sale began with.
    Preload,
    /// An operator added units.
    Add,
    /// An operator withdrew units.
    Withdraw,
    /// An order took units.
    Take,
    /// An order's units went back.
    Release,
    /// An order was paid.
    Sold,
    /// A paid order was refunded.
    Refund,
}

impl Kind {
    /// The word in rows and in the hash.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preload => "preload",
            Self::Add => "add",
            Self::Withdraw => "withdraw",
            Self::Take => "take",
            Self::Release => "release",
            Self::Sold => "sold",
            Self::Refund => "refund",
        }
    }

    /// What a line of this kind does to the offer's stock and to what is taken of it.
    fn effect(self, quantity: i64) -> (i64, i64) {
        match self {
            Self::Add => (quantity, 0),
            Self::Withdraw => (-quantity, 0),
            Self::Take => (0, quantity),
            Self::Release => (0, -quantity),
            // The stock of a preload stands in the offer since the sale was created.
            Self::Preload | Self::Sold | Self::Refund => (0, 0),
        }
    }

    fn is_of_an_order(self) -> bool {
        matches!(self, Self::Take | Self::Release | Self::Sold | Self::Refund)
    }
}

/// The text of a line as it is hashed.
#[derive(Debug, Clone, Copy)]
pub struct LineText<'a> {
    /// The sale.
    pub sale: &'a str,
    /// The SKU.
    pub sku: &'a str,
    /// 1, 2, 3 … without gaps.
    pub line: i64,
    /// The word of its [`Kind`].
    pub kind: &'a str,
    /// The order's id, or the change's key, or nothing.
    pub about: &'a str,
    /// Units.
    pub quantity: i64,
    /// Microseconds since the Unix epoch.
    pub at_micros: i128,
}

impl LineText<'_> {
    /// The line's hash: SHA-256 over the previous line's hash and this text.
    pub fn hash(&self, previous: &[u8]) -> [u8; 32] {
        let Self { sale, sku, line, kind, about, quantity, at_micros } = self;
        let text = format!("{sale}|{sku}|{line}|{kind}|{about}|{quantity}|{at_micros}");
        Sha256::new().chain_update(previous).chain_update(text).finalize().into()
    }
}

/// Microseconds since the Unix epoch: what PostgreSQL keeps of a time.
pub fn micros(at: OffsetDateTime) -> i128 {
    at.unix_timestamp_nanos().div_euclid(1000)
}

/// An offer whose row is locked, and the end of its chain.
#[derive(Debug)]
struct Head {
    /// Units that no order has taken, the lines of this transaction counted.
    free: i64,
    /// What this transaction's lines add to the stock and to what is taken.
    stock_by: i64,
    taken_by: i64,
    /// Number and hash of the last line, and how many of them are this transaction's.
    line: i64,
    hash: Vec<u8>,
    added: i64,
    at: OffsetDateTime,
}

/// Lines of one transaction, in columns as they are inserted.
#[derive(Debug, Default)]
struct Lines {
    sale: Vec<String>,
    sku: Vec<String>,
    line: Vec<i64>,
    kind: Vec<&'static str>,
    order: Vec<Option<String>>,
    change: Vec<Option<String>>,
    quantity: Vec<i64>,
    at: Vec<OffsetDateTime>,
    hash: Vec<Vec<u8>>,
}

/// Locked offers, and the lines that one transaction adds to their ledgers.
#[derive(Debug)]
pub(crate) struct Ledger {
    heads: BTreeMap<(SaleId, SkuId), Head>,
    lines: Lines,
}

type HeadRow = (String, String, i64, i64, i64, Vec<u8>, OffsetDateTime);

impl Ledger {
    /// Locks offers, always in the order of sale and SKU, byte by byte as Rust sorts them and whatever the
    /// database's collation, so that no two transactions wait for each other. Whoever locks an order's row
    /// too does that first.
    pub(crate) async fn lock(
        connection: &mut PgConnection,
        offers: impl IntoIterator<Item = (SaleId, SkuId)>,
    ) -> Result<Self, StoreError> {
        let (sales, skus): (Vec<_>, Vec<_>) = offers.into_iter().unzip();
        let text = |ids: &[SaleId]| ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
        let rows: Vec<HeadRow> = sqlx::query_as(
            "SELECT sale, sku, stock, taken, ledger_line, ledger_hash, clock_timestamp()
             FROM offers
             WHERE (sale, sku) IN (SELECT * FROM unnest($1::text[], $2::text[]))
             ORDER BY sale COLLATE \"C\", sku COLLATE \"C\"
             FOR UPDATE",
        )
        .bind(text(&sales))
        .bind(skus.iter().map(|sku| sku.as_str().to_owned()).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        let mut heads = BTreeMap::new();
        for (sale, sku, stock, taken, line, hash, at) in rows {
            let key = (id(SaleId::parse(&sale))?, id(SkuId::parse(&sku))?);
            let free = stock - taken;
            heads.insert(key, Head { free, stock_by: 0, taken_by: 0, line, hash, added: 0, at });
        }
        Ok(Self { heads, lines: Lines::default() })
    }

    /// Units of an offer that no order has taken; `None` when the offer is not locked here.
    pub(crate) fn free(&self, sale: &SaleId, sku: &SkuId) -> Option<i64> {
        self.heads.get(&(sale.clone(), sku.clone())).map(|head| head.free)
    }

    /// Adds a line; what it does to stock and taken units is done by [`Self::write`].
    pub(crate) fn note(
        &mut self,
        sale: &SaleId,
        sku: &SkuId,
        kind: Kind,
        about: &str,
        quantity: i64,
    ) -> Result<(), StoreError> {
        let head = self
            .heads
            .get_mut(&(sale.clone(), sku.clone()))
            .ok_or_else(|| StoreError::Broken(format!("offer {sale}/{sku} is not in the books")))?;
        let (stock, taken) = kind.effect(quantity);
        head.free += stock - taken;
        head.stock_by += stock;
        head.taken_by += taken;
        head.line += 1;
        head.added += 1;
        let (sale, sku, kind_word, at_micros) = (sale.as_str(), sku.as_str(), kind.as_str(), micros(head.at));
        let text = LineText { sale, sku, line: head.line, kind: kind_word, about, quantity, at_micros };
        head.hash = text.hash(&head.hash).to_vec();
        let lines = &mut self.lines;
        lines.sale.push(sale.to_owned());
        lines.sku.push(sku.to_owned());
        lines.line.push(head.line);
        lines.kind.push(kind_word);
        let about = (!about.is_empty()).then(|| about.to_owned());
        let (order, change) = if kind.is_of_an_order() { (about, None) } else { (None, about) };
        lines.order.push(order);
        lines.change.push(change);
        lines.quantity.push(quantity);
        lines.at.push(head.at);
        lines.hash.push(head.hash.clone());
        Ok(())
    }

    /// Writes the lines, and the offers with their new heads. The guard refuses what the lock has
    /// made impossible: that more is taken than there is.
    pub(crate) async fn write(self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let lines = self.lines;
        if lines.line.is_empty() {
            return Ok(());
        }
        let changed: Vec<_> = self.heads.iter().filter(|(_, head)| head.added > 0).collect();
        let updated = sqlx::query(
            "WITH lines AS (
                 INSERT INTO ledger (sale, sku, line, kind, order_id, change, quantity, at, hash)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[],
                                      $6::text[], $7::bigint[], $8::timestamptz[], $9::bytea[]))
             UPDATE offers SET stock = stock + stock_by, taken = taken + taken_by,
                               ledger_line = ledger_line + added, ledger_hash = new.hash
             FROM unnest($10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[],
                         $15::bytea[]) AS new (sale, sku, stock_by, taken_by, added, hash)
             WHERE offers.sale = new.sale AND offers.sku = new.sku
               AND taken + taken_by BETWEEN 0 AND stock + stock_by",
        )
        .bind(lines.sale)
        .bind(lines.sku)
        .bind(lines.line)
        .bind(lines.kind)
        .bind(lines.order)
        .bind(lines.change)
        .bind(lines.quantity)
        .bind(lines.at)
        .bind(lines.hash)
        .bind(changed.iter().map(|(key, _)| key.0.as_str()).collect::<Vec<_>>())
        .bind(changed.iter().map(|(key, _)| key.1.as_str()).collect::<Vec<_>>())
        .bind(changed.iter().map(|(_, head)| head.stock_by).collect::<Vec<_>>())
        .bind(changed.iter().map(|(_, head)| head.taken_by).collect::<Vec<_>>())
        .bind(changed.iter().map(|(_, head)| head.added).collect::<Vec<_>>())
        .bind(changed.iter().map(|(_, head)| head.hash.as_slice()).collect::<Vec<_>>())
        .execute(connection)
        .await?;
        if updated.rows_affected() == changed.len() as u64 {
            return Ok(());
        }
        Err(StoreError::Broken("more would be taken of an offer than it has".to_owned()))
    }
}

/// An id that a row has and that cannot be one is a bug.
pub(crate) fn id<T>(parsed: Result<T, sluice_shared::ids::BadId>) -> Result<T, StoreError> {
    parsed.map_err(|bad| StoreError::Broken(format!("a row holds a bad id: {bad}")))
}
