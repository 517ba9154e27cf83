//! The back office, as a drill uses it: a sale of its own, its orders, the audit.

use std::net::SocketAddrV4;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::record::OrderState;

use crate::environment::Environment;

/// Orders on one page of a list.
const PAGE: usize = 1000;
/// How long a sale of a drill lasts unless it is closed.
const LASTS: Duration = Duration::from_secs(6 * 3600);

/// A client of the back office.
#[derive(Debug, Clone)]
pub struct Admin {
    agent: ureq::Agent,
    base: String,
    token: String,
}

/// What a drill sells: one SKU, `phone`.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Units.
    pub stock: u32,
    /// Units that a user may hold.
    pub per_user: u32,
    /// Price of a unit in minor units of EUR.
    pub price: i64,
    /// Seconds until an unpaid order expires.
    pub pay_within: u32,
}

/// The SKU of every drill.
pub const SKU: &str = "phone";
/// Its currency.
pub const CURRENCY: &str = "EUR";

/// An order as the back office lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: OrderId,
    /// Whose it is.
    pub user: String,
    /// Its state.
    pub state: OrderState,
    /// Units of all lines.
    pub units: u32,
    /// `null`, `due` or `done`.
    pub refund: Option<String>,
    /// Until when it can be paid: written at, plus the time to pay.
    pub pay_before: Option<Millis>,
    /// When its units were taken, by Redis' clock.
    pub accepted: Millis,
    /// When its row was written, by PostgreSQL's clock; none: it is not yet.
    pub written: Option<Millis>,
}

impl Row {
    /// Whether its units are taken; those of a refunded order come back unless that was declined.
    pub fn is_live(&self) -> bool {
        matches!(self.state, OrderState::PendingPayment | OrderState::Paid)
    }

    /// Whether it waits for its money.
    pub fn is_unpaid(&self) -> bool {
        self.state == OrderState::PendingPayment
    }
}

impl Admin {
    /// A client for a running system.
    pub fn new(environment: &Environment) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .build();
        Self {
            agent: config.into(),
            base: format!("http://{}/admin/v1", environment.api),
            token: format!("Bearer {}", environment.admin_token),
        }
    }

    fn get(&self, path: &str) -> Result<(u16, Value)> {
        let request = self.agent.get(format!("{}{path}", self.base)).header("Authorization", &self.token);
        read(request.call()).with_context(|| format!("GET {path}"))
    }

    fn send(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let request = self.agent.post(format!("{}{path}", self.base)).header("Authorization", &self.token);
        read(request.send_json(body)).with_context(|| format!("POST {path}"))
    }

    /// Whether the back office answers.
    pub fn answers(&self) -> bool {
        matches!(self.get("/sales?limit=1"), Ok((200, _)))
    }

    /// Makes a sale, preloads and opens it.
    pub fn open(&self, sale: &SaleId, offer: &Offer) -> Result<()> {
        let now = Millis::now();
        let body = json!({
            "sale": sale,
            "starts_at": Millis(now.0 - 1_000).to_text(),
            "ends_at": now.after(LASTS).to_text(),
            "mode": "queued",
            "accept_after": "journal",
            "pay_within_seconds": offer.pay_within,
            "segments": 1,
            "items": [{
                "sku": SKU, "title": "Drill phone", "price": offer.price, "currency": CURRENCY,
                "stock": offer.stock, "per_user": offer.per_user,
            }],
        });
        expect(201, self.send("/sales", &body)?).context("making the sale")?;
        self.step(sale, "preload")?;
        self.step(sale, "open")
    }

    /// One step of a sale's life.
    pub fn step(&self, sale: &SaleId, step: &str) -> Result<()> {
        expect(200, self.send(&format!("/sales/{sale}/{step}"), &json!({}))?)
            .with_context(|| format!("{step} of {sale}"))
            .map(drop)
    }

    /// Every order of a sale.
    pub fn orders(&self, sale: &SaleId) -> Result<Vec<Row>> {
        let (mut rows, mut after) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("/orders?sale={sale}&limit={PAGE}{after}"))?;
            let page = expect(200, page).context("listing the orders")?;
            let items = page.get("items").and_then(Value::as_array).context("a list without items")?;
            for item in items {
                rows.push(row(item).with_context(|| format!("not an order: {item}"))?);
            }
            match page.get("next") {
                None | Some(Value::Null) => return Ok(rows),
                Some(Value::String(next)) if !items.is_empty() => after = format!("&after={next}"),
                Some(other) => bail!("a list's next is {other} after {} items", items.len()),
            }
        }
    }

    /// Whether an order of a sale is in this state.
    pub fn has(&self, sale: &SaleId, state: OrderState) -> Result<bool> {
        self.lists(&format!("/orders?sale={sale}&state={}&limit=1", state.as_str()))
    }

    /// Whether a list has an item.
    fn lists(&self, path: &str) -> Result<bool> {
        let page = expect(200, self.get(path)?).context("listing the orders")?;
        Ok(page.get("items").and_then(Value::as_array).is_some_and(|items| !items.is_empty()))
    }

    /// Whether an order of a sale whose units were taken at this time or later has a row.
    pub fn has_since(&self, sale: &SaleId, from: Millis) -> Result<bool> {
        self.lists(&format!("/orders?sale={sale}&from={}&limit=1", from.to_text()))
    }

    /// The sale as its buyers see it.
    pub fn look(&self, edge: SocketAddrV4, sale: &SaleId) -> Result<(String, bool)> {
        let (status, view) = read(self.agent.get(format!("http://{edge}/v1/sales/{sale}")).call())?;
        let view = expect(200, (status, view)).context("looking at the sale")?;
        let state = view.get("state").and_then(Value::as_str).context("a sale without a state")?;
        let item = view.pointer("/items/0/available").and_then(Value::as_bool);
        Ok((state.to_owned(), item.context("a sale without items")?))
    }

    /// Gives a paid order's money back, and its units.
    pub fn refund(&self, order: &OrderId) -> Result<()> {
        let body = json!({"reason": "drill"});
        expect(200, self.send(&format!("/orders/{order}/refund"), &body)?).map(drop)
    }
}

