//! The program itself: its command line, its configuration, and how it ends.

use std::process::Output;
use std::time::Duration;

use sluice_testkit::{eventually, free_port};

use crate::harness::process::{Worker, program};
use crate::harness::world::verify_ledger;
use crate::harness::{World, accepted};

const PATIENCE: Duration = Duration::from_secs(20);
const ROWS: &str = "SELECT count(*) FROM orders";

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_teaches_every_role_and_command() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let help = text(&help.stdout);
    let words = ["orders", "outbox", "saga", "timeout", "api", "reconcile", "all"];
    let commands = ["migrate", "audit", "explain", "topology", "check-config", "--config", "--name"];
    for word in words.iter().chain(&commands) {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn a_wrong_command_line_is_told_and_exits_64() {
    for (arguments, why) in [
        (vec!["ordres"], "ordres: no such role"),
        (vec!["orders", "--confg", "x"], "--confg"),
        (vec!["orders", "--config", "/no/such/file"], "/no/such/file"),
        (vec![], "Usage"),
    ] {
        let told = run(&arguments);
        assert_eq!(told.status.code(), Some(64), "{arguments:?}");
        assert!(text(&told.stderr).contains(why), "{}", text(&told.stderr));
    }
}

#[test]
fn every_problem_of_a_configuration_is_told_at_once() {
    let file = std::env::temp_dir().join(format!("sluice-worker-{}.toml", std::process::id()));
    let wrong = "nam = \"x\"\n[redis]\nurl = \"http://x\"\n[amqp]\nurl = \"\"\n[orders]\nshards = 0\n\
                 [status]\nlisten = \"here\"\n";
    std::fs::write(&file, wrong).unwrap();
    let told = run(&["check-config", "--config", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(told.status.code(), Some(64));
    let told = text(&told.stderr);
    for key in [
        "nam: there is no such key; did you mean name?",
        "redis.url",
        "amqp.url",
        "orders.shards",
        "status.listen",
        "api.admin_token",
    ] {
        assert!(told.contains(key), "{key} in\n{told}");
    }
}

#[tokio::test]
async fn migrating_twice_is_no_mistake() {
    let world = World::new(&[("phone", 1)]).await;
    let migrated = program().arg("migrate").env("SLUICE_DATABASE_URL", &world.db.url).output().unwrap();
    assert_eq!(migrated.status.code(), Some(0), "{}", text(&migrated.stderr));
}

#[tokio::test]
async fn sigterm_finishes_what_was_begun_and_exits_0() {
    let world = World::new(&[("phone", 10_000)]).await;
    let mut worker = Worker::start(&world.urls(), &["orders", "outbox", "saga", "timeout"], &[]);
    let orders: Vec<_> = (0..3000).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.broker.publish_orders(&orders).await;
    eventually("some rows", PATIENCE, async || world.db.count(ROWS).await > 0).await;
    worker.signal("TERM");
    assert_eq!(worker.end().await.code(), Some(0));
    let _next = Worker::start(&world.urls(), &["orders"], &[]);
    eventually("all rows", PATIENCE, async || world.db.count(ROWS).await == 3000).await;
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn a_process_that_is_killed_again_and_again_loses_nothing_and_writes_nothing_twice() {
    let world = World::new(&[("phone", 10_000)]).await;
    let orders: Vec<_> = (0..5000).map(|n| accepted(&format!("u{n}"), "phone=1")).collect();
    world.broker.publish_orders(&orders).await;
    let (mut seen, mut kills) = (0, 0);
    while seen < 5000 {
        let mut worker = Worker::start(&world.urls(), &["orders", "outbox"], &[]);
        let before = seen;
        let more = async || world.db.count(ROWS).await > before;
        eventually("more rows", PATIENCE, more).await;
        worker.signal("KILL");
        worker.end().await;
        kills += 1;
        seen = world.db.count(ROWS).await;
    }
    assert_eq!(seen, 5000, "after {kills} kills");
    assert_eq!(world.db.count("SELECT taken FROM offers").await, 5000);
    verify_ledger(&world.db).await;
}

#[tokio::test]
async fn a_process_starts_and_waits_while_every_server_is_away() {
    let world = World::new(&[("phone", 10)]).await;
    let nowhere = format!("127.0.0.1:{}", free_port());
    let more = [
        ("SLUICE__DATABASE__URL", format!("postgres://x@{nowhere}/x")),
        ("SLUICE__AMQP__URL", format!("amqp://{nowhere}/x")),
        ("SLUICE__REDIS__URL", format!("redis://{nowhere}")),
        ("SLUICE__STATUS__LISTEN", format!("127.0.0.1:{}", free_port())),
    ];
    let mut worker = Worker::start(&world.urls(), &["orders", "outbox", "saga", "timeout"], &more);
    let live = async || get(&format!("http://{}/-/live", more[3].1)).await.is_some();
    eventually("it lives", PATIENCE, live).await;
    let (status, why) = get(&format!("http://{}/-/ready", more[3].1)).await.unwrap();
    assert_eq!((status, why.lines().count()), (503, 2), "{why}");
    worker.signal("TERM");
    assert_eq!(worker.end().await.code(), Some(0));
}

#[tokio::test]
async fn metrics_and_health_are_served_where_they_are_asked_for() {
    let world = World::new(&[("phone", 10)]).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let worker = Worker::start(&world.urls(), &["orders"], &[("SLUICE__STATUS__LISTEN", listen.clone())]);
    world.broker.publish_orders(&[accepted("alice", "phone=1")]).await;
    let ready =
        async || get(&format!("http://{listen}/-/ready")).await.is_some_and(|(status, _)| status == 200);
    eventually("it is ready", PATIENCE, ready).await;
    let counted = async || {
        let metrics = get(&format!("http://{listen}/metrics")).await;
        metrics.is_some_and(|(_, text)| text.contains("sluice_orders_total{outcome=\"written\"} 1"))
    };
    eventually("the order is counted", PATIENCE, counted).await;
    drop(worker);
}

async fn get(url: &str) -> Option<(u16, String)> {
    let url = url.to_owned();
    let asking = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(&url).call().ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().ok()?))
    });
    asking.await.unwrap()
}
