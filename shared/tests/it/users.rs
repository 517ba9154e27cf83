//! The users that `ops/dev` gives Redis and RabbitMQ: each program may do its work, and nothing else.

use std::time::Duration;

use sluice_shared::amqp::{Link, Outgoing};
use sluice_shared::redis::{Fault, Redis, Value, cmd};
use sluice_shared::testing::{PrivateRedis, eventually, required};
use sluice_shared::topology::{EVENTS, ORDERS, Topology, write_key, write_queue};

/// A Redis with the users.
struct Users {
    server: PrivateRedis,
    passwords: String,
}

impl Users {
    async fn new() -> Self {
        let server = PrivateRedis::start();
        let rules = std::fs::read_to_string(required("SLUICE_TEST_REDIS_USERS")).unwrap();
        for rule in rules.lines().filter(|rule| !rule.starts_with("user default")) {
            let words: Vec<&str> = rule.split_ascii_whitespace().skip(1).collect();
            let set = cmd("ACL").arg("SETUSER").arg(words).to_owned();
            server.connect().run::<String>("test", &set).await.unwrap();
        }
        Self { server, passwords: required("SLUICE_TEST_REDIS_PASSWORDS") }
    }

    fn password(&self, name: &str) -> &str {
        let of = |login: &'_ str| login.split_once('=').is_some_and(|(user, _)| user == name);
        let login = self.passwords.split(' ').find(|login| of(login)).unwrap();
        login.split_once('=').unwrap().1
    }

    fn connect(&self, name: &str) -> Redis {
        let url = format!("redis://{name}:{}@127.0.0.1:{}", self.password(name), self.server.port());
        Redis::lazy(&url, Duration::from_secs(2)).unwrap()
    }
}

async fn ask(redis: &Redis, words: &str) -> Result<Value, Fault> {
    let words: Vec<&str> = words.split(' ').collect();
    redis.run("test", cmd(words[0]).arg(&words[1..])).await
}

async fn may(redis: &Redis, allowed: &[&str], refused: &[&str]) {
    for words in allowed {
        let answer = ask(redis, words).await;
        assert!(answer.is_ok(), "{words}: {answer:?}");
    }
    for words in refused {
        let answer = ask(redis, words).await;
        let told = matches!(&answer, Err(Fault::Refused { why, .. }) if why.contains("NoPerm") || why.contains("NOPERM"));
        assert!(told, "{words}: {answer:?}");
    }
}

#[tokio::test]
async fn an_edge_runs_scripts_and_loads_none() {
    let users = Users::new().await;
    let loaded = ask(&users.server.connect(), "SCRIPT LOAD return{1}").await.unwrap();
    let Value::BulkString(sha) = loaded else { unreachable!("{loaded:?}") };
    let run = format!("EVALSHA {} 0", String::from_utf8(sha).unwrap());
    let allowed = [run.as_str(), "HSET sluice:edges e b", "HGETALL sluice:reopening", "TIME"];
    let refused = [
        "SCRIPT LOAD return{2}",
        "EVAL return{1} 0",
        "FLUSHALL",
        "KEYS *",
        "CONFIG GET dir",
        "SHUTDOWN NOSAVE",
        "DEL sluice:edges",
        "HGET another key",
        "REPLICAOF NO ONE",
        "ACL LIST",
    ];
    may(&users.connect("edge"), &allowed, &refused).await;
}

#[tokio::test]
async fn a_worker_loads_scripts_and_touches_nothing_that_is_not_ours() {
    let users = Users::new().await;
    let allowed =
        ["SCRIPT LOAD return{1}", "HSET sluice:sales s v", "DEL sluice:sales", "CONFIG GET appendfsync"];
    let refused =
        ["EVAL return{1} 0", "FLUSHALL", "CONFIG SET appendfsync no", "SHUTDOWN NOSAVE", "HGET another key"];
    may(&users.connect("worker"), &allowed, &refused).await;
}

#[tokio::test]
async fn the_operator_reads() {
    let users = Users::new().await;
    let allowed = ["HGETALL sluice:sales", "HSCAN sluice:sales 0", "INFO server", "TIME"];
    let refused = ["HSET sluice:sales s v", "PUBLISH sluice:sales x", "SCRIPT LOAD return{1}", "FLUSHALL"];
    may(&users.connect("operator"), &allowed, &refused).await;
}

#[tokio::test]
async fn a_replica_follows_and_reads_nothing() {
    let (users, second) = (Users::new().await, PrivateRedis::start());
    may(&users.connect("replica"), &["PING"], &["GET sluice:generation", "FLUSHALL"]).await;
    ask(&users.server.connect(), "SET sluice:generation 7").await.unwrap();
    let replica = second.connect();
    for words in [
        "CONFIG SET masteruser replica".to_owned(),
        format!("CONFIG SET masterauth {}", users.password("replica")),
        format!("REPLICAOF 127.0.0.1 {}", users.server.port()),
    ] {
        ask(&replica, &words).await.unwrap();
    }
    eventually("it has followed", Duration::from_secs(20), || async {
        ask(&replica, "GET sluice:generation").await == Ok(Value::BulkString(b"7".to_vec()))
    })
    .await;
}

fn outgoing<'a>(exchange: &'a str, key: &'a str) -> Outgoing<'a> {
    Outgoing { exchange, key, id: "1", kind: "test", body: b"{}", ..Outgoing::default() }
}

#[tokio::test]
async fn an_edge_hands_orders_over_and_reads_no_queue() {
    let worker = Link::connect(&required("SLUICE_TEST_AMQP_WORKER_URL"), "test").await.unwrap();
    // The worker may declare what is described, and nothing else.
    worker.declare(&Topology::new(2)).await.unwrap();
    let mut other = Topology::new(2);
    other.queues.truncate(1);
    other.queues[0].name = "another".to_owned();
    assert!(worker.declare(&other).await.is_err());
    let edge = || async { Link::connect(&required("SLUICE_TEST_AMQP_EDGE_URL"), "test").await.unwrap() };
    let (link, key) = (edge().await, write_key(0));
    link.publisher().await.unwrap().publish(outgoing(ORDERS, &key)).await.unwrap().await.unwrap();
    let sent =
        link.publisher().await.unwrap().publish(outgoing(EVENTS, "order.changed")).await.unwrap().await;
    assert!(sent.is_err(), "{sent:?}");
    assert!(edge().await.consumer(&write_queue(0), "test", 1).await.is_err());
    assert!(edge().await.declare(&Topology::new(2)).await.is_err());
    let mut read = worker.consumer(&write_queue(0), "test", 1).await.unwrap();
    let found = read.next().await.unwrap().unwrap();
    read.ack(found.tag).await.unwrap();
}

#[test]
fn the_composed_redis_has_the_same_users() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let compose = std::fs::read_to_string(root.join("compose.yaml")).unwrap();
    let rules = std::fs::read_to_string(required("SLUICE_TEST_REDIS_USERS")).unwrap();
    for rule in rules.lines() {
        let name = rule.split_ascii_whitespace().nth(1).unwrap();
        assert!(compose.contains(&format!(" user {name} ")), "{name}");
    }
    // Without its rights the file is replayed without what the scripts did.
    assert!(compose.contains(" user default off resetpass ~* &* +@all"));
}
