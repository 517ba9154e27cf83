//! What the network does between an edge and Redis, and what a slow Redis does. Whatever happens, no
//! buyer is told "sold out", and the same token finds the truth afterwards.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sluice_edge::engine::Outcome;
use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::redis::cmd;
use sluice_testkit::eventually;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::{Flow, Trap};
use sluice_testkit::proxy::way::Way;

use crate::engine_harness::{Edge, Offer, SOON, World, accepted};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// A sale of 1,000, and an edge that reaches Redis through a proxy only.
struct Scene {
    world: World,
    segment: Segment,
    proxy: Proxy,
    edge: Edge,
}

impl Scene {
    async fn start() -> Self {
        let world = World::start().await;
        let segment = world.sell("sale", Offer::default()).await;
        let proxy = Proxy::start(ANY, address(&world), Protocol::Redis, 1).unwrap();
        let edge = Edge::start(&world, "edge", |config| {
            config.redis_url = format!("redis://{}", proxy.address());
            config.redis_deadline = Duration::from_millis(200);
        });
        world.admit(&edge, &segment, 1).await;
        Self { world, segment, proxy, edge }
    }

    /// The same tokens again, until each is answered with its order; how many are replays.
    async fn resolved(&self, orders: &[OrderId]) -> usize {
        let mut replays = 0;
        for order in orders {
            let told = std::cell::Cell::new(false);
            eventually("the token tells", SOON, || async {
                let outcome = self.edge.redeem(order, "alice").await;
                assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
                let Outcome::Accepted { replayed, .. } = outcome else { return false };
                told.set(replayed);
                true
            })
            .await;
            replays += usize::from(told.get());
        }
        assert_eq!(self.world.left(&self.segment).await, 1000 - i64::try_from(orders.len()).unwrap());
        replays
    }

    fn trap(&self, trap: &str) {
        self.proxy.set(trap.parse::<Trap>().unwrap());
    }
}

