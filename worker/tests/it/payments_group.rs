//! Notices in groups: what comes of them is what comes of them one by one.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sluice_shared::ids::OrderId;
use sluice_shared::record::OrderState;
use sluice_shared::verdict::Code;
use sluice_testkit::eventually;
use sluice_worker::api::desk::Desk;
use sluice_worker::api::lanes::Notices;
use sluice_worker::metrics::api as metrics;
use sluice_worker::store::StoreError;
use sluice_worker::store::payments::{NoticeOutcome, NoticeStatus, PaymentNotice};
use tokio::task::JoinSet;

use crate::harness::world::{insert_sale, verify_ledger};
use crate::harness::{TestDatabase, accepted};

async fn books() -> TestDatabase {
    let db = TestDatabase::new().await;
    insert_sale(&db, "demo", &[("case", 10_000), ("phone", 10_000)]).await;
    db
}

async fn written(db: &TestDatabase, n: usize) -> Vec<OrderId> {
    let lines = ["phone=1", "case=1", "phone=1"];
    let batch: Vec<_> = (0..n).map(|n| accepted("alice", lines[n % 3])).collect();
    db.store.write_orders(&batch).await.unwrap();
    batch.into_iter().map(|order| order.order).collect()
}

fn paid(order: &OrderId, payment: &str) -> PaymentNotice {
    let (payment_id, currency) = (payment.to_owned(), "EUR".to_owned());
    PaymentNotice { payment_id, order: *order, amount: 1500, currency, status: NoticeStatus::Succeeded }
}

fn kind(outcome: &NoticeOutcome) -> &'static str {
    match outcome {
        NoticeOutcome::Noted(_) => "noted",
        NoticeOutcome::UnknownOrder => "unknown order",
        NoticeOutcome::AmountMismatch => "amount mismatch",
        NoticeOutcome::OtherOrder => "other order",
    }
}

/// The same notices for either set of orders; payments are called by their set.
fn draw(random: &mut StdRng, sets: [&[OrderId]; 2]) -> [Vec<PaymentNotice>; 2] {
    let mut drawn = [Vec::new(), Vec::new()];
    let nobody = OrderId::mint(1, 0);
    for _ in 0..random.random_range(1..16) {
        let (order, payment) = (random.random_range(0..4), random.random_range(0..4));
        let statuses = [NoticeStatus::Succeeded, NoticeStatus::Refunded, NoticeStatus::Failed];
        let status = statuses[[0, 0, 0, 1, 1, 2][random.random_range(0..6)]];
        let amount = if random.random_bool(0.1) { 1 } else { 1500 };
        for (set, notices) in drawn.iter_mut().enumerate() {
            let order = sets[set].get(order).unwrap_or(&nobody);
            notices.push(PaymentNotice { status, amount, ..paid(order, &format!("{set}-{payment}")) });
        }
    }
    drawn
}

/// All that the books say of a set of orders, without their names.
/// The rounds of a refund are left out: a group that ends one and begins another
/// tells of the last state alone, and needs no second round for it.
async fn story(db: &TestDatabase, orders: &[OrderId]) -> Vec<String> {
    let mut told = Vec::new();
    for (n, order) in orders.iter().enumerate() {
        let row = db.store.order(order).await.unwrap().unwrap();
        told.push(format!("{n} {:?} {} {} {:?}", row.state, row.refund.as_str(), row.live, row.lines));
        for query in [
            "SELECT kind || quantity FROM ledger WHERE order_id = $1 ORDER BY line",
            "SELECT state || step FROM saga WHERE order_id = $1",
            "SELECT step FROM saga_step WHERE order_id = $1 ORDER BY step",
            "SELECT substr(payment_id, 3) || state || amount || currency FROM payments
             WHERE order_id = $1 ORDER BY payment_id",
            "SELECT DISTINCT topic FROM outbox
             WHERE payload->'events' @> jsonb_build_array(jsonb_build_object('order', $1)) ORDER BY topic",
        ] {
            let rows = sqlx::query_scalar(query).bind(order.to_string()).fetch_all(&db.pool);
            let rows: Vec<String> = rows.await.unwrap();
            told.push(rows.join(" "));
        }
    }
    told
}

