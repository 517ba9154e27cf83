//! `write_orders`: what a batch leaves in the books.

use sluice_shared::record::OrderState;
use sluice_worker::store::StoreError;

use crate::harness::world::{insert_sale, verify_ledger};
use crate::harness::{TestDatabase, accepted, accepted_of, events};

async fn books(items: &[(&str, i64)]) -> TestDatabase {
    let db = TestDatabase::new().await;
    insert_sale(&db, "demo", items).await;
    db
}

const PAYLOADS: &str = "SELECT payload::text FROM outbox ORDER BY id";

#[tokio::test]
async fn a_batch_leaves_rows_lines_sagas_and_events_of_a_hundred() {
    let db = books(&[("phone", 1000), ("case", 1000)]).await;
    let batch: Vec<_> = (0..250).map(|n| accepted(&format!("u{n}"), "case=2,phone=1")).collect();
    let report = db.store.write_orders(&batch).await.unwrap();
    assert_eq!((report.written, report.repeated, report.fenced), (250, 0, 0));
    assert!(report.failed.is_empty() && report.parked.is_empty());
    let row = db.store.order(&batch[7].order).await.unwrap().unwrap();
    assert_eq!((row.state, row.live, row.amount), (OrderState::PendingPayment, true, 4500));
    assert_eq!((&row.user, &row.lines, row.seq), (&batch[7].user, &batch[7].lines, batch[7].seq));
    assert_eq!(row.accepted_at, batch[7].at);
    assert!((row.pay_before.0 - row.created_at.0 - 900_000).abs() <= 1, "{row:?}");
    assert_eq!(db.texts("SELECT sku || taken FROM offers ORDER BY sku").await, ["case500", "phone250"]);
    assert_eq!(db.count("SELECT count(*) FROM ledger").await, 500);
    assert_eq!(db.count("SELECT count(*) FROM saga WHERE state = 'running' AND step = 'pay'").await, 250);
    let payloads = db.texts(PAYLOADS).await;
    assert_eq!(payloads.len(), 3);
    let told = events(&payloads);
    assert_eq!(told.len(), 250);
    assert_eq!((told[7].order, told[7].pay_before), (batch[7].order, Some(row.pay_before)));
    verify_ledger(&db).await;
}

