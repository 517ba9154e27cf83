//! The audit balances on good books, and names the equation that a corruption breaks.

use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Refund};
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::script::{Release, SegmentScripts, Settle};
use sluice_testkit::{PrivateRedis, eventually};
use sluice_worker::audit::broker::Depths;
use sluice_worker::audit::equations::judge;
use sluice_worker::audit::gather::gather;
use sluice_worker::audit::{SaleReport, print};
use sluice_worker::store::payments::{NoticeStatus, PaymentNotice};
use sqlx::AssertSqlSafe;

use crate::warden_world::{Edge, PATIENCE, Place, Process, user};

/// One order of every kind.
pub struct Books {
    pub place: Place,
    _edge: Edge,
    _warden: Process,
    pub unpaid: OrderId,
    pub paid: OrderId,
    pub cancelled: OrderId,
}

async fn notice(place: &Place, order: &OrderId, payment: &str, status: NoticeStatus) {
    let notice = PaymentNotice {
        payment_id: payment.to_owned(),
        order: *order,
        amount: 1500,
        currency: "EUR".to_owned(),
        status,
    };
    place.db.store.notice(&notice).await.unwrap();
}

/// What outbox and saga do with every change.
async fn settle(place: &Place) {
    let scripts = SegmentScripts::new(place.segment.clone(), place.epoch().await);
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT id, state, refund FROM orders").fetch_all(&place.db.pool).await.unwrap();
    let of = |(id, state, refund): &(String, String, String)| {
        let state = OrderState::parse(state).unwrap();
        let forward = matches!(state, OrderState::PendingPayment | OrderState::Paid);
        Settle {
            uuid: OrderId::parse(id).unwrap().uuid,
            state: forward.then_some(state),
            pay_before: None,
            refund: Refund::parse(refund).unwrap(),
        }
    };
    let settles: Vec<_> = rows.iter().map(of).collect();
    scripts.settle(&place.redis, &settles).await.unwrap().unwrap();
}

/// What they do with every release.
async fn release(place: &Place, orders: &[(&OrderId, &str, OrderState)]) {
    let scripts = SegmentScripts::new(place.segment.clone(), place.epoch().await);
    let lines = sluice_shared::lines::Lines::parse("phone=1").unwrap();
    let of = |(order, who, state): &(&OrderId, &str, OrderState)| Release {
        uuid: order.uuid,
        state: *state,
        lines: lines.clone(),
        user: user(who),
    };
    let releases: Vec<_> = orders.iter().map(of).collect();
    scripts.release(&place.redis, &releases).await.unwrap().unwrap();
    place.db.run("UPDATE outbox SET published_at = now()").await;
}

pub async fn books() -> Books {
    let (place, warden, _orders, edge) = Place::open(10).await;
    let unpaid = place.bought(&edge.instance, "ann").await.order;
    let paid = place.bought(&edge.instance, "bob").await.order;
    let cancelled = place.bought(&edge.instance, "eve").await.order;
    let refunded = place.bought(&edge.instance, "ida").await.order;
    notice(&place, &paid, "p-1", NoticeStatus::Succeeded).await;
    notice(&place, &refunded, "p-2", NoticeStatus::Succeeded).await;
    notice(&place, &refunded, "p-2", NoticeStatus::Refunded).await;
    place.db.store.cancel(&cancelled, &user("eve")).await.unwrap();
    let back = [(&cancelled, "eve", OrderState::Cancelled), (&refunded, "ida", OrderState::Refunded)];
    release(&place, &back).await;
    settle(&place).await;
    Books { place, _edge: edge, _warden: warden, unpaid, paid, cancelled }
}

impl Books {
    pub async fn judge(&self, depths: Option<Depths>) -> SaleReport {
        let place = &self.place;
        let seen = gather(&place.db.store, &place.redis, &place.segment.sale).await.unwrap();
        judge(&seen, depths)
    }

    pub async fn sql(&self, text: String) {
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&self.place.db.pool).await.unwrap();
    }
}

pub fn broken(report: &SaleReport) -> Vec<&'static str> {
    let mut names: Vec<_> = report.equations.iter().filter(|e| !e.holds).map(|e| e.name).collect();
    names.dedup();
    names
}

