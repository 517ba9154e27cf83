//! Frozen sales, lost replies, dead edges, missing queues, re-openings: with the real servers.

use std::time::{Duration, Instant};

use sluice_edge::engine::{Outcome, PublicState, ReadyState};
use sluice_shared::ids::OrderId;
use sluice_shared::keys::REOPENING;
use sluice_shared::record::OrderState;
use sluice_testkit::eventually;

use crate::engine_harness::{Edge, Offer, SOON, World, accepted};

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_comes_too_late_is_an_unknown_outcome_and_the_token_finds_the_order() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = Edge::start(&world, "edge", |config| config.redis_deadline = Duration::from_millis(100));
    world.admit(&edge, &segment, 1).await;
    let order = OrderId::mint(1, 0);
    // Redis answers nobody for a while; what was sent is carried out after.
    world.ask::<String>("CLIENT", &["PAUSE", "400", "ALL"]).await;
    assert_eq!(edge.redeem(&order, "alice").await, Outcome::Unavailable);
    let found = || async {
        let outcome = edge.redeem(&order, "alice").await;
        matches!(outcome, Outcome::Accepted { replayed: true, seq: 1, .. })
    };
    eventually("the order is found", SOON, found).await;
    world.vhost.orders(1).await;
    world.journal_empties(&segment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_scripts_a_sale_is_frozen_and_sells_again_when_the_warden_loads_them() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let sale = edge.engine.sale("sale").unwrap();
    world.ask::<String>("SCRIPT", &["FLUSH"]).await;
    assert_eq!(edge.buy("alice").await.1, Outcome::Frozen);
    assert!(sale.frozen());
    assert_eq!(sale.state(edge.engine.clock().now()), PublicState::Frozen);
    let readiness = edge.engine.readiness();
    assert_eq!((readiness.state, readiness.reasons.len()), (ReadyState::Ready, 1), "{readiness:?}");
    assert_eq!(world.journal(&segment).await, 0);
    world.arm(&segment, 1).await;
    let sells = || async { accepted(&edge.buy("alice").await.1) };
    eventually("it sells again", Duration::from_secs(1), sells).await;
    assert!(!sale.frozen());
}

