//! What the machine under Redis does: its disk fills up or fails, its power goes, its clock jumps.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sluice_edge::engine::{Answer, Outcome};
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::redis::{Redis, cmd};
use sluice_testkit::{ClockStep, PrivateRedis, eventually};

use crate::engine_harness::{Offer, SOON, World, accepted};
use crate::gate::Gate;
use crate::harness::directory;

/// The file that Redis appends to.
fn newest_file(data: &Path) -> PathBuf {
    data.join("appendonlydir/appendonly.aof.1.incr.aof")
}

/// Sells until Redis is gone because of a fault of its disk, which strace makes; cuts off what was not
/// known to be on the disk, as the loss of power does; starts it again. Everything that was accepted
/// is there.
async fn sells_until(inject: &str) {
    let traced = |data: &Path| {
        let words = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,write", "-P"];
        let mut words: Vec<String> = words.map(str::to_owned).into();
        words.extend([newest_file(data).display().to_string(), "-e".to_owned(), format!("inject={inject}")]);
        words
    };
    let mut world = World::start_on(PrivateRedis::start_under(traced)).await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    let (mut orders, mut synced) = (Vec::new(), 0);
    let last = loop {
        let (order, outcome) = edge.buy("alice").await;
        match outcome {
            Outcome::Accepted { .. } => {
                synced = std::fs::metadata(newest_file(world.redis.directory())).unwrap().len();
                orders.push(order);
                assert!(orders.len() < 1000, "nothing happens to its disk");
            }
            Outcome::Unavailable | Outcome::Frozen => break order,
            other => panic!("{other:?}"),
        }
    };
    assert!(orders.len() > 3, "{}", orders.len());
    let end = Instant::now() + SOON;
    while !world.redis.has_ended() {
        assert!(Instant::now() < end, "redis lives on without its disk");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let file = std::fs::OpenOptions::new().write(true).open(newest_file(world.redis.directory())).unwrap();
    file.set_len(synced).unwrap();
    world.redis.crash_and_restart();
    world.shop = world.redis.connect();
    let there =
        async |order: &OrderId| -> u64 { world.ask("HEXISTS", &[&segment.orders(), &order.field()]).await };
    for order in &orders {
        assert_eq!(there(order).await, 1);
    }
    let taken = i64::try_from(orders.len()).unwrap() + i64::try_from(there(&last).await).unwrap();
    assert_eq!(world.left(&segment).await, 1000 - taken);
    // It forgot its scripts: nothing is sold before a warden has looked.
    eventually("it is found again", SOON, async || edge.redeem(&last, "alice").await == Outcome::Frozen)
        .await;
    world.arm(&segment, 1).await;
    eventually("it sells again", SOON, async || accepted(&edge.buy("bob").await.1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f30_power_that_goes_between_write_and_sync_costs_nothing_that_was_accepted() {
    sells_until("fdatasync:signal=KILL:when=80").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_disk_that_is_full_costs_nothing_that_was_accepted() {
    sells_until("write:error=ENOSPC:when=80+").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f33_a_disk_that_fails_costs_nothing_that_was_accepted() {
    sells_until("fdatasync:error=EIO:when=80+").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_an_edge_whose_clock_is_wrong_judges_by_that_of_redis() {
    let (directory, world) = (directory(), World::start().await);
    let segment = world.sell("sale", Offer::default()).await;
    let clock = ClockStep::new();
    for (n, seconds) in [-300_i64, 300].into_iter().enumerate() {
        clock.set(seconds);
        // The sale began a second ago; it must be open, or the gate does not start to sell.
        let gate =
            Gate::start(&world, &directory, &segment, &format!("edge-{n}"), &clock.environment()).await;
        let told = Millis::from_text(gate.sale("sale")["server_time"].as_str().unwrap()).unwrap();
        let truth = world.shop.time().await.unwrap();
        assert!((truth.0 - told.0).abs() < 2_000, "{seconds}: {told:?} is not {truth:?}");
        let (token, _) = gate.token("sale", "alice");
        assert_eq!(gate.buy("sale", "alice", &token).unwrap().status, 202, "{seconds}");
    }
    assert_eq!(world.left(&segment).await, 998);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn f37_when_redis_clock_jumps_a_sale_stops_or_waits_and_no_unit_moves() {
    let clock = ClockStep::new();
    let redis = PrivateRedis::start_under(|_| {
        let words = clock.environment().map(|(name, value)| format!("{name}={value}"));
        ["env".to_owned()].into_iter().chain(words).collect()
    });
    let world = World::start_on(redis).await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    assert!(accepted(&edge.buy("alice").await.1));
    // An hour and more ahead: the lease has run out, and nobody renews it.
    clock.set(4_000);
    assert_eq!(edge.buy("alice").await.1, Outcome::Frozen);
    // An hour back: the sale has not begun.
    clock.set(-3_600);
    let early = async || matches!(edge.buy("alice").await.1, Outcome::Refused(Answer::NotStarted));
    eventually("it is too early", SOON, early).await;
    assert_eq!(world.left(&segment).await, 999);
    clock.set(0);
    let sells = async || accepted(&edge.buy("alice").await.1);
    eventually("it sells again", Duration::from_secs(3), sells).await;
    assert_eq!(world.left(&segment).await, 998);
}

/// A node of a Redis Cluster.
fn node() -> PrivateRedis {
    let options = format!("--cluster-enabled yes --cluster-port {}", sluice_testkit::free_port());
    PrivateRedis::start_under(|_| {
        ["sh", "-c", &format!("exec \"$@\" {options}"), "sh"].map(str::to_owned).into()
    })
}

async fn cluster(redis: &Redis, words: &[&str]) -> String {
    let mut command = cmd("CLUSTER");
    command.arg(words);
    redis.run("test", &command).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn f38_a_slot_that_moves_refuses_the_call_and_takes_nothing() {
    let (here, there) = (node(), node());
    let other = there.connect();
    cluster(&here.connect(), &["ADDSLOTSRANGE", "0", "16383"]).await;
    let world = World::start_on(here).await;
    let good = async || cluster(&world.shop, &["INFO"]).await.contains("cluster_state:ok");
    eventually("the cluster is well", SOON, good).await;
    let segment = world.sell("sale", Offer::default()).await;
    let edge = world.edge("edge", &segment, 1).await;
    assert!(accepted(&edge.buy("alice").await.1));
    let port = |redis: &PrivateRedis| redis.url().rsplit(':').next().unwrap().to_owned();
    let bus: String = cluster(&other, &["MYID"]).await;
    let list = cmd("CLUSTER").arg("NODES").to_owned();
    let line: String = other.run("test", &list).await.unwrap();
    let bus_port = line.split(['@', ' ', ',']).nth(2).unwrap().to_owned();
    cluster(&world.shop, &["MEET", "127.0.0.1", &port(&there), &bus_port]).await;
    let own = cluster(&world.shop, &["MYID"]).await;
    let known = async || {
        let (seen, back) = (cluster(&world.shop, &["NODES"]).await, cluster(&other, &["NODES"]).await);
        let well = cluster(&other, &["INFO"]).await.contains("cluster_state:ok");
        well && seen.contains(&bus) && back.contains(&own)
    };
    eventually("they know each other", SOON, known).await;
    let slot: u64 = world.ask("CLUSTER", &["KEYSLOT", &segment.meta()]).await;
    let slot = slot.to_string();
    cluster(&other, &["SETSLOT", &slot, "IMPORTING", &own]).await;
    cluster(&world.shop, &["SETSLOT", &slot, "MIGRATING", &bus]).await;
    // One key after the other: first `TRYAGAIN`, then `ASK`, then `MOVED`.
    for key in [segment.stock(), segment.meta(), segment.orders(), segment.journal()] {
        let moved: Result<String, _> = world
            .shop
            .run("test", cmd("MIGRATE").arg(&["127.0.0.1", &port(&there), &key, "0", "5000"]))
            .await;
        moved.unwrap();
        assert_eq!(edge.buy("bob").await.1, Outcome::Frozen, "{key}");
    }
    for redis in [&other, &world.shop] {
        cluster(redis, &["SETSLOT", &slot, "NODE", &bus]).await;
    }
    assert_eq!(edge.buy("bob").await.1, Outcome::Frozen);
    let left: i64 = other.run("test", cmd("HGET").arg(segment.stock()).arg("phone")).await.unwrap();
    assert_eq!(left, 999);
}