#[tokio::test]
async fn a_group_does_what_its_notices_do_one_by_one() {
    let db = books().await;
    let mut random = StdRng::seed_from_u64(20_261_121);
    for round in 0..60 {
        let orders = written(&db, 6).await;
        let sets = [&orders[..3], &orders[3..]];
        let [one_by_one, group] = draw(&mut random, sets);
        let mut singly = Vec::new();
        for notice in &one_by_one {
            singly.push(kind(&db.store.notice(notice).await.unwrap()));
        }
        let together = db.store.notices(&group).await.unwrap();
        let together: Vec<_> = together.iter().flatten().map(kind).collect();
        assert_eq!(singly, together, "round {round}: {one_by_one:?}");
        let stories = (story(&db, sets[0]).await, story(&db, sets[1]).await);
        assert_eq!(stories.0, stories.1, "round {round}: {one_by_one:?}");
        db.run("DELETE FROM payments").await;
    }
    verify_ledger(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_several_processes_that_cross_each_other_pay_each_order_once() {
    let db = books().await;
    let orders = Arc::new(written(&db, 60).await);
    let mut processes = JoinSet::new();
    for seed in 0..4 {
        let (store, orders) = (db.store.clone(), orders.clone());
        processes.spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            for _ in 0..20 {
                let some = |n: usize| paid(&orders[n], &format!("p{n}"));
                let group: Vec<_> = (0..12).map(|_| some(random.random_range(0..orders.len()))).collect();
                loop {
                    match store.notices(&group).await {
                        Ok(outcomes) => {
                            assert!(outcomes.iter().flatten().all(|outcome| kind(outcome) == "noted"));
                            if outcomes.iter().all(Option::is_some) {
                                break;
                            }
                        }
                        Err(StoreError::Away(_)) => {}
                        Err(broken) => panic!("{broken}"),
                    }
                }
            }
        });
    }
    while let Some(process) = processes.join_next().await {
        process.unwrap();
    }
    let paid = db.count("SELECT count(*) FROM orders WHERE state = 'paid' AND refund = '-'").await;
    assert!(paid > 50, "{paid}");
    assert_eq!(db.count("SELECT count(*) FROM payments WHERE state = 'captured'").await, paid);
    assert_eq!(db.count("SELECT count(*) FROM ledger WHERE kind = 'sold'").await, paid);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn a_payment_that_another_transaction_has_just_written_is_looked_at_again() {
    let db = books().await;
    let orders = written(&db, 2).await;
    let mut other = db.pool.begin().await.unwrap();
    let insert = "INSERT INTO payments (payment_id, order_id, amount, currency, state)
                  VALUES ('p', $1, 1500, 'EUR', 'failed')";
    sqlx::query(insert).bind(orders[0].to_string()).execute(&mut *other).await.unwrap();
    let (store, notice) = (db.store.clone(), paid(&orders[1], "p"));
    let booking = tokio::spawn(async move { store.notice(&notice).await });
    eventually("it waits for the other", Duration::from_secs(5), || waits(&db)).await;
    other.commit().await.unwrap();
    assert_eq!(kind(&booking.await.unwrap().unwrap()), "other order");
    assert_eq!(db.count("SELECT count(*) FROM orders WHERE state = 'paid'").await, 0);
}

/// Whether a transaction waits for a lock.
async fn waits(db: &TestDatabase) -> bool {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    db.count(waiting).await == 1
}

fn desk(db: &TestDatabase) -> Arc<Desk<Notices>> {
    let metrics = metrics::Desk::new(&mut Registry::default(), "payment_notices");
    Arc::new(Desk::open(Notices::new(db.store.clone()), metrics))
}

#[tokio::test]
async fn what_comes_while_a_group_is_booked_is_booked_together() {
    let db = books().await;
    let orders = written(&db, 200).await;
    let desk = desk(&db);
    let mut holding = db.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM offers FOR UPDATE").execute(&mut *holding).await.unwrap();
    let mut wave = JoinSet::new();
    for (n, order) in orders.iter().enumerate() {
        let (desk, notice) = (desk.clone(), paid(order, &format!("p{n}")));
        wave.spawn(async move { desk.ask(notice.clone()).await });
    }
    eventually("the first group waits for the offers", Duration::from_secs(5), || waits(&db)).await;
    holding.rollback().await.unwrap();
    while let Some(booked) = wave.join_next().await {
        assert_eq!(kind(&booked.unwrap().unwrap()), "noted");
    }
    assert_eq!(db.count("SELECT count(*) FROM orders WHERE state = 'paid'").await, 200);
    // All times of a transaction are one.
    let groups = db.count("SELECT count(DISTINCT updated_at) FROM orders").await;
    assert!(groups <= 3, "{groups} groups");
    verify_ledger(&db).await;
}

#[tokio::test]
async fn a_notice_that_the_books_cannot_take_does_not_spoil_its_group() {
    let db = books().await;
    let orders = written(&db, 10).await;
    // A line that must not be there: its order cannot be sold once more.
    let sold = "INSERT INTO ledger (sale, sku, line, kind, order_id, quantity, at, hash)
                VALUES ('demo', 'case', 1000, 'sold', $1, 1, now(), '')";
    sqlx::query(sold).bind(orders[4].to_string()).execute(&db.pool).await.unwrap();
    let desk = desk(&db);
    let notices: Vec<_> = orders.iter().enumerate().map(|(n, order)| paid(order, &format!("p{n}"))).collect();
    let booked = futures_util::future::join_all(notices.iter().map(|notice| desk.ask(notice.clone()))).await;
    for (n, outcome) in booked.into_iter().enumerate() {
        match outcome {
            Ok(outcome) => assert!(n != 4 && kind(&outcome) == "noted", "{n}: {outcome:?}"),
            Err(rejection) => assert_eq!((n, rejection.code), (4, Code::Unavailable)),
        }
    }
    assert_eq!(db.count("SELECT count(*) FROM orders WHERE state = 'paid'").await, 9);
    let row = db.store.order(&orders[4]).await.unwrap().unwrap();
    assert_eq!(row.state, OrderState::PendingPayment);
    assert_eq!(db.count("SELECT count(*) FROM payments").await, 9);
}

#[tokio::test]
async fn a_row_that_somebody_holds_keeps_no_other_notice_waiting() {
    for lock in [
        "SELECT 1 FROM orders WHERE id = $1 FOR UPDATE",
        "SELECT 1 FROM payments WHERE payment_id = $2 AND $1 <> '' FOR UPDATE",
        "UPDATE offers SET title = title WHERE sku = 'phone' AND $1 <> $2",
    ] {
        let db = books().await;
        let all = written(&db, 24).await;
        // What is locked is the first one's; all others are of another offer.
        let mut orders: Vec<OrderId> = vec![all[0]];
        orders.extend(all.iter().skip(1).step_by(3).take(7));
        let failed = PaymentNotice { status: NoticeStatus::Failed, ..paid(&orders[0], "p0") };
        db.store.notice(&failed).await.unwrap();
        let desk = desk(&db);
        let mut holding = db.pool.begin().await.unwrap();
        sqlx::query(lock).bind(orders[0].to_string()).bind("p0").execute(&mut *holding).await.unwrap();
        let mut wave = JoinSet::new();
        for (n, order) in orders.iter().enumerate() {
            let (desk, notice) = (desk.clone(), paid(order, &format!("p{n}")));
            wave.spawn(async move { (n, desk.ask(notice).await) });
        }
        let begun = std::time::Instant::now();
        for _ in 0..7 {
            let (n, booked) = wave.join_next().await.unwrap().unwrap();
            assert!(n > 0, "{lock}");
            assert_eq!(kind(&booked.unwrap()), "noted", "{lock}");
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}: {lock}", begun.elapsed());
        holding.rollback().await.unwrap();
        let (n, booked) = wave.join_next().await.unwrap().unwrap();
        assert_eq!((n, kind(&booked.unwrap())), (0, "noted"), "{lock}");
        assert_eq!(db.count("SELECT count(*) FROM orders WHERE state = 'paid'").await, 8);
        verify_ledger(&db).await;
    }
}

#[tokio::test]
async fn a_desk_that_is_full_says_so_and_changes_nothing() {
    let db = books().await;
    let orders = written(&db, 1).await;
    let desk = desk(&db);
    let mut holding = db.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM offers FOR UPDATE").execute(&mut *holding).await.unwrap();
    let notice = paid(&orders[0], "p");
    let mut crowd = JoinSet::new();
    for _ in 0..6_000 {
        let (desk, notice) = (desk.clone(), notice.clone());
        crowd.spawn(async move { desk.ask(notice.clone()).await });
    }
    let mut refused = 0;
    while refused < 1_000 {
        let told = crowd.join_next().await.unwrap().unwrap().unwrap_err();
        assert_eq!(told.code, Code::Overloaded);
        refused += 1;
    }
    holding.rollback().await.unwrap();
    while let Some(booked) = crowd.join_next().await {
        match booked.unwrap() {
            Ok(outcome) => assert_eq!(kind(&outcome), "noted"),
            Err(rejection) => assert_eq!(rejection.code, Code::Overloaded),
        }
    }
    assert_eq!(db.count("SELECT count(*) FROM payments").await, 1);
    assert_eq!(db.count("SELECT count(*) FROM ledger WHERE kind = 'sold'").await, 1);
    verify_ledger(&db).await;
}
