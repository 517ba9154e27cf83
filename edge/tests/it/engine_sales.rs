//! The sale list as the warden changes it, and what the edge tells of it.

use std::time::Duration;

use sluice_edge::engine::{Answer, Outcome, PublicState};
use sluice_shared::keys::{GENERATION, SALES, SALES_CHANNEL};
use sluice_shared::sale::SaleStep;
use sluice_testkit::eventually;

use crate::engine_harness::{Offer, SOON, World, accepted};

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_told_is_known_at_once_and_the_heartbeat_says_so() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (before, mut view) = (edge.engine.sale("sale").unwrap(), World::view("sale", Offer::default(), 1));
    view.step = SaleStep::Paused;
    view.starts_at = before.view.starts_at;
    view.ends_at = before.view.ends_at;
    world.list(&view).await;
    let generation: u64 = world.ask("GET", &[GENERATION]).await;
    let told = || async { world.heartbeat("edge").await.is_some_and(|beat| beat.generation == generation) };
    eventually("the heartbeat", Duration::from_millis(400), told).await;
    let now = edge.engine.clock().now();
    assert_eq!(edge.engine.sale("sale").unwrap().state(now), PublicState::Paused);
    assert_eq!(edge.engine.sale_by_number(1).unwrap().view, view);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_nobody_told_of_is_seen_by_its_generation() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let mut view = World::view("sale", Offer::default(), 1);
    view.cfg = 9;
    world.ask::<u64>("HSET", &[SALES, "sale", &serde_json::to_string(&view).unwrap()]).await;
    world.ask::<u64>("HSET", &[SALES, "torn", "{"]).await;
    world.ask::<u64>("INCR", &[GENERATION]).await;
    let seen = || async { edge.engine.sale("sale").is_some_and(|sale| sale.view.cfg == 9) };
    eventually("the change", Duration::from_secs(2), seen).await;
    assert!(edge.engine.sale("torn").is_none());
    assert!(accepted(&edge.buy("alice").await.1), "its desk goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_told_by_name_costs_no_reading_of_the_whole_list() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let whole = edge.metric("sluice_sales_whole_lists_total");
    let other = |n: u32| {
        let mut view = World::view(&format!("other-{n}"), Offer::default(), 0);
        view.number = n;
        view
    };
    for n in 2..12 {
        let view = other(n);
        let text = serde_json::to_string(&view).unwrap();
        world.ask::<u64>("HSET", &[SALES, view.sale.as_str(), &text]).await;
        let generation: u64 = world.ask("INCR", &[GENERATION]).await;
        world.ask::<u64>("PUBLISH", &[SALES_CHANNEL, &format!("{generation} other-{n}")]).await;
        let told =
            || async { world.heartbeat("edge").await.is_some_and(|beat| beat.generation == generation) };
        eventually("the heartbeat", Duration::from_millis(600), told).await;
        assert_eq!(edge.engine.sale_by_number(n).unwrap().view, view);
    }
    assert_eq!(edge.metric("sluice_sales_whole_lists_total"), whole);
    assert!(accepted(&edge.buy("alice").await.1), "the others go on");
    // Of this one nobody is told.
    world.ask::<u64>("INCR", &[GENERATION]).await;
    edge.until("sluice_sales_whole_lists_total", |count| count > whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_answered_while_the_sale_is_paused_and_a_new_order_refused() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (order, outcome) = edge.buy("alice").await;
    assert!(accepted(&outcome));
    world.ask::<u64>("HSET", &[&segment.meta(), "state", "paused"]).await;
    assert_eq!(edge.buy("bob").await.1, Outcome::Refused(Answer::Paused));
    let again = edge.redeem(&order, "alice").await;
    assert!(matches!(again, Outcome::Accepted { replayed: true, .. }), "{again:?}");
    world.ask::<u64>("HDEL", &[&segment.meta(), "state"]).await;
    assert_eq!(edge.buy("bob").await.1, Outcome::Frozen, "torn data is no refusal");
    world.ask::<u64>("HSET", &[&segment.meta(), "state", "open"]).await;
    eventually("open again", SOON, || async { accepted(&edge.buy("bob").await.1) }).await;
}