fn address(world: &World) -> SocketAddrV4 {
    world.redis.url().trim_start_matches("redis://").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn f17_a_call_that_never_reaches_redis_takes_nothing() {
    let scene = Scene::start().await;
    let order = OrderId::mint(1, 0);
    scene.proxy.flow(Way::Up, Flow::Drop);
    assert_eq!(scene.edge.redeem(&order, "alice").await, Outcome::Unavailable);
    scene.proxy.heal();
    assert_eq!(scene.world.left(&scene.segment).await, 1000);
    assert_eq!(scene.resolved(&[order]).await, 0, "not a replay");
    scene.world.vhost.orders(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f18_an_order_whose_reply_is_lost_goes_its_way_and_its_token_finds_it() {
    let scene = Scene::start().await;
    let order = OrderId::mint(1, 0);
    scene.proxy.flow(Way::Down, Flow::Drop);
    assert_eq!(scene.edge.redeem(&order, "alice").await, Outcome::Unavailable);
    assert_eq!(scene.world.left(&scene.segment).await, 999, "it was carried out");
    scene.proxy.heal();
    // Nobody asks again: the journal carries it on.
    assert_eq!(scene.world.vhost.orders(1).await[0].order, order);
    assert_eq!(scene.resolved(&[order]).await, 1);
    scene.world.journal_empties(&scene.segment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f19_answers_that_come_late_are_unknown_and_never_sold_out() {
    let scene = Scene::start().await;
    let late = [100, 400, 2_000].map(Duration::from_millis);
    let mut orders = Vec::new();
    for delay in late {
        scene.proxy.flow(Way::Down, Flow::Delay(delay, delay));
        let order = OrderId::mint(1, 0);
        let outcome = scene.edge.redeem(&order, "alice").await;
        assert!(accepted(&outcome) || outcome == Outcome::Unavailable, "{delay:?}: {outcome:?}");
        orders.push(order);
        scene.proxy.heal();
    }
    scene.resolved(&orders).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_an_order_is_read_over_a_new_connection_when_the_old_one_has_broken() {
    let scene = Scene::start().await;
    let (order, outcome) = scene.edge.buy("alice").await;
    assert!(accepted(&outcome));
    for _ in 0..5 {
        scene.trap("up cut text HGET");
        assert!(scene.edge.engine.record(&order).await.unwrap().is_some());
        assert!(scene.proxy.has_sprung());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_a_reset_within_a_pipeline_leaves_each_call_on_its_own() {
    let scene = Scene::start().await;
    let mut all = Vec::new();
    for trap in ["down cut bytes 7", "up cut bytes 1500", "up lose bytes 300", "down lose bytes 40"] {
        scene.trap(trap);
        let orders: Vec<OrderId> = (0..40).map(|_| OrderId::mint(1, 0)).collect();
        for some in orders.chunks(10) {
            for outcome in join_all(some.iter().map(|order| scene.edge.redeem(order, "alice"))).await {
                assert!(accepted(&outcome) || outcome == Outcome::Unavailable, "{trap}: {outcome:?}");
            }
        }
        eventually(trap, SOON, || async { scene.proxy.has_sprung() }).await;
        all.extend(orders);
    }
    scene.resolved(&all).await;
    scene.world.journal_empties(&scene.segment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_a_call_that_is_delivered_twice_takes_once() {
    let scene = Scene::start().await;
    let mut orders = Vec::new();
    for _ in 0..5 {
        scene.trap("up twice frame script");
        let order = OrderId::mint(1, 0);
        let outcome = scene.edge.redeem(&order, "alice").await;
        assert!(accepted(&outcome) || outcome == Outcome::Unavailable, "{outcome:?}");
        assert!(scene.proxy.has_sprung());
        orders.push(order);
        scene.resolved(&orders).await;
    }
    assert_eq!(scene.resolved(&orders).await, 5, "each was taken the first time");
}

#[tokio::test(flavor = "multi_thread")]
async fn f22_answers_in_pieces_are_read_and_nonsense_is_an_unknown_outcome() {
    let scene = Scene::start().await;
    let orders = [OrderId::mint(1, 0), OrderId::mint(1, 0)];
    scene.proxy.flow(Way::Down, Flow::Throttle(20_000));
    assert!(accepted(&scene.edge.redeem(&orders[0], "alice").await));
    scene.proxy.heal();
    // Something else listens where Redis was.
    let listener = TcpListener::bind(ANY).unwrap();
    let std::net::SocketAddr::V4(nonsense) = listener.local_addr().unwrap() else { panic!("IPv4") };
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut some = [0; 4096];
                while stream.read(&mut some).is_ok_and(|n| n > 0) {
                    // Whoever hangs up has understood.
                    let _ = stream.write_all(b"*3\r\n$-7\r\n!!HTTP/1.1 200 OK\r\n\x00\xff");
                }
            });
        }
    });
    scene.proxy.aim(nonsense);
    scene.proxy.reset();
    for _ in 0..5 {
        assert_eq!(scene.edge.redeem(&orders[1], "alice").await, Outcome::Unavailable);
    }
    scene.proxy.aim(address(&scene.world));
    scene.proxy.reset();
    assert_eq!(scene.resolved(&orders).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn f22_a_login_that_was_refused_is_tried_again() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let login = async |words: &[&str]| -> String {
        world.ask("ACL", &[&["SETUSER", "gate", "on", "~*", "&*", "+@all"], words].concat()).await
    };
    login(&[">secret"]).await;
    let proxy = Proxy::start(ANY, address(&world), Protocol::Redis, 1).unwrap();
    let edge = Edge::start(&world, "edge", |config| {
        config.redis_url = format!("redis://gate:secret@{}", proxy.address());
    });
    world.admit(&edge, &segment, 1).await;
    login(&["resetpass"]).await;
    proxy.reset();
    for _ in 0..10 {
        let outcome = edge.buy("alice").await.1;
        assert!(matches!(outcome, Outcome::Unavailable | Outcome::Frozen), "{outcome:?}");
    }
    login(&[">secret"]).await;
    eventually("it sells again", SOON, || async { accepted(&edge.buy("alice").await.1) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_an_edge_that_is_cut_off_refuses_and_the_other_sells() {
    let scene = Scene::start().await;
    let other = scene.world.edge("other", &scene.segment, 1).await;
    let order = scene.edge.buy("alice").await.0;
    scene.proxy.flow_both(Flow::Drop);
    scene.proxy.refuse(true);
    for n in 0..10 {
        assert_eq!(scene.edge.buy("carol").await.1, Outcome::Unavailable);
        assert!(accepted(&other.buy(&format!("bob-{n}")).await.1));
    }
    // What the buyer got there is known here.
    assert!(matches!(other.redeem(&order, "alice").await, Outcome::Accepted { replayed: true, .. }));
    scene.proxy.heal();
    eventually("it sells again", SOON, || async { accepted(&scene.edge.buy("carol").await.1) }).await;
}

fn signal(pid: u32, name: &str) {
    let told = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(told.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn f24_a_redis_that_stands_still_is_waited_for_by_few_and_found_again_at_once() {
    let world = World::start().await;
    let plenty = Offer { stock: 100_000, per_user: 100_000, ..Offer::default() };
    let segment = world.sell("sale", plenty).await;
    let edge = Edge::start(&world, "edge", |config| {
        config.redis_deadline = Duration::from_millis(150);
        config.queue_max = 500;
    });
    world.admit(&edge, &segment, 1).await;
    for pause in [500, 2_000].map(Duration::from_millis) {
        signal(world.redis.pid(), "STOP");
        let (stopped, mut longest) = (Instant::now(), Duration::ZERO);
        while stopped.elapsed() < pause {
            let asked = Instant::now();
            let outcomes = join_all((0..2_000).map(|_| edge.buy("alice"))).await;
            longest = longest.max(asked.elapsed());
            let known = |outcome: &Outcome| {
                accepted(outcome) || matches!(outcome, Outcome::Unavailable | Outcome::Overloaded)
            };
            let odd = outcomes.iter().find(|(_, outcome)| !known(outcome));
            assert!(odd.is_none(), "{odd:?}");
            let shed = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Overloaded).count();
            assert!(shed >= 500, "{shed} of 2,000 were turned away unasked");
        }
        assert!(longest < Duration::from_millis(1_500), "{longest:?}");
        signal(world.redis.pid(), "CONT");
        let back = || async { accepted(&edge.buy("alice").await.1) };
        eventually("it sells again", Duration::from_secs(2), back).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f40_while_redis_rewrites_its_file_every_answer_is_good_and_kept() {
    let mut world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let mut orders = Vec::new();
    for n in 0..300 {
        if n % 100 == 50 {
            // One may still be under way, which is as good.
            let _ = world.shop.run::<String>("rewriting", &cmd("BGREWRITEAOF")).await;
        }
        let (order, outcome) = edge.buy("alice").await;
        assert!(accepted(&outcome), "{outcome:?}");
        orders.push(order);
    }
    let rewritten = || async {
        let info: String = world.ask("INFO", &["persistence"]).await;
        assert!(!info.contains("aof_rewrites:0"), "nothing was rewritten");
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
    };
    eventually("it is written", SOON, rewritten).await;
    world.redis.crash_and_restart();
    world.shop = world.redis.connect();
    for order in &orders {
        assert_eq!(world.ask::<u64>("HEXISTS", &[&segment.orders(), &order.field()]).await, 1);
    }
    assert_eq!(world.left(&segment).await, 700);
}