#[tokio::test]
async fn a_message_that_comes_ten_times_makes_one_row_and_takes_once() {
    let db = books(&[("phone", 10)]).await;
    let order = accepted("alice", "phone=1");
    let report = db.store.write_orders(&vec![order.clone(); 5]).await.unwrap();
    assert_eq!((report.written, report.repeated), (1, 4));
    let mut together = Vec::new();
    for _ in 0..5 {
        let (store, order) = (db.store.clone(), order.clone());
        together.push(tokio::spawn(async move { store.write_orders(&[order]).await.unwrap() }));
    }
    for one in together {
        assert_eq!(one.await.unwrap().repeated, 1);
    }
    assert_eq!(db.count("SELECT count(*) FROM orders").await, 1);
    assert_eq!(db.count("SELECT taken FROM offers").await, 1);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn writers_of_the_same_orders_in_other_orders_do_not_hurt_each_other() {
    let db = books(&[("a", 100_000), ("b", 100_000)]).await;
    let orders: Vec<_> =
        (0..200).map(|n| accepted(&format!("u{n}"), if n % 2 == 0 { "a=1,b=1" } else { "b=1" })).collect();
    let mut writers = Vec::new();
    for turn in 0..6 {
        let (store, mut batch) = (db.store.clone(), orders.clone());
        batch.rotate_left(turn * 31);
        if turn % 2 == 1 {
            batch.reverse();
        }
        writers.push(tokio::spawn(async move {
            loop {
                match store.write_orders(&batch).await {
                    Ok(report) => return report.written,
                    Err(StoreError::Away(_)) => {}
                    Err(broken) => panic!("{broken}"),
                }
            }
        }));
    }
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert_eq!(written, 200);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn a_message_of_an_epoch_that_is_over_leaves_no_row() {
    let db = books(&[("phone", 10)]).await;
    let early = accepted("early", "phone=1");
    db.store.write_orders(std::slice::from_ref(&early)).await.unwrap();
    db.run("UPDATE segments SET epoch = 3").await;
    let (late, mut now) = (accepted("late", "phone=1"), accepted("now", "phone=1"));
    now.epoch = 3;
    // The early one comes again: it is in the books, and no fenced message.
    for _ in 0..2 {
        let report = db.store.write_orders(&[late.clone(), now.clone(), early.clone()]).await.unwrap();
        assert_eq!(report.fenced, 1);
    }
    assert_eq!(db.store.order(&late.order).await.unwrap(), None);
    assert!(db.store.order(&now.order).await.unwrap().is_some());
    assert_eq!(db.texts("SELECT order_id FROM fenced_messages").await, [late.order.to_string()]);
    assert_eq!(db.count("SELECT taken FROM offers").await, 2);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn a_writer_and_a_raise_of_the_epoch_wait_for_each_other() {
    let db = books(&[("phone", 10)]).await;
    let mut raising = db.pool.begin().await.unwrap();
    sqlx::query("UPDATE segments SET epoch = 2").execute(&mut *raising).await.unwrap();
    let store = db.store.clone();
    let writing =
        tokio::spawn(async move { store.write_orders(&[accepted("alice", "phone=1")]).await.unwrap() });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                 AND datname = current_database()";
    let what = "the writer waits";
    let patience = std::time::Duration::from_secs(5);
    sluice_testkit::eventually(what, patience, async || db.count(waits).await > 0).await;
    raising.commit().await.unwrap();
    assert_eq!(writing.await.unwrap().fenced, 1);
    assert_eq!(db.count("SELECT count(*) FROM orders").await, 0);
}

#[tokio::test]
async fn what_the_books_do_not_have_is_written_as_failed_and_goes_back() {
    let db = books(&[("phone", 3), ("case", 100)]).await;
    let batch = [
        accepted("a", "phone=2"),
        accepted("b", "case=1,phone=2"),
        accepted("c", "phone=1"),
        accepted("d", "phone=1"),
    ];
    let report = db.store.write_orders(&batch).await.unwrap();
    assert_eq!(report.written, 4);
    assert_eq!(report.failed, [batch[1].order, batch[3].order]);
    let row = db.store.order(&batch[1].order).await.unwrap().unwrap();
    assert_eq!((row.state, row.live), (OrderState::Failed, false));
    assert_eq!(row.message.as_deref(), Some("not enough units in the books"));
    assert_eq!(db.texts("SELECT sku || taken FROM offers ORDER BY sku").await, ["case0", "phone3"]);
    let back = db.texts("SELECT payload::text FROM outbox WHERE topic = 'stock.release'").await;
    let back = events(&back);
    assert!(back.iter().all(|event| event.release && event.state == OrderState::Failed));
    assert_eq!(back.len(), 2);
    assert_eq!(db.count("SELECT count(*) FROM saga WHERE state = 'undoing'").await, 2);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn lines_in_two_currencies_fail_and_do_not_block_their_units() {
    let db = books(&[("phone", 3), ("case", 3)]).await;
    db.run("UPDATE offers SET currency = 'USD' WHERE sku = 'case'").await;
    let order = accepted("a", "case=1,phone=1");
    let report = db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
    assert_eq!(report.failed, [order.order]);
    assert_eq!(db.count("SELECT sum(taken)::bigint FROM offers").await, 0);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn the_one_message_that_the_books_refuse_is_found_and_the_rest_is_written() {
    let db = books(&[("phone", 1000)]).await;
    db.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.user_id LIKE 'poison%' THEN RAISE EXCEPTION 'no row for %', NEW.user_id; END IF;
             RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION refuse();",
    )
    .await;
    let name = |n: usize| if n == 3 || n == 100 { format!("poison{n}") } else { format!("u{n}") };
    let batch: Vec<_> = (0..128).map(|n| accepted(&name(n), "phone=1")).collect();
    let report = db.store.write_orders(&batch).await.unwrap();
    assert_eq!(report.written, 126);
    let at: Vec<usize> = report.parked.iter().map(|(at, _)| *at).collect();
    assert_eq!(at, [3, 100]);
    assert!(report.parked[0].1.contains("no row for poison3"), "{:?}", report.parked);
    assert_eq!(db.count("SELECT taken FROM offers").await, 126);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn what_no_sale_of_the_books_explains_is_parked_with_a_reason() {
    let db = books(&[("phone", 10)]).await;
    let other = insert_sale(&db, "other", &[("book", 5)]).await;
    let mut far = accepted("a", "phone=1");
    far.at = sluice_shared::clock::Millis(i64::MAX);
    let mut huge = accepted("b", "phone=1");
    huge.seq = u64::MAX;
    let mut segment = accepted("c", "phone=1");
    segment.order.segment = 9;
    let batch = [
        accepted_of("nobody", 1, "a", "phone=1"),
        accepted("x", "tablet=1"),
        accepted_of("demo", other, "a", "phone=1"),
        far,
        huge,
        segment,
        accepted_of("other", other, "a", "book=1"),
        accepted("y", "phone=1"),
    ];
    let report = db.store.write_orders(&batch).await.unwrap();
    let reasons: Vec<&str> = report.parked.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "unknown sale nobody",
            "unknown SKU tablet",
            "the order is not one of sale demo",
            "9223372036854775807 is no time",
            "sequence 18446744073709551615 is too large",
            "unknown sale demo",
        ]
    );
    assert_eq!(report.written, 2);
    verify_ledger(&db).await;
}

#[tokio::test]
async fn a_missing_table_is_no_fault_of_the_messages() {
    let db = books(&[("phone", 10)]).await;
    db.run("ALTER TABLE ledger RENAME TO elsewhere").await;
    let error = db.store.write_orders(&[accepted("a", "phone=1")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Away(_)), "{error:?}");
    assert_eq!(db.count("SELECT count(*) FROM orders").await, 0);
}

/// The figure that the design asks for: 20,000 orders a second and more, four writers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_writers_reach_thousands_of_orders_a_second() {
    let db = books(&[("phone", 1_000_000)]).await;
    let (batches, size) = (30, 256);
    let began = std::time::Instant::now();
    let mut writers = Vec::new();
    for writer in 0..4 {
        let store = db.store.clone();
        writers.push(tokio::spawn(async move {
            for turn in 0..batches {
                let name = |n| format!("u{writer}-{turn}-{n}");
                let batch: Vec<_> = (0..size).map(|n| accepted(&name(n), "phone=1")).collect();
                assert_eq!(store.write_orders(&batch).await.unwrap().written, size);
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let orders = 4 * batches * size;
    let rate = orders as f64 / began.elapsed().as_secs_f64();
    println!("{orders} orders written at {rate:.0}/s");
    assert!(rate > 2_000.0, "{rate:.0} orders/s");
    verify_ledger(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_ring_the_bell_together_and_after_their_commits() {
    let db = TestDatabase::new().await;
    insert_sale(&db, "demo", &[("phone", 1000)]).await;
    let mut bell = sqlx::postgres::PgListener::connect_with(&db.pool).await.unwrap();
    bell.listen("sluice_outbox").await.unwrap();
    let begun = std::time::Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = db.store.clone();
        writers.spawn(async move { store.write_orders(&[accepted("alice", "phone=1")]).await.unwrap() });
    }
    writers.join_all().await;
    let took = begun.elapsed();
    let moment = std::time::Duration::from_millis(500);
    let mut rings = 0;
    while let Ok(ring) = tokio::time::timeout(moment, bell.recv()).await {
        ring.unwrap();
        rings += 1;
    }
    let most = took.as_millis() / 10 + 2;
    assert!(rings >= 1 && rings <= most, "{rings} rings in {took:?} for 100 transactions");
}
