//! Payment notices, as a table: what was told before, what is told now, what the order is then.

use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Refund};
use sluice_worker::store::orders::OrderRow;
use sluice_worker::store::payments::{NoticeOutcome, NoticeStatus, PaymentNotice};

use crate::harness::world::{insert_sale, refund, verify_ledger};
use crate::harness::{TestDatabase, accepted, events};
use NoticeStatus::{Failed, Refunded as Returned, Succeeded};

fn notice(order: &OrderId, payment: &str, status: NoticeStatus) -> PaymentNotice {
    let (payment_id, currency) = (payment.to_owned(), "EUR".to_owned());
    PaymentNotice { payment_id, order: *order, amount: 1500, currency, status }
}

async fn books() -> TestDatabase {
    let db = TestDatabase::new().await;
    insert_sale(&db, "demo", &[("phone", 1000)]).await;
    db
}

async fn written(db: &TestDatabase) -> OrderId {
    let order = accepted("alice", "phone=1");
    db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
    order.order
}

async fn noted(db: &TestDatabase, notice: &PaymentNotice) -> OrderRow {
    match db.store.notice(notice).await.unwrap() {
        NoticeOutcome::Noted(row) => *row,
        other => panic!("{other:?}"),
    }
}

/// How an order gets where the notices find it.
#[derive(Debug, Clone, Copy)]
enum Before {
    Nothing,
    Expired,
    Cancelled,
    /// By an operator, its units back or kept, after payment p1.
    RefundedBack,
    RefundedKept,
    /// The sale is over.
    Ended,
}

#[tokio::test]
async fn notices_do_to_an_order_what_the_contract_says() {
    use Before::*;
    type Case = (Before, &'static [(&'static str, NoticeStatus)], &'static str, &'static str, i64);
    let table: &[Case] = &[
        // before, notices, state, refund, units taken
        (Nothing, &[("p1", Succeeded)], "paid", "-", 1),
        (Nothing, &[("p1", Succeeded), ("p1", Succeeded)], "paid", "-", 1),
        (Nothing, &[("p1", Failed)], "pending_payment", "-", 1),
        (Nothing, &[("p1", Failed), ("p1", Failed), ("p1", Succeeded)], "paid", "-", 1),
        (Nothing, &[("p1", Failed), ("p2", Succeeded)], "paid", "-", 1),
        (Nothing, &[("p1", Succeeded), ("p1", Failed)], "paid", "-", 1),
        (Nothing, &[("p1", Succeeded), ("p2", Succeeded)], "paid", "due", 1),
        (Nothing, &[("p1", Succeeded), ("p2", Succeeded), ("p2", Returned)], "paid", "done", 1),
        (Nothing, &[("p1", Succeeded), ("p2", Succeeded), ("p1", Returned)], "refunded", "due", 0),
        (Nothing, &[("p1", Succeeded), ("p1", Returned)], "refunded", "done", 0),
        (Nothing, &[("p1", Succeeded), ("p1", Returned), ("p1", Returned)], "refunded", "done", 0),
        (Nothing, &[("p1", Succeeded), ("p1", Returned), ("p1", Succeeded)], "refunded", "done", 0),
        (Nothing, &[("p1", Succeeded), ("p9", Returned)], "paid", "done", 1),
        // A refund overtakes the news of its payment.
        (Nothing, &[("p1", Returned), ("p1", Succeeded)], "pending_payment", "done", 1),
        (Expired, &[("p1", Succeeded)], "expired", "due", 0),
        (Expired, &[("p1", Succeeded), ("p1", Succeeded)], "expired", "due", 0),
        (Expired, &[("p1", Succeeded), ("p1", Returned)], "expired", "done", 0),
        (Expired, &[("p1", Failed)], "expired", "-", 0),
        (Expired, &[("p1", Succeeded), ("p2", Succeeded), ("p1", Returned)], "expired", "due", 0),
        (Cancelled, &[("p1", Succeeded)], "cancelled", "due", 0),
        (Cancelled, &[("p1", Succeeded), ("p1", Returned)], "cancelled", "done", 0),
        (RefundedBack, &[], "refunded", "due", 0),
        (RefundedBack, &[("p1", Returned)], "refunded", "done", 0),
        (RefundedBack, &[("p9", Returned)], "refunded", "due", 0),
        (RefundedBack, &[("p2", Succeeded), ("p1", Returned)], "refunded", "due", 0),
        (RefundedKept, &[], "refunded", "due", 1),
        (RefundedKept, &[("p1", Returned)], "refunded", "done", 1),
        (Ended, &[("p1", Succeeded), ("p1", Returned)], "refunded", "done", 1),
    ];
    for (before, notices, state, refund, taken) in table {
        let db = books().await;
        let order = written(&db).await;
        prepare(&db, &order, *before).await;
        for (payment, status) in *notices {
            noted(&db, &notice(&order, payment, *status)).await;
        }
        let row = db.store.order(&order).await.unwrap().unwrap();
        let found = (row.state.as_str(), row.refund.as_str(), db.count("SELECT taken FROM offers").await);
        assert_eq!(found, (*state, *refund, *taken), "{before:?} {notices:?}");
        verify_ledger(&db).await;
    }
}