#[tokio::test]
async fn good_books_balance_and_every_unit_is_somewhere() {
    let books = books().await;
    let report = books.judge(None).await;
    assert_eq!(broken(&report), Vec::<&str>::new(), "{report:#?}");
    assert!(report.balanced && report.at_rest && report.in_redis, "{report:#?}");
    let units = &report.units[0];
    let terms = (units.preloaded, units.left, units.journalled, units.in_broker, units.held, units.sold);
    // The first buyer who proved that the sale sells is one of the two who hold.
    assert_eq!(terms, (10, 7, 0, 0, 2, 1));
    let edge = sluice_shared::ids::InstanceId::parse("edge.1.a").unwrap();
    books.place.ask(&edge, "kim").await.unwrap();
    let report = books.judge(None).await;
    assert!(report.balanced && !report.at_rest, "{report:#?}");
    assert_eq!((report.units[0].left, report.units[0].journalled), (6, 1));
    let whole = sluice_worker::audit::judge(&books.place.db.store, &books.place.redis, None).await.unwrap();
    assert!(whole.balanced && whole.looks == 1);
    assert!(print::table(&whole).contains("= 6 left + 1 journalled"), "{}", print::table(&whole));
}

#[tokio::test]
async fn a_replica_tells_the_audit_as_much_as_its_primary() {
    let (books, second) = (books().await, PrivateRedis::start());
    let (place, replica) = (&books.place, second.connect());
    let port = place.server.port().to_string();
    let follow = cmd("REPLICAOF").arg(&["127.0.0.1", &port]).to_owned();
    replica.run::<String>("test", &follow).await.unwrap();
    let orders = async |redis: &Redis| redis.run("test", cmd("HLEN").arg(place.segment.orders())).await;
    let all: Result<u64, _> = orders(&place.redis).await;
    eventually("it has followed", PATIENCE, async || orders(&replica).await == all).await;
    let judged = |redis| sluice_worker::audit::judge(&place.db.store, redis, None);
    let report = judged(&replica).await.unwrap();
    assert!(report.balanced && report.at_rest && report.sales[0].in_redis, "{report:#?}");
    place.run(&["HINCRBY", &place.segment.stock(), "phone", "1"]).await;
    let left =
        async |redis: &Redis| redis.run("test", cmd("HGET").arg(place.segment.stock()).arg("phone")).await;
    let one_more: Result<u64, _> = left(&place.redis).await;
    eventually("it has followed", PATIENCE, async || left(&replica).await == one_more).await;
    let report = judged(&replica).await.unwrap();
    assert_eq!(broken(&report.sales[0]), ["R1", "C"]);
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table: what is corrupted, and the equations that name it")]
async fn every_corruption_of_redis_is_named_by_its_equation() {
    let cases = 16;
    for case in 0..cases {
        let books = books().await;
        let place = &books.place;
        let (stock, orders, journal) =
            (place.segment.stock(), place.segment.orders(), place.segment.journal());
        let unpaid = books.unpaid.field();
        let record = place.record(&books.unpaid).await.unwrap();
        let (named, also): (&str, &str) = match case {
            0 => {
                place.run(&["HINCRBY", &stock, "phone", "1"]).await;
                ("R1", "C")
            }
            1 => {
                place.run(&["HSET", &stock, "phone", "-1"]).await;
                ("R1", "C")
            }
            2 => {
                place.run(&["HDEL", &orders, "@ann"]).await;
                ("R3", "")
            }
            3 => {
                place.run(&["HDEL", &orders, &unpaid]).await;
                ("R1", "X1")
            }
            4 => {
                place.run(&["XADD", &journal, "1-9999", "o", &"ab".repeat(16)]).await;
                ("R2", "")
            }
            5 => {
                let torn = &record.to_string()[..12];
                place.run(&["HSET", &orders, &unpaid, torn]).await;
                ("R0", "X1")
            }
            6 => {
                let mut back = record.clone();
                back.released = true;
                place.run(&["HSET", &orders, &unpaid, &back.to_string()]).await;
                place.run(&["HINCRBY", &stock, "phone", "1"]).await;
                place.run(&["HDEL", &orders, "@ann"]).await;
                ("X5", "X1")
            }
            7 => {
                // A unit that nobody in the books has, with everything that belongs to it.
                let mut ghost = record.clone();
                ghost.state = OrderState::PendingPayment;
                ghost.seq = 99;
                ghost.user = user("ghost");
                let field = "cd".repeat(16);
                place.run(&["HSET", &orders, &field, &ghost.to_string(), "@ghost", "phone=1"]).await;
                place.run(&["HINCRBY", &stock, "phone", "-1"]).await;
                place.run(&["HSET", &place.segment.meta(), "seq", "99"]).await;
                ("X2", "R2s")
            }
            8 => {
                place.run(&["HINCRBY", &place.segment.meta(), "init:phone", "2"]).await;
                place.run(&["HINCRBY", &stock, "phone", "2"]).await;
                ("X3", "C")
            }
            9 => {
                place.run(&["DEL", &place.segment.meta(), &stock, &orders, &journal]).await;
                ("R0", "X1")
            }
            10 => {
                // A buyer's order and mark grew together.
                let mut more = record.clone();
                more.lines = sluice_shared::lines::Lines::parse("phone=500").unwrap();
                place.run(&["HSET", &orders, &unpaid, &more.to_string(), "@ann", "phone=500"]).await;
                ("R3l", "R1")
            }
            11 => {
                // Its buyer is told that he has paid.
                let mut paid = record.clone();
                paid.state = OrderState::Paid;
                place.run(&["HSET", &orders, &unpaid, &paid.to_string()]).await;
                ("X7", "")
            }
            12 => {
                place.run(&["HSET", &place.segment.meta(), "limit:phone", "99"]).await;
                ("X8", "")
            }
            13 => {
                place.run(&["HINCRBY", &place.segment.meta(), "ends", "60000"]).await;
                ("X8", "")
            }
            14 => {
                let mut moved = record.clone();
                moved.seq -= 1;
                place.run(&["HSET", &orders, &unpaid, &moved.to_string()]).await;
                ("X1", "R2s")
            }
            _ => {
                // Redis shows an earlier moment, consistent in itself: what it lost is in the books.
                let before = (record.seq - 1).to_string();
                place.run(&["HDEL", &orders, &unpaid, "@ann"]).await;
                place.run(&["HINCRBY", &stock, "phone", "1"]).await;
                place.run(&["HSET", &place.segment.meta(), "seq", &before]).await;
                books.sql("UPDATE orders SET created_at = created_at - interval '10 s'".to_owned()).await;
                ("X1", "")
            }
        };
        let report = books.judge(None).await;
        let broken = broken(&report);
        assert!(!report.balanced && broken.contains(&named), "case {case}: {named} not in {broken:?}");
        assert!(also.is_empty() || broken.contains(&also), "case {case}: {also} not in {broken:?}");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table: what is corrupted, and the equations that name it")]
async fn every_corruption_of_the_books_is_named_by_its_equation() {
    let order = |id: &OrderId| format!("'{id}'");
    type Mutant = (&'static str, fn(&Books, &str) -> String);
    let cases: [(Mutant, &str); 22] = [
        (("P3o", |_, unpaid| format!("DELETE FROM orders WHERE id = {unpaid}")), "P1"),
        (("H", |_, unpaid| format!("UPDATE ledger SET quantity = 2 WHERE order_id = {unpaid}")), "P1l"),
        (("H", |_, unpaid| format!("DELETE FROM ledger WHERE order_id = {unpaid}")), "P3t"),
        (("P1", |_, _| "UPDATE offers SET taken = taken + 1".to_owned()), "P1l"),
        (("P1s", |_, _| "UPDATE offers SET stock = stock + 1".to_owned()), "X3"),
        (
            ("P3t", |_, unpaid| {
                format!(
                    "DROP INDEX ledger_once;
                     INSERT INTO ledger SELECT sale, sku, 99, kind, order_id, change, quantity, at, hash
                     FROM ledger WHERE order_id = {unpaid} AND kind = 'take'"
                )
            }),
            "H",
        ),
        (("P3r", |books, _| format!("UPDATE orders SET live = true WHERE id = '{}'", books.cancelled)), "P1"),
        (("P3s", |_, unpaid| format!("UPDATE orders SET state = 'paid' WHERE id = {unpaid}")), "P4"),
        (("P1m", |_, _| "UPDATE offers SET stock = 1, taken = 1".to_owned()), "P1"),
        (("P4", |_, _| "DELETE FROM payments WHERE payment_id = 'p-1'".to_owned()), ""),
        (("P4", |books, _| format!("DELETE FROM orders WHERE id = '{}'", books.paid)), "P1"),
        (("P4", |_, _| "UPDATE payments SET currency = 'USD' WHERE payment_id = 'p-1'".to_owned()), ""),
        (("P4", |books, _| format!("UPDATE orders SET refund = 'due' WHERE id = '{}'", books.paid)), ""),
        (("P4a", |_, unpaid| format!("UPDATE orders SET amount = 1 WHERE id = {unpaid}")), ""),
        (("P4a", |_, _| "UPDATE offers SET currency = 'USD'".to_owned()), ""),
        (
            ("P1c", |_, _| {
                "INSERT INTO stock_changes (key, sale, sku, delta, reason, fingerprint, state)
                 VALUES ('k', 'demo', 'phone', 5, 'as told', '', 'done')"
                    .to_owned()
            }),
            "",
        ),
        (
            ("P3t", |books, _| {
                format!(
                    "UPDATE ledger SET line = 99 WHERE kind = 'take' AND order_id = '{}'",
                    books.cancelled
                )
            }),
            "H",
        ),
        (("P7", |_, _| "UPDATE sales SET step = 'created'".to_owned()), ""),
        (("X1", |_, unpaid| format!("UPDATE orders SET seq = seq - 1 WHERE id = {unpaid}")), ""),
        (("P5", |books, _| format!("UPDATE orders SET epoch = 9 WHERE id = '{}'", books.paid)), ""),
        (
            ("P2", |_, _| {
                "UPDATE orders SET user_id = 'bob' WHERE live; UPDATE offers SET per_user = 1".to_owned()
            }),
            "X1",
        ),
        (
            ("X4", |books, _| {
                format!(
                    "UPDATE orders SET state = 'expired', live = false,
                            updated_at = now() - interval '1 minute' WHERE id = '{}'",
                    books.unpaid
                )
            }),
            "P3r",
        ),
    ];
    for ((named, mutant), also) in cases {
        let books = books().await;
        books.sql(mutant(&books, &order(&books.unpaid))).await;
        let report = books.judge(None).await;
        let broken = broken(&report);
        assert!(!report.balanced && broken.contains(&named), "{named} not in {broken:?}");
        assert!(also.is_empty() || broken.contains(&also), "{named}: {also} not in {broken:?}");
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_a_difference() {
    let books = books().await;
    books.sql(format!("UPDATE orders SET lines = 'phone' WHERE id = '{}'", books.unpaid)).await;
    let (store, redis) = (&books.place.db.store, &books.place.redis);
    let report = sluice_worker::audit::judge(store, redis, None).await.unwrap();
    assert!(!report.balanced && broken(&report.sales[0]) == ["P0"], "{report:#?}");
    let named = report.sales[0].equations.iter().find(|equation| equation.name == "P0").unwrap();
    assert!(named.offenders[0].contains(&books.unpaid.to_string()), "{named:?}");
}

#[tokio::test]
async fn an_order_that_is_nowhere_is_lost_unless_the_broker_may_have_it() {
    let books = books().await;
    let place = &books.place;
    let edge = sluice_shared::ids::InstanceId::parse("edge.1.a").unwrap();
    let order = place.ask(&edge, "kim").await.unwrap();
    let mut record = place.record(&order.order).await.unwrap();
    place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
    assert!(books.judge(None).await.balanced, "young");
    record.accepted.0 -= 10_000;
    place.run(&["HSET", &place.segment.orders(), &order.order.field(), &record.to_string()]).await;
    assert_eq!(broken(&books.judge(None).await), ["X2"]);
    let depths = Depths { orders: 1, releases: 0, changes: 0 };
    let report = books.judge(Some(depths)).await;
    assert!(report.balanced && !report.at_rest, "{report:#?}");
    assert_eq!(report.units[0].in_broker, 1);
}

#[tokio::test]
async fn a_state_that_buyers_are_not_told_is_a_difference_unless_the_broker_may_have_it() {
    let books = books().await;
    let paid = format!("UPDATE orders SET state = 'paid' WHERE id = '{}'", books.unpaid);
    books.sql(paid).await;
    let told = |report: &SaleReport| {
        let equation = report.equations.iter().find(|equation| equation.name == "X6").unwrap();
        (equation.holds, equation.offenders.clone())
    };
    let young = books.judge(None).await;
    assert!(told(&young).0 && !young.at_rest, "{young:#?}");
    books.sql("UPDATE orders SET updated_at = now() - interval '1 minute'".to_owned()).await;
    assert_eq!(told(&books.judge(None).await), (false, vec![books.unpaid.to_string()]));
    let depths = Depths { orders: 0, releases: 0, changes: 1 };
    assert!(told(&books.judge(Some(depths)).await).0);
}

#[tokio::test]
async fn a_sale_that_left_redis_is_judged_by_the_books_alone() {
    let books = books().await;
    let place = &books.place;
    let keys = [place.segment.meta(), place.segment.stock(), place.segment.orders(), place.segment.journal()];
    place.run(&["DEL", &keys[0], &keys[1], &keys[2], &keys[3]]).await;
    books
        .sql(
            "UPDATE sales SET step = 'closed', starts_at = now() - interval '3 days',
                    ends_at = now() - interval '2 days', updated_at = now() - interval '2 days'"
                .to_owned(),
        )
        .await;
    let report = books.judge(None).await;
    assert!(report.balanced && !report.in_redis, "{report:#?}");
    books.sql("UPDATE offers SET taken = taken + 1".to_owned()).await;
    assert!(!books.judge(None).await.balanced);
}