fn read(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, Value)> {
    let mut response = result?;
    let text = response.body_mut().with_config().limit(64 * 1024 * 1024).read_to_string()?;
    Ok((response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

fn expect(status: u16, (got, body): (u16, Value)) -> Result<Value> {
    if got != status {
        bail!("the back office answered {got}: {body}");
    }
    Ok(body)
}

fn row(item: &Value) -> Option<Row> {
    let text = |name: &str| item.get(name).and_then(Value::as_str);
    let units = item.get("lines")?.as_array()?.iter().map(|line| line.get("quantity")?.as_u64());
    let units = units.sum::<Option<u64>>()?;
    Some(Row {
        id: OrderId::parse(text("order_id")?)?,
        user: text("user")?.to_owned(),
        state: OrderState::parse(text("state")?)?,
        units: u32::try_from(units).ok()?,
        refund: text("refund").map(str::to_owned),
        pay_before: text("pay_before").and_then(Millis::from_text),
        accepted: text("accepted_at").and_then(Millis::from_text)?,
        written: text("created_at").and_then(Millis::from_text),
    })
}

/// What the audit said.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Its exit code: 0 balanced, 1 not, 2 could not read.
    pub code: i32,
    /// Its words.
    pub text: String,
}

/// Runs the audit of a sale, which waits for quiet at most that long.
pub fn audit(environment: &Environment, sale: &SaleId, wait: Duration) -> Result<Audit> {
    let output = Command::new(environment.program("sluice-worker")?)
        .args(["audit", "--sale", sale.as_str(), "--wait", &format!("{}s", wait.as_secs())])
        .envs(environment.values())
        .output()
        .context("starting sluice-worker audit")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Audit {
        code: output.status.code().unwrap_or(-1),
        text: String::from_utf8_lossy(&text).trim_end().to_owned(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_order_is_read() {
        let id = OrderId::mint(40, 0);
        let item = json!({
            "order_id": id, "state": "pending_payment", "sale": "s", "user": "b-1",
            "lines": [{"sku": "a", "quantity": 2}, {"sku": "b", "quantity": 1}],
            "amount": 300, "currency": "EUR", "pay_before": "2026-11-21T04:00:00.000Z",
            "refund": null, "message": null, "updated_at": "2026-11-21T03:45:00.000Z",
            "accepted_at": "2026-11-21T03:45:00.000Z", "created_at": null,
        });
        let row = row(&item).unwrap();
        assert_eq!((row.id, row.user.as_str(), row.units), (id, "b-1", 3));
        assert_eq!(row.pay_before, Some(Millis(1_795_233_600_000)));
        assert_eq!((row.accepted, row.written), (Millis(1_795_232_700_000), None));
        assert!(row.is_live());
        assert_eq!(super::row(&json!({"order_id": id})), None);
    }
}
