//! What the network and a broker in trouble do to orders on their way: buyers notice nothing, every
//! order arrives, and the journal is empty in the end.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::message::Accepted;
use sluice_testkit::eventually;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::Flow;
use sluice_testkit::proxy::way::Way;

use crate::engine_harness::{Edge, Offer, SOON, World, accepted};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// A sale, and an edge that reaches the broker through a proxy only.
struct Scene {
    world: World,
    segment: Segment,
    proxy: Proxy,
    edge: Edge,
    orders: HashSet<OrderId>,
}

impl Scene {
    async fn start() -> Self {
        let world = World::start().await;
        let segment = world.sell("sale", Offer::default()).await;
        let url = world.vhost.url();
        let (login, place) = url.split_once('@').unwrap();
        let (server, vhost) = place.split_once('/').unwrap();
        let proxy = Proxy::start(ANY, server.parse().unwrap(), Protocol::Amqp, 1).unwrap();
        let edge = Edge::start(&world, "edge", |config| {
            config.amqp_url = format!("{login}@{}/{vhost}", proxy.address());
        });
        world.admit(&edge, &segment, 1).await;
        edge.until("sluice_amqp_connected", |up| up == 1.0).await;
        Self { world, segment, proxy, edge, orders: HashSet::new() }
    }

    async fn buy(&mut self, count: usize) {
        for _ in 0..count {
            let (order, outcome) = self.edge.buy("alice").await;
            assert!(accepted(&outcome), "{outcome:?}");
            self.orders.insert(order);
        }
    }

    /// Every order has come, perhaps more than once, and nothing is left behind.
    async fn complete(&self) {
        let orders = |found: &[Accepted]| found.iter().map(|m| m.order).collect::<HashSet<_>>();
        let found = self.world.vhost.orders_until(|found| orders(found).len() >= self.orders.len()).await;
        assert_eq!(orders(&found), self.orders);
        self.world.journal_empties(&self.segment).await;
        self.edge.until("sluice_relay_held", |held| held == 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f41_what_is_lost_on_its_way_to_the_broker_is_sent_again() {
    let mut scene = Scene::start().await;
    scene.proxy.flow(Way::Up, Flow::Drop);
    scene.buy(30).await;
    scene.edge.until("sluice_relay_unconfirmed", |out| out > 0.0).await;
    assert_eq!(scene.world.journal(&scene.segment).await, 30);
    scene.proxy.heal();
    scene.complete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f42_an_order_whose_confirm_is_lost_comes_twice_and_is_the_same() {
    let mut scene = Scene::start().await;
    scene.proxy.flow(Way::Down, Flow::Drop);
    scene.buy(30).await;
    // All are there, and the edge does not know it.
    let first = scene.world.vhost.orders(30).await;
    assert_eq!(scene.world.journal(&scene.segment).await, 30);
    scene.edge.until("sluice_relay_held", |held| held == 30.0).await;
    scene.proxy.heal();
    let again = scene.world.vhost.orders(30).await;
    let text = |message: &Accepted| serde_json::to_string(message).unwrap();
    let (first, again): (HashSet<_>, HashSet<_>) =
        (first.iter().map(text).collect(), again.iter().map(text).collect());
    assert_eq!(first, again);
    scene.world.journal_empties(&scene.segment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f42_a_confirm_that_comes_twice_while_many_are_open_costs_no_order() {
    let mut scene = Scene::start().await;
    let late = Duration::from_secs(2);
    scene.proxy.flow(Way::Down, Flow::Delay(late, late));
    scene.proxy.set("down twice frame confirm".parse().unwrap());
    // Of one order, for a confirm of several may come twice.
    scene.buy(1).await;
    eventually("its confirm is under way", SOON, || async { scene.proxy.has_sprung() }).await;
    scene.buy(200).await;
    scene.edge.until("sluice_relay_unconfirmed", |open| open > 100.0).await;
    // The client library does not survive it; the edge does.
    eventually("it connects again", SOON, || async { scene.proxy.status().connections > 1 }).await;
    scene.proxy.heal();
    scene.edge.until("sluice_relay_held", |held| held == 0.0).await;
    scene.buy(10).await;
    scene.complete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f45_a_full_queue_refuses_and_its_orders_wait_until_there_is_room() {
    let mut scene = Scene::start().await;
    // As `topology` limits them, only sooner.
    let full = r#"{"pattern":"^sluice\\.orders\\.write","apply-to":"queues","priority":9,
                   "definition":{"max-length":20,"overflow":"reject-publish"}}"#;
    scene.world.vhost.manage("PUT", "policies", "full", full);
    let mut held = 0.0;
    while held < 50.0 {
        scene.buy(20).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        held = scene.edge.metric("sluice_relay_held");
        assert!(scene.orders.len() < 1000, "the queues take everything");
    }
    scene.complete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f49_a_channel_that_the_broker_closes_is_opened_again() {
    let mut scene = Scene::start().await;
    // Publishing to an exchange that is not there is an error of the channel: 404.
    scene.world.vhost.manage("DELETE", "exchanges", "sluice.orders", "");
    scene.buy(30).await;
    scene.edge.until("sluice_amqp_connected", |up| up == 0.0).await;
    scene.world.vhost.declare().await;
    scene.buy(10).await;
    scene.complete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f50_connections_that_break_all_the_time_leak_nothing() {
    let mut scene = Scene::start().await;
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = files();
    let end = Instant::now() + 2 * SOON;
    while scene.proxy.status().connections < 8 {
        assert!(Instant::now() < end, "{:?}", scene.proxy.status());
        scene.buy(2).await;
        scene.proxy.reset();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    scene.complete().await;
    eventually("no connection is left over", SOON, || async { files() <= before + 4 }).await;
}
