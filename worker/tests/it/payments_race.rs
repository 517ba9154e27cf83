//! Payment against expiry, cancellation and itself: exactly one wins, and the loser's money is due.

use std::sync::Arc;

use sluice_shared::ids::OrderId;
use sluice_shared::record::{OrderState, Refund};
use sluice_worker::store::StoreError;
use sluice_worker::store::orders::Cancelled;
use sluice_worker::store::payments::{NoticeOutcome, NoticeStatus, PaymentNotice};
use tokio::sync::Barrier;

use crate::harness::world::{insert_sale, verify_ledger};
use crate::harness::{TestDatabase, accepted, user};

fn paid(order: &OrderId, payment: &str) -> PaymentNotice {
    PaymentNotice {
        payment_id: payment.to_owned(),
        order: *order,
        amount: 1500,
        currency: "EUR".to_owned(),
        status: NoticeStatus::Succeeded,
    }
}

async fn orders(n: usize) -> (TestDatabase, Vec<OrderId>) {
    let db = TestDatabase::new().await;
    insert_sale(&db, "demo", &[("phone", 1000)]).await;
    let batch: Vec<_> = (0..n).map(|_| accepted("alice", "phone=1")).collect();
    db.store.write_orders(&batch).await.unwrap();
    db.run("UPDATE orders SET pay_before = now() - interval '1 second'").await;
    (db, batch.into_iter().map(|order| order.order).collect())
}

/// Asks again while the books are only busy.
async fn insist<T, F: Future<Output = Result<T, StoreError>>>(mut ask: impl FnMut() -> F) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(StoreError::Away(_)) => {}
            Err(broken) => panic!("{broken}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_payment_and_expiry_in_the_same_moment_exactly_one_wins() {
    let (db, orders) = orders(100).await;
    for (n, order) in orders.iter().enumerate() {
        let start = Arc::new(Barrier::new(2));
        let expiry = {
            let (store, orders, start) = (db.store.clone(), [*order], start.clone());
            tokio::spawn(async move {
                start.wait().await;
                insist(|| store.expire(&orders)).await
            })
        };
        start.wait().await;
        let notice = paid(order, &format!("p{n}"));
        let outcome = insist(|| db.store.notice(&notice)).await;
        assert!(matches!(outcome, NoticeOutcome::Noted(_)));
        let expired = expiry.await.unwrap();
        // Skipped, because the payment held the row: then the payment won.
        let row = db.store.order(order).await.unwrap().unwrap();
        let wanted = match expired.len() {
            0 => (OrderState::Paid, Refund::None, true),
            _ => (OrderState::Expired, Refund::Due(1), false),
        };
        assert_eq!((row.state, row.refund, row.live), wanted);
    }
    verify_ledger(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_payment_and_cancellation_in_the_same_moment_exactly_one_wins() {
    let (db, orders) = orders(50).await;
    for (n, order) in orders.iter().enumerate() {
        let start = Arc::new(Barrier::new(2));
        let cancelling = {
            let (store, order, start) = (db.store.clone(), *order, start.clone());
            tokio::spawn(async move {
                start.wait().await;
                let alice = user("alice");
                insist(|| store.cancel(&order, &alice)).await
            })
        };
        start.wait().await;
        let notice = paid(order, &format!("p{n}"));
        insist(|| db.store.notice(&notice)).await;
        let row = db.store.order(order).await.unwrap().unwrap();
        match cancelling.await.unwrap() {
            Cancelled::Done(_) => {
                assert_eq!((row.state, row.refund), (OrderState::Cancelled, Refund::Due(1)))
            }
            Cancelled::NotCancellable(_) => assert_eq!(row.state, OrderState::Paid),
            other => panic!("{other:?}"),
        }
    }
    verify_ledger(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_equal_notices_at_once_are_one_payment() {
    let (db, orders) = orders(1).await;
    let mut together = Vec::new();
    for _ in 0..50 {
        let (store, notice) = (db.store.clone(), paid(&orders[0], "p1"));
        together.push(tokio::spawn(async move { insist(|| store.notice(&notice)).await }));
    }
    for one in together {
        match one.await.unwrap() {
            NoticeOutcome::Noted(row) => assert_eq!(row.state, OrderState::Paid),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(db.count("SELECT count(*) FROM payments").await, 1);
    assert_eq!(db.count("SELECT count(*) FROM ledger WHERE kind = 'sold'").await, 1);
    verify_ledger(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_payments_of_one_order_at_once_pay_it_once() {
    let (db, orders) = orders(30).await;
    for (n, order) in orders.iter().enumerate() {
        let (store, second) = (db.store.clone(), paid(order, &format!("b{n}")));
        let other = tokio::spawn(async move { insist(|| store.notice(&second)).await });
        let first = paid(order, &format!("a{n}"));
        insist(|| db.store.notice(&first)).await;
        other.await.unwrap();
        let row = db.store.order(order).await.unwrap().unwrap();
        assert_eq!((row.state, row.refund), (OrderState::Paid, Refund::Due(1)));
    }
    assert_eq!(db.count("SELECT count(*) FROM payments WHERE state = 'captured'").await, 30);
    assert_eq!(db.count("SELECT count(*) FROM payments WHERE state = 'surplus'").await, 30);
    verify_ledger(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_before_the_row_and_the_late_message_make_one_cancelled_order() {
    let db = TestDatabase::new().await;
    insert_sale(&db, "demo", &[("phone", 1000)]).await;
    for turn in 0..40 {
        let order = accepted("alice", "phone=1");
        let (store, late) = (db.store.clone(), order.clone());
        let writing =
            tokio::spawn(async move { insist(|| store.write_orders(std::slice::from_ref(&late))).await });
        if turn % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let cancelled = insist(|| db.store.cancel_unwritten(&order)).await;
        let again = insist(|| db.store.cancel_unwritten(&order)).await;
        writing.await.unwrap();
        assert!(matches!(cancelled, Cancelled::Done(_)), "{cancelled:?}");
        assert!(matches!(again, Cancelled::Over(_)), "{again:?}");
        let row = db.store.order(&order.order).await.unwrap().unwrap();
        assert_eq!((row.state, row.live), (OrderState::Cancelled, false));
    }
    assert_eq!(db.count("SELECT taken FROM offers").await, 0);
    assert_eq!(db.count("SELECT count(*) FROM outbox WHERE topic = 'stock.release'").await, 40);
    verify_ledger(&db).await;
}
