//! Notices into the books: a group in one transaction, so that a wave of payments for one offer waits
//! for its row and its ledger once, not once each.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::PgConnection;

use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Refund};

use super::{Effect, Known, NoticeOutcome, Payment, PaymentNotice, Payments, fits, judge};
use crate::store::ledger::Ledger;
use crate::store::orders::{OrderRow, RawOrder, columns, lock_offers, sell, take_back};
use crate::store::{Locked, Store, StoreError, outbox};

/// How often one is begun again because another transaction has just written its payment.
const ATTEMPTS: u32 = 3;

/// What came of an attempt.
enum Attempt {
    /// An outcome each; `None` for one whose order somebody else has locked.
    Booked(Vec<Option<NoticeOutcome>>),
    /// Nothing is booked: other transactions have written these payments, or hold them.
    Contested(HashSet<String>),
}

impl Store {
    /// Judges and books one notice; repeats change nothing.
    pub async fn notice(&self, notice: &PaymentNotice) -> Result<NoticeOutcome, StoreError> {
        for _ in 0..ATTEMPTS {
            match self.attempt(&[notice], Locked::Await).await? {
                Attempt::Booked(outcomes) => {
                    let outcome = outcomes.into_iter().flatten().next();
                    return outcome.ok_or_else(|| StoreError::Broken("a notice was not answered".to_owned()));
                }
                Attempt::Contested(_) => {}
            }
        }
        Err(StoreError::Away("other notices of the same payment are being booked".to_owned()))
    }

    /// Judges and books notices in one transaction, each after those before it; answers in their
    /// order. Repeats change nothing. `None` is for those whose order or payment somebody else is
    /// working on: they hold up none of the others.
    pub async fn notices(&self, notices: &[PaymentNotice]) -> Result<Vec<Option<NoticeOutcome>>, StoreError> {
        let mut contested: HashSet<String> = HashSet::new();
        loop {
            let free = |notice: &&PaymentNotice| !contested.contains(&notice.payment_id);
            let now: Vec<&PaymentNotice> = notices.iter().filter(free).collect();
            if now.is_empty() {
                return Ok(vec![None; notices.len()]);
            }
            match self.attempt(&now, Locked::Skip).await? {
                Attempt::Booked(outcomes) => {
                    let mut outcomes = outcomes.into_iter();
                    let one = |notice: &PaymentNotice| {
                        if contested.contains(&notice.payment_id) { None } else { outcomes.next().flatten() }
                    };
                    return Ok(notices.iter().map(one).collect());
                }
                // Each time there are more of them, so this ends.
                Attempt::Contested(more) => contested.extend(more),
            }
        }
    }

    async fn attempt(&self, notices: &[&PaymentNotice], locked: Locked) -> Result<Attempt, StoreError> {
        let mut writing = self.begin(locked).await?;
        // Orders, then payments, then offers, each by name: so does whoever else locks them, and
        // nobody waits for somebody who waits for him.
        let (rows, busy) = orders(&mut writing, notices, locked).await?;
        let all = notices;
        let notices: Vec<&PaymentNotice> =
            all.iter().copied().filter(|notice| !busy.contains(&notice.order)).collect();
        let notices = notices.as_slice();
        let mut payments = known(&mut writing, notices, &rows, locked).await?;
        let judged = judge(notices, &rows, &mut payments);
        let contested = write_down(&mut writing, &payments, &rows).await?;
        if !contested.is_empty() {
            return Ok(Attempt::Contested(contested));
        }
        let moves = |effect: &_| matches!(effect, Ok(Effect::Pay | Effect::TakeBack));
        let moving = notices.iter().zip(&judged).filter(|(_, effect)| moves(effect));
        let moving = moving.filter_map(|(notice, _)| rows.get(&notice.order));
        let ledger = lock_offers(&mut writing, moving).await?;
        let mut booking = Booking { writing: &mut writing, ledger, rows, paying: Vec::new() };
        for (notice, effect) in notices.iter().zip(&judged) {
            if let Ok(effect) = effect {
                booking.apply(notice, *effect).await?;
            }
        }
        let rows = booking.finish().await?;
        writing.commit().await?;
        self.ring();
        let outcome = |notice: &PaymentNotice, effect: Result<Effect, NoticeOutcome>| {
            let noted = |row: &OrderRow| NoticeOutcome::Noted(Box::new(row.clone()));
            let row = rows.get(&notice.order);
            effect.map_or_else(|refused| refused, |_| row.map_or(NoticeOutcome::UnknownOrder, noted))
        };
        let mut judged = judged.into_iter();
        let told = |notice: &&PaymentNotice| {
            if busy.contains(&notice.order) {
                None
            } else {
                judged.next().map(|effect| outcome(notice, effect))
            }
        };
        Ok(Attempt::Booked(all.iter().map(told).collect()))
    }
}