async fn prepare(db: &TestDatabase, order: &OrderId, before: Before) {
    match before {
        Before::Nothing => {}
        Before::Ended => db.run("UPDATE sales SET ends_at = now()").await,
        Before::Expired => {
            db.run("UPDATE orders SET pay_before = now() - interval '1 second'").await;
            assert_eq!(db.store.expire(&[*order]).await.unwrap(), [*order]);
        }
        Before::Cancelled => {
            let user = db.store.order(order).await.unwrap().unwrap().user;
            db.store.cancel(order, &user).await.unwrap();
        }
        Before::RefundedBack | Before::RefundedKept => {
            noted(db, &notice(order, "p1", Succeeded)).await;
            refund(db, order, matches!(before, Before::RefundedBack)).await;
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_the_order_changes_nothing() {
    let db = books().await;
    let (order, other) = (written(&db).await, written(&db).await);
    let good = notice(&order, "p1", Succeeded);
    let forged = [
        PaymentNotice { amount: 1, ..good.clone() },
        PaymentNotice { amount: -1500, ..good.clone() },
        PaymentNotice { currency: "USD".into(), ..good.clone() },
        PaymentNotice { currency: "eur".into(), ..good.clone() },
    ];
    for notice in &forged {
        assert_eq!(db.store.notice(notice).await.unwrap(), NoticeOutcome::AmountMismatch);
    }
    let unknown = notice(&OrderId::mint(1, 0), "p1", Succeeded);
    assert_eq!(db.store.notice(&unknown).await.unwrap(), NoticeOutcome::UnknownOrder);
    assert_eq!(db.count("SELECT count(*) FROM payments").await, 0);
    noted(&db, &good).await;
    for status in [Succeeded, Failed, Returned] {
        let stolen = notice(&other, "p1", status);
        assert_eq!(db.store.notice(&stolen).await.unwrap(), NoticeOutcome::OtherOrder);
    }
    assert_eq!(db.store.order(&other).await.unwrap().unwrap().state, OrderState::PendingPayment);
    // A failed attempt binds its payment to its order too.
    noted(&db, &notice(&other, "p2", Failed)).await;
    assert_eq!(db.store.notice(&notice(&order, "p2", Succeeded)).await.unwrap(), NoticeOutcome::OtherOrder);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn a_payment_is_told_once_and_its_saga_goes_on() {
    let db = books().await;
    let order = written(&db).await;
    db.run("DELETE FROM outbox").await;
    for _ in 0..3 {
        let row = noted(&db, &notice(&order, "p1", Succeeded)).await;
        assert_eq!((row.state, row.refund, row.live), (OrderState::Paid, Refund::None, true));
    }
    let told = events(&db.texts("SELECT payload::text FROM outbox WHERE topic = 'order.changed'").await);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].state, told[0].release), (OrderState::Paid, false));
    assert_eq!(db.texts("SELECT state || ' ' || step FROM saga").await, ["running settle"]);
    assert_eq!(db.texts("SELECT kind FROM ledger ORDER BY line").await, ["take", "sold"]);
}

#[tokio::test]
async fn units_of_a_refund_come_back_only_while_the_sale_runs() {
    for (change, topic) in [
        ("SELECT 1", "stock.release"),
        ("UPDATE sales SET step = 'paused'", "stock.release"),
        ("UPDATE sales SET step = 'closed'", "order.changed"),
        ("UPDATE sales SET ends_at = now()", "order.changed"),
    ] {
        let db = books().await;
        let order = written(&db).await;
        noted(&db, &notice(&order, "p1", Succeeded)).await;
        db.run(change).await;
        db.run("DELETE FROM outbox").await;
        let row = noted(&db, &notice(&order, "p1", Returned)).await;
        assert_eq!((row.state, row.refund), (OrderState::Refunded, Refund::Done(1)));
        assert_eq!(row.live, topic == "order.changed", "{change}");
        assert_eq!(db.texts("SELECT topic FROM outbox").await, [topic], "{change}");
        verify_ledger(&db).await;
    }
}

#[tokio::test]
async fn t16_no_attempt_to_pay_moves_the_deadline() {
    let db = books().await;
    let order = written(&db).await;
    let before = db.store.order(&order).await.unwrap().unwrap().pay_before;
    for n in 0..5 {
        noted(&db, &notice(&order, &format!("p{n}"), Failed)).await;
    }
    db.run("UPDATE sales SET pay_within_seconds = 5000").await;
    let again = db.store.order(&order).await.unwrap().unwrap();
    assert_eq!((again.pay_before, again.state), (before, OrderState::PendingPayment));
}
