//! What the books know of one order, for its time-line.

use sluice_shared::clock::Millis;
use sluice_shared::currency;
use sluice_shared::ids::{OrderId, SaleId};

use crate::store::id;
use crate::store::{Store, StoreError};

/// Something that a table says happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// When, where a row says so.
    pub at: Option<Millis>,
    /// Which table.
    pub table: &'static str,
    /// What.
    pub what: String,
}

type Row = (Option<i64>, String);
type AmountRow = (Option<i64>, String, i64, String, String);

/// Tables whose rows say of an order when an amount moved, and how: what comes before the amount, and after it.
const AMOUNTS: [(&str, &str); 2] = [
    (
        "orders",
        "SELECT (extract(epoch from created_at) * 1000)::bigint, 'written: ' || lines || ' for ' || user_id || ', ',
                amount, currency, ', epoch ' || epoch || ', sequence ' || seq
         FROM orders WHERE id = $1",
    ),
    (
        "payments",
        "SELECT (extract(epoch from updated_at) * 1000)::bigint, 'payment ' || payment_id || ' of ',
                amount, currency, ' is ' || state
         FROM payments WHERE order_id = $1 ORDER BY updated_at",
    ),
];

/// Every other table that may say something about an order, and how; `$1` is its id.
const TRACES: [(&str, &str); 7] = [
    (
        "orders",
        "SELECT (extract(epoch from updated_at) * 1000)::bigint,
                'is ' || state || CASE WHEN live THEN ', its units count as taken' ELSE ', its units are back'
                END || CASE WHEN refund <> '-' THEN ', refund ' || refund ELSE '' END
                || coalesce(', ' || message, '')
         FROM orders WHERE id = $1",
    ),
    (
        "ledger",
        "SELECT (extract(epoch from at) * 1000)::bigint,
                kind || ' ' || quantity || ' × ' || sku || ' (line ' || line || ')'
         FROM ledger WHERE order_id = $1 ORDER BY at, line",
    ),
    (
        "saga",
        "SELECT (extract(epoch from at) * 1000)::bigint, step || ': ' || outcome
         FROM saga_step WHERE order_id = $1 ORDER BY at",
    ),
    (
        "saga",
        "SELECT (extract(epoch from updated_at) * 1000)::bigint, 'is ' || state || ' at step ' || step
         FROM saga WHERE order_id = $1",
    ),
    (
        "fenced",
        "SELECT (extract(epoch from at) * 1000)::bigint,
                'a message of epoch ' || epoch || ' came after that epoch had ended'
         FROM fenced_messages WHERE order_id = $1 ORDER BY at",
    ),
    (
        "claims",
        "SELECT (extract(epoch from last_at) * 1000)::bigint,
                'claimed by its receipt ' || times || ' times, refused as ' || reason
                || coalesce('; resolved: ' || resolved_why, '')
         FROM claims WHERE order_id = $1",
    ),
    (
        "audit log",
        "SELECT (extract(epoch from at) * 1000)::bigint, action || ' by ' || who
         FROM audit_log WHERE target = 'order:' || $1 ORDER BY at",
    ),
];

impl Store {
    /// The sale of a number in order ids.
    pub async fn sale_of_number(&self, number: u32) -> Result<Option<SaleId>, StoreError> {
        let sale: Option<String> = sqlx::query_scalar("SELECT sale FROM sales WHERE number = $1")
            .bind(i32::try_from(number).unwrap_or(-1))
            .fetch_optional(&self.pool)
            .await?;
        sale.map(|sale| id(SaleId::parse(&sale))).transpose()
    }

    /// Everything that the books say of an order.
    pub async fn traces(&self, order: &OrderId) -> Result<Vec<Trace>, StoreError> {
        let name = order.to_string();
        let mut traces = Vec::new();
        for (table, query) in AMOUNTS {
            let rows: Vec<AmountRow> = sqlx::query_as(query).bind(&name).fetch_all(&self.pool).await?;
            traces.extend(rows.into_iter().map(|(at, before, minor, code, after)| {
                let what = format!("{before}{}{after}", currency::amount(minor, &code));
                Trace { at: at.map(Millis), table, what }
            }));
        }
        for (table, query) in TRACES {
            let rows: Vec<Row> = sqlx::query_as(query).bind(&name).fetch_all(&self.pool).await?;
            traces.extend(rows.into_iter().map(|(at, what)| Trace { at: at.map(Millis), table, what }));
        }
        traces.extend(self.outbox_traces(&name).await?);
        Ok(traces)
    }

    /// Events of an order: they have the time of the transaction that noted them, in which its rows changed. Of what
    /// its rows no longer tell there may be more; nothing but rows of these times is read.
    async fn outbox_traces(&self, order: &str) -> Result<Vec<Trace>, StoreError> {
        let rows: Vec<(i64, Option<i64>, String)> = sqlx::query_as(
            "SELECT (extract(epoch from created_at) * 1000)::bigint,
                    (extract(epoch from published_at) * 1000)::bigint, topic
             FROM outbox
             WHERE created_at = ANY (ARRAY(
                       SELECT created_at FROM orders WHERE id = $1
                       UNION SELECT updated_at FROM orders WHERE id = $1
                       UNION SELECT at FROM saga_step WHERE order_id = $1
                       UNION SELECT created_at FROM payments WHERE order_id = $1
                       UNION SELECT updated_at FROM payments WHERE order_id = $1))
               AND payload->'events' @> jsonb_build_array(jsonb_build_object('order', $1::text))
             ORDER BY id",
        )
        .bind(order)
        .fetch_all(&self.pool)
        .await?;
        let mut traces = Vec::new();
        for (noted, sent, topic) in rows {
            let trace = |at, what| Trace { at, table: "outbox", what };
            traces.push(trace(Some(Millis(noted)), format!("{topic} is noted")));
            traces.push(match sent {
                Some(sent) => trace(Some(Millis(sent)), format!("{topic} is with the broker")),
                None => trace(None, format!("{topic} waits to be published")),
            });
        }
        Ok(traces)
    }
}
