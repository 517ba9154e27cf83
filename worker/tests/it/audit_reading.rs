//! An audit reads the orders of its sale, and no other's.

use sluice_shared::ids::SaleId;
use sluice_shared::testing::eventually;

use crate::harness::TestDatabase;
use crate::warden_world::PATIENCE;

/// A sale of a tenth of all orders, all of which have lower ids: in the order of ids alone, most of the
/// others would be read for its first page.
#[tokio::test]
async fn a_sale_is_read_by_its_own_index() {
    const READ: [&str; 2] = [
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'orders_pkey'",
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'orders_of_a_sale'",
    ];
    let db = TestDatabase::new().await;
    db.run(
        "INSERT INTO sales (sale, starts_at, ends_at, mode, accept_after, pay_within_seconds, segments)
         SELECT sale, now(), now() + interval '1 day', 'queued', 'journal', 900, 1
         FROM unnest(ARRAY['large', 'small']) sale;
         INSERT INTO orders (id, sale, user_id, state, live, amount, currency, lines, epoch, seq, accepted_at,
                             pay_before)
         SELECT lpad(to_hex(n), 32, '0') || CASE WHEN n <= 45000 THEN '-1-0' ELSE '-2-0' END,
                CASE WHEN n <= 45000 THEN 'large' ELSE 'small' END,
                'u' || n, 'paid', true, 1500, 'EUR', 'phone=1', 1, n, now(), now()
         FROM generate_series(1, 50000) n",
    )
    .await;
    db.run("VACUUM ANALYZE orders").await;
    let before = db.count(READ[0]).await;
    let mut books = db.store.books(&SaleId::parse("small").unwrap()).await.unwrap();
    assert_eq!(books.orders_after("").await.unwrap().len(), 5000);
    books.close().await.unwrap();
    // A server counts what a connection did some time after.
    eventually("what was read is counted", PATIENCE, async || {
        db.count(READ[0]).await - before + db.count(READ[1]).await >= 5000
    })
    .await;
    assert_eq!((db.count(READ[0]).await - before, db.count(READ[1]).await), (0, 5000));
}
