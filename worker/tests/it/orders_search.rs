//! What is asked of large books reads little of them.

use std::str::FromStr;

use sluice_shared::clock::Millis;
use sluice_shared::ids::{OrderId, SaleId};
use sluice_shared::record::OrderState;
use sluice_testkit::{eventually, required};
use sluice_worker::store::Store;
use sluice_worker::store::search::{Cursor, OrderFilter};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use std::time::Duration;

use crate::harness::database::config_of;
use crate::harness::world::insert_sale;
use crate::harness::{TestDatabase, accepted};

/// The orders of a large sale: the ids are a second apart, most are paid; one in a thousand failed, and the last
/// hundred are unpaid. Their events are as old as they are.
const ORDERS: i64 = 100_000;

async fn large() -> TestDatabase {
    let db = TestDatabase::new().await;
    insert_sale(&db, "demo", &[("phone", 1)]).await;
    sqlx::query(
        "INSERT INTO orders (id, sale, user_id, state, live, amount, currency, lines, epoch, seq, accepted_at,
                             created_at, pay_before)
         SELECT lpad(to_hex(n * 1000), 12, '0') || '7' || substr(md5(n::text), 1, 19) || '-1-0', 'demo', 'u' || n % 100,
                CASE WHEN n > $1 - 100 THEN 'pending_payment' WHEN n % 1000 = 0 THEN 'failed' ELSE 'paid' END,
                false, 1, 'EUR', 'phone=1', 1, n, to_timestamp(n), to_timestamp(n + 1), to_timestamp(n + 900)
         FROM generate_series(1, $1) n",
    )
    .bind(ORDERS)
    .execute(&db.pool)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO outbox (topic, payload, created_at, published_at)
         SELECT 'order.created', jsonb_build_object('v', 1, 'events', jsonb_build_array(jsonb_build_object('order', id))),
                created_at, created_at FROM orders",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    db.run("VACUUM ANALYZE").await;
    // A session tells what it read some time later, and the filling has read every order.
    let told = "SELECT seq_tup_read >= $1 FROM pg_stat_user_tables WHERE relname = 'orders'";
    eventually("the filling has been told", Duration::from_secs(20), || async {
        sqlx::query_scalar(told).bind(ORDERS).fetch_one(&db.pool).await.unwrap()
    })
    .await;
    db
}

/// Rows of a table that some work of a worker reads.
async fn reads<T>(db: &TestDatabase, table: &'static str, work: impl AsyncFnOnce(&Store) -> T) -> (T, i64) {
    let stats = async || -> (i64, i64) {
        sqlx::query_as(
            "SELECT seq_scan + idx_scan, seq_tup_read + coalesce(idx_tup_fetch, 0)
             FROM pg_stat_user_tables WHERE relname = $1",
        )
        .bind(table)
        .fetch_one(&db.pool)
        .await
        .unwrap()
    };
    let before = stats().await;
    let store = Store::connect(&config_of(&db.url)).await.unwrap();
    let done = work(&store).await;
    // A session tells what it read when it ends.
    store.close().await;
    eventually("the session has told", Duration::from_secs(20), || async { stats().await.0 > before.0 })
        .await;
    (done, stats().await.1 - before.1)
}

fn at(second: i64) -> Option<Millis> {
    Some(Millis(second * 1000))
}

#[tokio::test]
async fn a_search_without_a_sale_reads_what_it_finds() {
    let db = large().await;
    let any = OrderFilter::default();
    let filters = [
        (OrderFilter { state: Some(OrderState::Failed), ..any.clone() }, 99),
        (OrderFilter { state: Some(OrderState::PendingPayment), ..any.clone() }, 100),
        (OrderFilter { state: Some(OrderState::Refunded), ..any.clone() }, 0),
        (OrderFilter { from: at(ORDERS - 500), ..any.clone() }, 100),
        (OrderFilter { from: at(50_000), to: at(50_010), ..any.clone() }, 10),
        (OrderFilter { state: Some(OrderState::Paid), from: at(90_001), to: at(90_051), ..any.clone() }, 50),
        (OrderFilter { user: sluice_shared::ids::UserId::parse("u7").ok(), ..any.clone() }, 100),
        (OrderFilter { sale: SaleId::parse("demo").ok(), ..any.clone() }, 100),
        (any, 100),
    ];
    for (filter, found) in filters {
        let (orders, read) = reads(&db, "orders", async |store| store.orders(&filter, None, 100).await).await;
        assert_eq!(orders.unwrap().len(), found, "{filter:?}");
        assert!(read <= 700, "{read} rows were read for {filter:?}");
    }
}

