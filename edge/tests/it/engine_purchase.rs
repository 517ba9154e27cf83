//! From the desk to the queue, with the real servers.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::FutureExt;
use sluice_edge::engine::{Answer, Outcome, PublicState, ReadyState};
use sluice_shared::keys::sale_channel;
use sluice_shared::lines::Lines;
use sluice_shared::record::OrderState;
use sluice_shared::sale::AcceptAfter;
use sluice_testkit::eventually;
use tokio::net::TcpListener;

use crate::engine_harness::{Edge, Offer, SOON, World, accepted};

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_is_confirmed_in_its_queue_and_leaves_the_journal() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (order, outcome) = edge.buy("alice").await;
    let message = world.vhost.orders(1).await.remove(0);
    let (state, at) = (OrderState::Accepted, message.at);
    assert_eq!(outcome, Outcome::Accepted { state, replayed: false, epoch: 1, seq: 1, at });
    assert_eq!((message.order, message.epoch, message.seq), (order, 1, 1));
    assert_eq!((message.user.as_str(), message.lines.to_string().as_str()), ("alice", "phone=1"));
    world.journal_empties(&segment).await;
    edge.until("sluice_relay_held", |held| held == 0.0).await;
    assert_eq!(edge.engine.record(&order).await.unwrap().unwrap().seq, 1);
    assert_eq!(edge.engine.readiness().state, ReadyState::Ready);
    assert!(edge.engine.readiness().reasons.is_empty(), "{:?}", edge.engine.readiness());
    edge.stop().await;
    assert!(world.heartbeat("edge").await.is_some_and(|beat| beat.gone && beat.held == 0), "it took leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_buyers_get_what_there_is_and_each_order_is_published() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer { stock: 300, per_user: 1, ..Offer::default() }).await;
    let edge = world.edge("edge", &segment, 1).await;
    let buyers: Vec<String> = (0..1000).map(|n| format!("buyer-{n}")).collect();
    let outcomes = futures_util::future::join_all(buyers.iter().map(|user| edge.buy(user))).await;
    let won: HashSet<_> =
        outcomes.iter().filter(|(_, outcome)| accepted(outcome)).map(|(order, _)| *order).collect();
    let lost = |outcome: &Outcome| matches!(outcome, Outcome::Refused(Answer::SoldOut(_)));
    assert_eq!(won.len(), 300);
    assert_eq!(outcomes.iter().filter(|(_, outcome)| lost(outcome)).count(), 700);
    let published: HashSet<_> = world.vhost.orders(300).await.into_iter().map(|m| m.order).collect();
    assert_eq!(published, won);
    world.journal_empties(&segment).await;
    assert!(edge.metric("sluice_reserve_batches_total") < 500.0, "group commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_token_finds_its_order_by_another_edge_which_publishes_it_too() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let first = world.edge("first", &segment, 1).await;
    let second = world.edge("second", &segment, 1).await;
    let (order, outcome) = first.buy("alice").await;
    assert!(accepted(&outcome));
    let again = second.redeem(&order, "alice").await;
    let orders = world.vhost.orders(2).await;
    assert!(orders.iter().all(|message| message.order == order));
    let (state, at) = (OrderState::Accepted, orders[0].at);
    assert_eq!(again, Outcome::Accepted { state, replayed: true, epoch: 1, seq: 1, at });
    world.journal_empties(&segment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_who_goes_away_has_his_order_held_and_published() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    // Asked for, and gone before the answer.
    assert!(edge.buy("alice").now_or_never().is_none());
    assert_eq!(world.vhost.orders(1).await.remove(0).user.as_str(), "alice");
    world.journal_empties(&segment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sale_that_waits_for_the_broker_says_pending_while_it_is_away() {
    let world = World::start().await;
    let offer = Offer { accept_after: AcceptAfter::Broker, ..Offer::default() };
    let segment = world.sell_without_queues("sale", offer).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (order, outcome) = edge.buy("alice").await;
    assert!(matches!(outcome, Outcome::Accepted { state: OrderState::Pending, .. }), "{outcome:?}");
    world.vhost.declare().await;
    assert_eq!(world.vhost.orders(1).await.remove(0).order, order);
    let (_, outcome) = edge.buy("bob").await;
    assert!(matches!(outcome, Outcome::Accepted { state: OrderState::Accepted, .. }), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn held_orders_are_bounded_and_a_full_edge_refuses_before_it_asks() {
    let world = World::start().await;
    let segment = world.sell_without_queues("sale", Offer::default()).await;
    let edge = Edge::start(&world, "edge", |config| config.held_max = 3);
    world.admit(&edge, &segment, 1).await;
    for user in ["a", "b", "c"] {
        assert!(accepted(&edge.buy(user).await.1));
    }
    assert_eq!(edge.buy("d").await.1, Outcome::Overloaded);
    assert_eq!(world.journal(&segment).await, 3);
    world.vhost.declare().await;
    world.vhost.orders(3).await;
    eventually("room again", SOON, || async { accepted(&edge.buy("e").await.1) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sold_out_sale_is_latched_and_a_release_opens_it() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer { stock: 1, ..Offer::default() }).await;
    let edge = world.edge("edge", &segment, 1).await;
    let sale = edge.engine.sale("sale").unwrap();
    let (lines, phone) = (Lines::parse("phone=1").unwrap(), &sale.view.items[0].sku);
    assert!(sale.available(phone));
    let (order, outcome) = edge.buy("alice").await;
    assert!(accepted(&outcome));
    eventually("shut", SOON, || async { sale.sold_out(&lines, &[9; 16]) }).await;
    assert!(!sale.sold_out(&lines, &order.uuid), "a replay is answered truly");
    assert!(!sale.available(phone));
    assert_eq!(sale.state(edge.engine.clock().now()), PublicState::SoldOut);
    // By a message …
    world.ask::<u64>("HINCRBY", &[&segment.stock(), "phone", "1"]).await;
    world.ask::<u64>("PUBLISH", &[&sale_channel(&segment.sale), "release phone"]).await;
    let open = Duration::from_millis(400);
    eventually("open", open, || async { !sale.sold_out(&lines, &[9; 16]) }).await;
    let (second, outcome) = edge.buy("bob").await;
    assert!(accepted(&outcome));
    eventually("shut again", SOON, || async { sale.sold_out(&lines, &[9; 16]) }).await;
    assert!(!sale.sold_out(&lines, &second.uuid));
    // … and by the next reading when the message was lost.
    world.ask::<u64>("HINCRBY", &[&segment.stock(), "phone", "1"]).await;
    eventually("open", SOON, || async { !sale.sold_out(&lines, &[9; 16]) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_the_present_record_and_each_change() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (order, _) = edge.buy("alice").await;
    let mut follower = edge.engine.follow(&order).unwrap();
    let first = tokio::time::timeout(SOON, follower.next()).await.unwrap().unwrap();
    assert_eq!(first.state, OrderState::Accepted);
    let mut paid = first.clone();
    (paid.state, paid.updated.0) = (OrderState::Paid, first.updated.0 + 1);
    let told = format!("release phone\norder {} {paid}", order.field());
    let channel = sale_channel(&segment.sale);
    let heard = || async { world.ask::<u64>("PUBLISH", &[&channel, &told]).await > 0 };
    eventually("somebody listens", SOON, heard).await;
    let next = tokio::time::timeout(SOON, follower.next()).await.unwrap().unwrap();
    assert_eq!(next, paid);
    // A message that got lost: the record is read again.
    let mut refunded = paid.clone();
    (refunded.state, refunded.updated.0) = (OrderState::Refunded, paid.updated.0 + 1);
    world.ask::<u64>("HSET", &[&segment.orders(), &order.field(), &refunded.to_string()]).await;
    assert_eq!(tokio::time::timeout(SOON, follower.next()).await.unwrap().unwrap(), refunded);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_stops_while_redis_is_away_takes_its_leave_when_it_is_back() {
    let mut world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    world.redis.crash();
    let stopping = tokio::spawn(edge.stop());
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, world.redis.port())).await.unwrap();
    for _ in 0..5 {
        let attempt = tokio::time::timeout(SOON, nobody.accept()).await;
        drop(attempt.expect("one more attempt").unwrap());
    }
    assert!(!stopping.is_finished());
    drop(nobody);
    world.redis.crash_and_restart();
    world.shop = world.redis.connect();
    stopping.await.unwrap();
    assert!(world.heartbeat("edge").await.is_some_and(|beat| beat.gone), "it took leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_told_again_and_again_is_published_once_by_each_edge() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let first = world.edge("first", &segment, 1).await;
    let second = world.edge("second", &segment, 1).await;
    // No worker writes it: Redis goes on saying "accepted".
    let (order, outcome) = first.buy("alice").await;
    assert!(accepted(&outcome));
    for edge in [&first, &second] {
        for _ in 0..10 {
            let again = futures_util::future::join_all((0..1000).map(|_| edge.redeem(&order, "alice"))).await;
            let told =
                |outcome: &Outcome| matches!(outcome, Outcome::Accepted { replayed: true, seq: 1, .. });
            assert!(again.iter().all(told));
            edge.until("sluice_relay_held", |held| held == 0.0).await;
        }
        let published = edge.metric("sluice_relay_published_total");
        assert!((1.0..=2.0).contains(&published), "{published} messages of one order");
    }
    world.journal_empties(&segment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latch_stays_shut_while_its_channel_is_subscribed_to_anew() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer { stock: 1, ..Offer::default() }).await;
    let edge = Edge::start(&world, "edge", |config| config.listen_for = Duration::from_millis(100));
    world.admit(&edge, &segment, 1).await;
    let (sale, lines) = (edge.engine.sale("sale").unwrap(), Lines::parse("phone=1").unwrap());
    assert!(accepted(&edge.buy("alice").await.1));
    let shut = || async { sale.sold_out(&lines, &[9; 16]) };
    eventually("shut", SOON, shut).await;
    let subscribed = || async {
        let info: String = world.ask("INFO", &["commandstats"]).await;
        let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_subscribe:calls="));
        calls.and_then(|calls| calls.split(',').next()?.parse::<u32>().ok()).unwrap_or(0)
    };
    let before = subscribed().await;
    while subscribed().await < before + 20 {
        assert!(shut().await, "opened although no unit came back");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // And what is told in between is heard.
    world.ask::<u64>("HINCRBY", &[&segment.stock(), "phone", "1"]).await;
    world.ask::<u64>("PUBLISH", &[&sale_channel(&segment.sale), "release phone"]).await;
    eventually("open", Duration::from_millis(400), || async { !shut().await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_follower_of_a_sale_misses_nothing_while_nobody_listens_yet() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    for round in 0..5 {
        let (order, _) = edge.buy(&format!("buyer-{round}")).await;
        let mut follower = edge.engine.follow(&order).unwrap();
        let first = tokio::time::timeout(SOON, follower.next()).await.unwrap().unwrap();
        let mut written = first.clone();
        (written.state, written.updated.0) = (OrderState::PendingPayment, first.updated.0 + 1);
        let told = format!("order {} {written}", order.field());
        world.ask::<u64>("HSET", &[&segment.orders(), &order.field(), &written.to_string()]).await;
        world.ask::<u64>("PUBLISH", &[&sale_channel(&segment.sale), &told]).await;
        let start = std::time::Instant::now();
        assert_eq!(tokio::time::timeout(SOON, follower.next()).await.unwrap().unwrap(), written);
        assert!(start.elapsed() < Duration::from_secs(1), "round {round}: {:?}", start.elapsed());
        // The next one is the first again.
        drop(follower);
    }
}