/// The rows of the orders that notices name, and the orders whose rows somebody else has locked. Each row is a
/// lock: notices, expiry and cancellation of one order come one by one.
async fn orders(
    writing: &mut PgConnection,
    notices: &[&PaymentNotice],
    locked: Locked,
) -> Result<(HashMap<OrderId, OrderRow>, HashSet<OrderId>), StoreError> {
    let ids: BTreeSet<OrderId> = notices.iter().map(|notice| notice.order).collect();
    let text = |ids: &BTreeSet<OrderId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    let query = match locked {
        Locked::Await => {
            concat!("SELECT ", columns!(), " FROM orders WHERE id = ANY($1) ORDER BY id FOR UPDATE")
        }
        Locked::Skip => {
            concat!(
                "SELECT ",
                columns!(),
                " FROM orders WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED"
            )
        }
    };
    let raw: Vec<RawOrder> = sqlx::query_as(query).bind(text(&ids)).fetch_all(&mut *writing).await?;
    let rows = raw.into_iter().map(|raw| OrderRow::try_from(raw).map(|row| (row.id, row)));
    let rows = rows.collect::<Result<HashMap<_, _>, _>>()?;
    let missing: BTreeSet<OrderId> = ids.into_iter().filter(|id| !rows.contains_key(id)).collect();
    if locked == Locked::Await || missing.is_empty() {
        return Ok((rows, HashSet::new()));
    }
    let there: Vec<String> = sqlx::query_scalar("SELECT id FROM orders WHERE id = ANY($1)")
        .bind(text(&missing))
        .fetch_all(writing)
        .await?;
    Ok((rows, there.iter().filter_map(|id| OrderId::parse(id)).collect()))
}

/// What the books know of the payments of notices that fit their orders.
async fn known(
    writing: &mut PgConnection,
    notices: &[&PaymentNotice],
    rows: &HashMap<OrderId, OrderRow>,
    locked: Locked,
) -> Result<Payments, StoreError> {
    let fit = notices.iter().filter(|notice| rows.get(&notice.order).is_some_and(|row| fits(notice, row)));
    let ids: BTreeSet<&str> = fit.map(|notice| notice.payment_id.as_str()).collect();
    let query = match locked {
        Locked::Await => {
            "SELECT payment_id, order_id, state FROM payments WHERE payment_id = ANY($1)
             ORDER BY payment_id COLLATE \"C\" FOR UPDATE"
        }
        Locked::Skip => {
            "SELECT payment_id, order_id, state FROM payments WHERE payment_id = ANY($1)
             ORDER BY payment_id COLLATE \"C\" FOR UPDATE SKIP LOCKED"
        }
    };
    let old: Vec<(String, String, String)> =
        sqlx::query_as(query).bind(Vec::from_iter(ids)).fetch_all(writing).await?;
    let read = |(id, order, state): (String, String, String)| {
        let bad = || StoreError::Broken(format!("payment {id} is in a bad state or of a bad order"));
        let stood = Some(Payment::parse(&state).ok_or_else(bad)?);
        let order = OrderId::parse(&order).ok_or_else(bad)?;
        Ok((id, Known { order, stood, stands: stood }))
    };
    old.into_iter().map(read).collect()
}

/// Writes down how payments stand; a new one is bound to its order by that. Answers those that could not be: what
/// another transaction has written since we looked, or holds, is to be looked at again.
async fn write_down(
    writing: &mut PgConnection,
    payments: &Payments,
    rows: &HashMap<OrderId, OrderRow>,
) -> Result<HashSet<String>, StoreError> {
    let (mut new, mut old) = (Columns::default(), Columns::default());
    for (id, known) in payments.iter().filter(|(_, known)| known.stood != known.stands) {
        let (Some(stands), Some(row)) = (known.stands, rows.get(&known.order)) else { continue };
        let columns = if known.stood.is_none() { &mut new } else { &mut old };
        columns.add(id, stands, row);
    }
    let ids = new.ids.clone();
    if !ids.is_empty() {
        let inserted: Vec<String> = sqlx::query_scalar(
            "INSERT INTO payments (payment_id, order_id, amount, currency, state)
             SELECT id, of, amount, currency, state
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
                  AS new (id, state, of, amount, currency)
             ON CONFLICT DO NOTHING RETURNING payment_id",
        )
        .bind(new.ids)
        .bind(new.states)
        .bind(new.orders)
        .bind(new.amounts)
        .bind(new.currencies)
        .fetch_all(&mut *writing)
        .await?;
        if inserted.len() < ids.len() {
            let inserted: HashSet<&str> = inserted.iter().map(String::as_str).collect();
            let contested = ids.into_iter().filter(|id| !inserted.contains(id)).map(str::to_owned);
            return Ok(contested.collect());
        }
    }
    if !old.ids.is_empty() {
        sqlx::query(
            "UPDATE payments SET state = new.state, updated_at = now()
             FROM unnest($1::text[], $2::text[]) AS new (id, state) WHERE payment_id = id",
        )
        .bind(old.ids)
        .bind(old.states)
        .execute(writing)
        .await?;
    }
    Ok(HashSet::new())
}

/// Payments in columns, as they are written.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<&'a str>,
    states: Vec<&'static str>,
    orders: Vec<String>,
    amounts: Vec<i64>,
    currencies: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn add(&mut self, id: &'a str, stands: Payment, row: &'a OrderRow) {
        self.ids.push(id);
        self.states.push(stands.as_str());
        self.orders.push(row.id.to_string());
        self.amounts.push(row.amount);
        self.currencies.push(&row.currency);
    }
}