#[tokio::test]
async fn pages_by_time_follow_each_other_and_miss_none() {
    let db = large().await;
    // Several states, and several orders at one time.
    db.run("UPDATE orders SET accepted_at = to_timestamp(3000) WHERE seq BETWEEN 2990 AND 3010").await;
    let filter = OrderFilter { from: at(2_950), to: at(3_050), ..OrderFilter::default() };
    let (mut seen, mut after): (Vec<(Millis, String)>, Option<Cursor>) = (Vec::new(), None);
    loop {
        let page = db.store.orders(&filter, after.as_ref(), 7).await.unwrap();
        let Some(last) = page.last() else { break };
        let cursor = Cursor::of(last, &filter);
        assert_eq!(Cursor::parse(&cursor.to_string(), &filter), Some(cursor.clone()));
        after = Some(cursor);
        seen.extend(page.iter().map(|order| (order.accepted_at, order.id.to_string())));
    }
    assert_eq!(seen.len(), 100);
    assert!(seen.is_sorted());
    for bad in ["x", "1.x", "-1.", &OrderId::mint(1, 0).to_string(), "99999999999999999.x"] {
        assert_eq!(Cursor::parse(bad, &filter), None, "{bad}");
    }
}

#[tokio::test]
async fn the_deadlines_of_unpaid_orders_are_read_beside_many_paid_ones() {
    let db = large().await;
    db.run(
        "UPDATE orders SET pay_before = to_timestamp(1e6) WHERE state = 'pending_payment' AND seq % 2 = 0",
    )
    .await;
    let (deadlines, read) = reads(&db, "orders", async |store| {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = store.deadlines_after(after.as_ref(), 30).await.unwrap();
            let Some(last) = page.last() else { break all };
            after = Some(last.clone());
            all.extend(page);
        }
    })
    .await;
    let orders: std::collections::BTreeSet<_> = deadlines.iter().map(|deadline| deadline.order).collect();
    assert_eq!((deadlines.len(), orders.len()), (100, 100));
    assert!(read <= 1000, "{read} rows were read");
}

#[tokio::test]
async fn a_time_line_reads_the_events_of_its_order() {
    let db = large().await;
    let order = accepted("alice", "phone=1");
    db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
    let (traces, read) = reads(&db, "outbox", async |store| store.traces(&order.order).await.unwrap()).await;
    assert!(traces.iter().any(|trace| trace.what.contains("order.created")), "{traces:?}");
    assert!(read <= 100, "{read} rows of the outbox were read");
}

#[tokio::test]
async fn offers_are_locked_in_one_order_whatever_the_collation() {
    let server = PgConnectOptions::from_str(&required("SLUICE_TEST_DATABASE_URL")).unwrap();
    let name = format!("sluice_t_{}", uuid::Uuid::now_v7().simple());
    let mut admin = server.clone().connect().await.unwrap();
    let create = format!(
        "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
    );
    sqlx::query(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    let url = server.database(&name).to_url_lossy().to_string();
    Store::connect(&config_of(&url)).await.unwrap().migrate().await.unwrap();
    let db = TestDatabase::whole(url).await;
    insert_sale(&db, "demo", &[("a", 10), ("B", 10)]).await;
    assert_eq!(db.texts("SELECT sku FROM offers ORDER BY sku").await, ["a", "B"]);
    let mut holding = db.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM offers WHERE sku = 'B' FOR UPDATE").execute(&mut *holding).await.unwrap();
    let store = db.store.clone();
    let writing = tokio::spawn(async move { store.write_orders(&[accepted("alice", "B=1,a=1")]).await });
    eventually("the writer waits for the first", Duration::from_secs(5), || async {
        db.count(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                  AND wait_event_type = 'Lock'",
        )
        .await
            == 1
    })
    .await;
    // Whoever changes the sale takes B, then a: it must not hold a while it waits for B.
    sqlx::query("SELECT 1 FROM offers WHERE sku = 'a' FOR UPDATE NOWAIT")
        .execute(&mut *holding)
        .await
        .unwrap();
    holding.rollback().await.unwrap();
    assert_eq!(writing.await.unwrap().unwrap().written, 1);
    db.store.close().await;
    db.pool.close().await;
    sqlx::query(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
        .execute(&mut admin)
        .await
        .unwrap();
}
