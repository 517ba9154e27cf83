//! More sales than edges know.

use serde_json::{Value, json};

use super::api_world::{World, a_sale};

#[tokio::test]
async fn a_sale_more_than_edges_know_is_not_preloaded() {
    let world = World::start().await;
    world.admin("POST", "/sales", a_sale("one-more")).await.expect(201);
    let many = "INSERT INTO sales (sale, step, starts_at, ends_at, mode, accept_after, pay_within_seconds, segments)
         SELECT 'many-' || n, 'closed', now() - interval '2 hours', now() - interval '1 hour', 'queued', 'journal',
                900, 1
         FROM generate_series(1, 10000) AS n";
    sqlx::raw_sql(many).execute(&world.pool).await.unwrap();
    let refused = world.admin("POST", "/sales/one-more/preload", Value::Null).await;
    refused.problem(409, "wrong_state");
    let over = "UPDATE sales SET starts_at = now() - interval '3 days', ends_at = now() - interval '2 days',
         updated_at = now() - interval '2 days' WHERE sale = 'many-7'";
    sqlx::raw_sql(over).execute(&world.pool).await.unwrap();
    let made = world.admin("POST", "/sales/one-more/preload", Value::Null).await.expect(200);
    assert_eq!(made["state"], json!("preloaded"));
}