/// Notices that have been judged, on their way into the books.
struct Booking<'a> {
    writing: &'a mut PgConnection,
    ledger: Ledger,
    rows: HashMap<OrderId, OrderRow>,
    /// Orders to be paid, each with its payment; most notices are such, and are booked together.
    paying: Vec<(OrderId, &'a str)>,
}

impl<'a> Booking<'a> {
    async fn apply(&mut self, notice: &'a PaymentNotice, effect: Effect) -> Result<(), StoreError> {
        if effect == Effect::Pay {
            self.paying.push((notice.order, &notice.payment_id));
            return Ok(());
        }
        if matches!(effect, Effect::Nothing | Effect::Record(_)) {
            return Ok(());
        }
        self.pay().await?;
        let order = notice.order;
        let Some(row) = self.rows.get(&order).cloned() else { return Ok(()) };
        let row = match effect {
            Effect::Nothing | Effect::Record(_) | Effect::Pay => return Ok(()),
            Effect::Surplus => tell(self.writing, &row, row.refund.owed()).await?,
            Effect::Settle => {
                let refund = owed(self.writing, &row).await?;
                tell(self.writing, &row, refund).await?
            }
            Effect::TakeBack => {
                let refund = owed(self.writing, &row).await?;
                let keeps = !sale_runs(self.writing, &row).await?;
                let row = update(self.writing, &row, OrderState::Refunded, refund, keeps).await?;
                take_back(self.writing, &mut self.ledger, &row, "by the payment provider").await?;
                row
            }
        };
        self.rows.insert(order, row);
        Ok(())
    }

    /// Pays the orders that wait for it.
    async fn pay(&mut self) -> Result<(), StoreError> {
        if self.paying.is_empty() {
            return Ok(());
        }
        let paying: BTreeMap<OrderId, &str> = std::mem::take(&mut self.paying).into_iter().collect();
        let raw: Vec<RawOrder> = sqlx::query_as(concat!(
            "UPDATE orders SET state = 'paid', live = true, updated_at = now()
             WHERE id = ANY($1) AND state = 'pending_payment' RETURNING ",
            columns!()
        ))
        .bind(paying.keys().map(ToString::to_string).collect::<Vec<_>>())
        .fetch_all(&mut *self.writing)
        .await?;
        if raw.len() != paying.len() {
            return Err(StoreError::Broken("an order that was locked unpaid is not unpaid".to_owned()));
        }
        let rows = raw.into_iter().map(OrderRow::try_from).collect::<Result<Vec<_>, _>>()?;
        let sold: Vec<(&OrderRow, &str)> =
            rows.iter().filter_map(|row| paying.get(&row.id).map(|payment| (row, *payment))).collect();
        sell(self.writing, &mut self.ledger, &sold).await?;
        self.rows.extend(rows.into_iter().map(|row| (row.id, row)));
        Ok(())
    }

    /// Books what still waits; answers the orders as they are then.
    async fn finish(mut self) -> Result<HashMap<OrderId, OrderRow>, StoreError> {
        self.pay().await?;
        self.ledger.write(self.writing).await?;
        Ok(self.rows)
    }
}

/// Whether other money for this order still has to go back.
async fn owed(writing: &mut PgConnection, row: &OrderRow) -> Result<Refund, StoreError> {
    let owed: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM payments WHERE order_id = $1
                        AND (state = 'surplus' OR state = 'captured' AND $2))",
    )
    .bind(row.id.to_string())
    .bind(row.state == OrderState::Refunded)
    .fetch_one(writing)
    .await?;
    Ok(if owed { row.refund.owed() } else { row.refund.given_back() })
}

/// Whether units that come back can be sold again.
async fn sale_runs(writing: &mut PgConnection, row: &OrderRow) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT now() < ends_at AND step <> 'closed' FROM sales WHERE sale = $1")
        .bind(row.sale.as_str())
        .fetch_one(writing)
        .await?)
}

async fn tell(writing: &mut PgConnection, row: &OrderRow, refund: Refund) -> Result<OrderRow, StoreError> {
    if row.refund == refund {
        return Ok(row.clone());
    }
    let row = update(writing, row, row.state, refund, row.live).await?;
    outbox::push(writing, outbox::CHANGED, &[row.event(false)]).await?;
    Ok(row)
}

async fn update(
    writing: &mut PgConnection,
    row: &OrderRow,
    state: OrderState,
    refund: Refund,
    live: bool,
) -> Result<OrderRow, StoreError> {
    let raw: RawOrder = sqlx::query_as(concat!(
        "UPDATE orders SET state = $3, refund = $4, live = $5, refund_round = $6, updated_at = now()
         WHERE id = $1 AND state = $2 RETURNING ",
        columns!()
    ))
    .bind(row.id.to_string())
    .bind(row.state.as_str())
    .bind(state.as_str())
    .bind(refund.as_str())
    .bind(live)
    .bind(i64::from(refund.round()))
    .fetch_one(writing)
    .await?;
    OrderRow::try_from(raw)
}