#[tokio::test(flavor = "multi_thread")]
async fn buyers_who_are_turned_away_make_an_edge_ask_more_often_whether_the_sale_goes_on() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let sale = edge.engine.sale("sale").unwrap();
    world.ask::<String>("SCRIPT", &["FLUSH"]).await;
    assert_eq!(edge.buy("alice").await.1, Outcome::Frozen);
    let probes = async || {
        let stats: String = world.ask("INFO", &["commandstats"]).await;
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.and_then(|line| line.split(',').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let within = async |turn_away: bool| {
        let (before, began) = (probes().await, Instant::now());
        while began.elapsed() < Duration::from_secs(3) {
            assert!(!turn_away || sale.turns_away());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        probes().await - before
    };
    // Those who knock queue no more: the desk's door alone knows of them.
    let busy = within(true).await;
    assert!(busy >= 12, "{busy} probes in three seconds");
    // For a second it goes on as if they still came.
    eventually("six probes in three seconds", SOON, async || within(false).await <= 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_not_admitted_sells_nothing_and_says_so() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = Edge::start(&world, "edge", |_| {});
    eventually("the list", SOON, || async { edge.engine.sale("sale").is_some() }).await;
    assert_eq!(edge.buy("alice").await.1, Outcome::Frozen);
    let reasons = edge.engine.readiness().reasons.join("; ");
    assert!(reasons.contains("not admitted") && reasons.contains("sale sale is frozen"), "{reasons}");
    world.admit(&edge, &segment, 1).await;
    assert!(accepted(&edge.buy("alice").await.1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_edge_left_is_published_by_another() {
    let world = World::start().await;
    let segment = world.sell_without_queues("sale", Offer::default()).await;
    let dead = world.edge("dead", &segment, 1).await;
    let mut orders = Vec::new();
    for user in ["a", "b", "c"] {
        orders.push(dead.buy(user).await.0);
    }
    dead.kill();
    world.vhost.declare().await;
    assert_eq!(world.journal(&segment).await, 3);
    let heir = world.edge("heir", &segment, 1).await;
    let mut swept: Vec<_> = world.vhost.orders(3).await.into_iter().map(|m| m.order).collect();
    swept.sort();
    orders.sort();
    assert_eq!(swept, orders);
    world.journal_empties(&segment).await;
    assert_eq!(heir.metric("sluice_relay_swept_total"), 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_order_is_written_is_deleted_unpublished() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let record = "Ph|1|7|5|5|99|-|phone=1|u";
    let uuid = "0190163d8694739b9f8a1c5c2b2b2b2b";
    world.ask::<u64>("HSET", &[&segment.orders(), uuid, record]).await;
    world.ask::<String>("XADD", &[&segment.journal(), "1-7", "o", uuid]).await;
    let edge = world.edge("edge", &segment, 1).await;
    world.journal_empties(&segment).await;
    assert_eq!(edge.metric("sluice_relay_swept_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_queues_orders_are_accepted_and_held_and_go_out_once_there_are_some() {
    let world = World::start().await;
    let segment = world.sell_without_queues("sale", Offer::default()).await;
    // The exchange is there, its queues are not: the broker gives every message back.
    let link = world.vhost.link().await;
    let mut bare = sluice_shared::topology::Topology::new(2);
    bare.queues.clear();
    link.declare(&bare).await.unwrap();
    let edge = world.edge("edge", &segment, 1).await;
    for n in 0..100 {
        assert!(accepted(&edge.buy(&format!("buyer-{n}")).await.1));
    }
    edge.until("sluice_relay_published_total", |returned| returned >= 2.0).await;
    let (before, began) = (edge.metric("sluice_relay_published_total"), Instant::now());
    edge.until("sluice_relay_published_total", |returned| returned >= before + 5.0).await;
    assert!(began.elapsed() >= Duration::from_millis(600), "five attempts in less are a busy loop");
    assert_eq!(world.journal(&segment).await, 100);
    world.vhost.declare().await;
    assert_eq!(world.vhost.orders(100).await.len(), 100);
    world.journal_empties(&segment).await;
    edge.until("sluice_relay_held", |held| held == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_to_the_broker_costs_no_order_and_no_buyer_notices() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    edge.until("sluice_amqp_connected", |up| up == 1.0).await;
    for n in 0..50 {
        if n == 25 {
            world.vhost.cut_relays().await;
        }
        assert!(accepted(&edge.buy(&format!("buyer-{n}")).await.1));
    }
    let mut orders: Vec<_> = world.vhost.orders(50).await.into_iter().map(|m| m.order).collect();
    orders.sort();
    orders.dedup();
    world.journal_empties(&segment).await;
    assert!(orders.len() >= 49, "all of them, some perhaps twice: {}", orders.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopening_closes_the_epoch_drains_and_never_opens_it_again() {
    let world = World::start().await;
    // More than can be bought before the edge hears of it.
    let plenty = Offer { stock: 1_000_000, per_user: 1_000_000, ..Offer::default() };
    let segment = world.sell_without_queues("sale", plenty).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (order, outcome) = edge.buy("alice").await;
    assert!(accepted(&outcome));
    world.ask::<u64>("HSET", &[REOPENING, &segment.name(), "1@7"]).await;
    // Until the edge hears of it, it sells; what its last reply says is unknown, and not held.
    let mut held = 1;
    loop {
        match edge.buy("bob").await.1 {
            Outcome::Frozen => break,
            outcome => held += usize::from(accepted(&outcome)),
        }
    }
    let closed = || async {
        world.heartbeat("edge").await.is_some_and(|beat| beat.closed.contains_key(&segment.name()))
    };
    assert!(!closed().await, "an order of the epoch is held");
    world.vhost.declare().await;
    eventually("nothing of it is held", SOON, closed).await;
    let orders = world.vhost.orders(held).await;
    assert!(orders.iter().any(|message| message.order == order));
    // The scripts of the closed epoch still work, but this edge does not use them any more.
    world.ask::<u64>("HDEL", &[REOPENING, &segment.name()]).await;
    world.two_beats("edge").await;
    assert_eq!(edge.buy("bob").await.1, Outcome::Frozen);
    world.raise(&segment, 1).await;
    world.list(&World::view("sale", plenty, 2)).await;
    let sells = || async { matches!(edge.buy("bob").await.1, Outcome::Accepted { epoch: 2, .. }) };
    eventually("it sells under the next epoch", SOON, sells).await;
    let again = edge.redeem(&order, "alice").await;
    assert!(matches!(again, Outcome::Accepted { epoch: 1, replayed: true, .. }), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broker_and_redis_both_lost_goes_out_again_at_each_question() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (order, outcome) = edge.buy("alice").await;
    assert!(accepted(&outcome));
    let first = world.vhost.orders(1).await.remove(0);
    world.journal_empties(&segment).await;
    let answers = async |question: &str| {
        world.ask::<u64>("HSET", &[REOPENING, &segment.name(), question]).await;
        let answered = || async {
            let beat = world.heartbeat("edge").await;
            beat.is_some_and(|beat| {
                beat.closed.get(&segment.name()).is_some_and(|q| q.to_string() == question)
            })
        };
        eventually("the edge answers", SOON, answered).await;
    };
    answers("1@7").await;
    assert_eq!(edge.metric("sluice_relay_recalled_total"), 0.0, "redis has the order");
    world.ask::<u64>("DEL", &[&segment.orders()]).await;
    for (question, times) in [("1@8", 1.0), ("1@9", 2.0)] {
        answers(question).await;
        assert_eq!(edge.metric("sluice_relay_recalled_total"), times, "{question}");
        let message = world.vhost.orders(1).await.remove(0);
        assert_eq!((message.order, message.epoch), (order, first.epoch), "{question}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_redis_freezes_the_sale_and_what_was_accepted_still_goes_out() {
    let world = World::start().await;
    let segment = world.sell_without_queues("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (order, outcome) = edge.buy("alice").await;
    assert!(accepted(&outcome));
    world.ask::<String>("FLUSHALL", &[]).await;
    world.ask::<String>("SCRIPT", &["FLUSH"]).await;
    assert_eq!(edge.buy("bob").await.1, Outcome::Frozen);
    world.two_beats("edge").await;
    assert!(edge.engine.sale("sale").is_some(), "frozen, not unknown");
    world.vhost.declare().await;
    let message = world.vhost.orders(1).await.remove(0);
    assert_eq!((message.order, message.epoch), (order, 1));
    edge.until("sluice_relay_held", |held| held == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_the_edge_is_not_ready_and_finds_back_by_itself() {
    let mut world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    world.redis.crash();
    assert_eq!(edge.buy("alice").await.1, Outcome::Unavailable);
    let state = |state| edge.engine.readiness().state == state;
    eventually("not ready", SOON, || async { state(ReadyState::NoRedis) }).await;
    world.redis.crash_and_restart();
    world.shop = world.redis.connect();
    eventually("ready", SOON, || async { state(ReadyState::Ready) }).await;
    assert_eq!(edge.buy("alice").await.1, Outcome::Frozen, "a restart forgets the scripts");
    world.arm(&segment, 1).await;
    let sells = || async { accepted(&edge.buy("alice").await.1) };
    eventually("it sells again", SOON, sells).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_what_is_held_but_not_for_ever() {
    let world = World::start().await;
    let segment = world.sell_without_queues("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (_, outcome) = edge.buy("alice").await;
    assert!(matches!(outcome, Outcome::Accepted { state: OrderState::Accepted, .. }));
    let start = std::time::Instant::now();
    edge.stop().await;
    assert!((5..8).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(world.heartbeat("edge").await.is_some_and(|beat| beat.draining && beat.held == 1));
    assert_eq!(world.journal(&segment).await, 1);
}
