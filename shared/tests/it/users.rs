//! The users that `ops/dev` gives Redis and RabbitMQ: each program may do its work, and nothing else.

use std::time::Duration;

use sluice_shared::amqp::{Link, Outgoing};
use sluice_shared::clock::Millis;
use sluice_shared::record::{OrderState, Refund};
use sluice_shared::redis::{Fault, Redis, Value, cmd};
use sluice_shared::script::{Adjusted, Answer, DelayQueue, Raised, Release, Reserved, Settle};
use sluice_shared::topology::{EVENTS, ORDERS, Topology, write_key, write_queue};
use sluice_testkit::{PrivateRedis, eventually, required};

use crate::segment::Sale;

/// A Redis with the users, and an open sale in it.
struct Users {
    sale: Sale,
    passwords: String,
}

impl Users {
    async fn new() -> Self {
        let sale = Sale::open(&[("phone", 10, 2)]).await;
        let rules = std::fs::read_to_string(required("SLUICE_TEST_REDIS_USERS")).unwrap();
        for rule in rules.lines().filter(|rule| !rule.starts_with("user default")) {
            let words: Vec<&str> = rule.split_ascii_whitespace().skip(1).collect();
            let set = cmd("ACL").arg("SETUSER").arg(words).to_owned();
            sale.redis.run::<String>("test", &set).await.unwrap();
        }
        Self { sale, passwords: required("SLUICE_TEST_REDIS_PASSWORDS") }
    }

    fn password(&self, name: &str) -> &str {
        let of = |login: &'_ str| login.split_once('=').is_some_and(|(user, _)| user == name);
        let login = self.passwords.split(' ').find(|login| of(login)).unwrap();
        login.split_once('=').unwrap().1
    }

    fn port(&self) -> u16 {
        self.sale.server.lock().unwrap().port()
    }

    fn url(&self, name: &str) -> String {
        format!("redis://{name}:{}@127.0.0.1:{}", self.password(name), self.port())
    }

    fn connect(&self, name: &str) -> Redis {
        Redis::lazy(&self.url(name), Duration::from_secs(2)).unwrap()
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

/// What edges do: sell, tell that they are there, erase, look up, follow.
#[tokio::test]
async fn an_edge_does_its_work_and_nothing_else() {
    let users = Users::new().await;
    let edge = users.connect("edge");
    let order = crate::segment::ask("u", "phone=1");
    let sold = users.sale.scripts.reserve(&edge, &crate::segment::edge(), &[order]).await;
    assert!(
        matches!(&sold, Ok(Reserved::Answers(answers)) if answers.answers == [Answer::Ok(1)]),
        "{sold:?}"
    );
    let allowed = [
        "HSET sluice:edges e b",
        "HGETALL sluice:sales",
        "GET sluice:generation",
        "HEXISTS sluice:register e",
        "HGETALL sluice:reopening",
        "HGETALL sluice:{demo:0}:stock",
        "HGET sluice:{demo:0}:meta seq",
        "HMGET sluice:{demo:0}:orders a b",
        "HSCAN sluice:{demo:0}:orders 0 COUNT 10",
        "XRANGE sluice:{demo:0}:journal - + COUNT 10",
        "XLEN sluice:{demo:0}:journal",
        "XDEL sluice:{demo:0}:journal 7-1",
        "TIME",
    ];
    let refused = [
        "SCRIPT LOAD return{2}",
        "EVAL return{1} 0",
        "HDEL sluice:{demo:0}:stock phone",
        "HINCRBY sluice:{demo:0}:stock phone 999999",
        "HSETNX sluice:{demo:0}:stock car 1",
        "HDEL sluice:{demo:0}:orders a",
        "DEL sluice:{demo:0}:orders",
        "UNLINK sluice:{demo:0}:journal",
        "XTRIM sluice:{demo:0}:journal MAXLEN 0",
        "RENAME sluice:{demo:0}:stock sluice:{demo:0}:meta",
        "EXPIRE sluice:{demo:0}:stock 1",
        "HSET sluice:{demo:0}:lost:orders a b",
        "HSET sluice:{demo:0}:staged:8:stock phone 1",
        "HSET sluice:{demo:0}:journal a b",
        "HSET sluice:sales demo {}",
        "HSET sluice:register e 1",
        "HSET sluice:reopening demo:0 7",
        "HDEL sluice:edges e",
        "DEL sluice:edges",
        "SET sluice:warden x",
        "INCR sluice:generation",
        "ZADD sluice:delay:{0}:ready 1 x",
        "PUBLISH sluice:sales 1",
        "PUBLISH sluice:sale:demo x",
        "SUBSCRIBE another",
        "HGET another key",
        "MULTI",
        "FLUSHALL",
        "KEYS *",
        "SCAN 0",
        "CONFIG GET dir",
        "CLIENT KILL TYPE normal",
        "CLIENT PAUSE 1000",
        "CLIENT LIST",
        "INFO",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "ACL LIST",
    ];
    may(&edge, &allowed, &refused).await;
    let topics = ["sluice:sales".to_owned(), "sluice:sale:demo".to_owned()];
    assert!(Redis::subscribe(&users.url("edge"), &topics).await.is_ok());
}

/// A script runs with its caller's rights: whoever sells may write what a sale writes.
#[tokio::test]
async fn an_edge_without_a_right_of_its_script_sells_nothing() {
    let users = Users::new().await;
    let hash = "HSET sluice:{demo:0}:stock phone 999999";
    assert!(ask(&users.connect("edge"), hash).await.is_ok(), "said in SECURITY.md");
    let words = [
        "SETUSER",
        "edge",
        "clearselectors",
        "(%W~sluice:{*}:journal",
        "+xadd)",
        "(~sluice:{*}:meta",
        "~sluice:{*}:stock",
        "~sluice:{*}:orders",
        "~sluice:{*}:journal",
        "+evalsha)",
    ];
    users.sale.redis.run::<String>("test", cmd("ACL").arg(&words[..])).await.unwrap();
    let order = crate::segment::ask("u", "phone=1");
    let sold = users.sale.scripts.reserve(&users.connect("edge"), &crate::segment::edge(), &[order]).await;
    assert!(
        sold.as_ref().is_err_and(|fault| fault.to_string().contains("user executing the script")),
        "{sold:?}"
    );
}

/// The scripts of its roles run, whatever they do; `worker/tests` run the rest of it.
#[tokio::test]
async fn a_worker_does_its_work_and_nothing_else() {
    let users = Users::new().await;
    let (worker, sale) = (users.connect("worker"), &users.sale);
    sale.warden.load(&worker).await.unwrap();
    sale.scripts.load(&worker).await.unwrap();
    let order = crate::segment::ask("u", "phone=1");
    assert_eq!(sale.reserve(&order).await, Answer::Ok(1));
    let settle = Settle {
        uuid: order.uuid,
        state: Some(OrderState::PendingPayment),
        pay_before: None,
        refund: Refund::None,
    };
    assert!(sale.scripts.settle(&worker, &[settle]).await.unwrap().is_ok());
    let release =
        Release { uuid: order.uuid, state: OrderState::Expired, lines: order.lines, user: order.user };
    assert!(sale.scripts.release(&worker, &[release]).await.unwrap().is_ok());
    let adjusted = sale.scripts.adjust(&worker, "c1", &crate::segment::sku("phone"), 1).await;
    assert_eq!(adjusted, Ok(Adjusted::Adjusted(11)));
    let queue = DelayQueue::new(0);
    queue.load(&worker).await.unwrap();
    queue.schedule(&worker, &[(Millis(1), "t".to_owned())]).await.unwrap();
    assert_eq!(queue.recover(&worker, 9).await, Ok(0));
    assert_eq!(queue.claim(&worker, "me", Duration::from_secs(9), 9).await.unwrap(), ["t"]);
    queue.finish(&worker, "me", &["t".to_owned()]).await.unwrap();
    assert!(sale.warden.lead(&worker, "me", Duration::from_secs(9)).await.unwrap());
    let raised = sale.warden.raise(&worker, &sale.segment, 7, 40).await;
    assert_eq!(raised, Ok(Raised::Raised));
    let allowed = [
        "HSET sluice:sales s v",
        "HSETNX sluice:reopening s v",
        "XREVRANGE sluice:{demo:0}:journal + - COUNT 1",
        "UNLINK sluice:sales",
        "CONFIG GET appendfsync",
        "INFO server",
    ];
    let refused = [
        "EVAL return{1} 0",
        "SCRIPT FLUSH",
        "FLUSHALL",
        "KEYS *",
        "CONFIG SET appendfsync no",
        "CLIENT KILL TYPE normal",
        "SHUTDOWN NOSAVE",
        "HGET another key",
        "PUBLISH another x",
        "MIGRATE 127.0.0.1 1 k 0 1",
        "SORT sluice:sales STORE another",
    ];
    may(&worker, &allowed, &refused).await;
    let list = [
        cmd("HSET").arg("sluice:sales").arg("s").arg("v").to_owned(),
        cmd("INCR").arg("sluice:generation").to_owned(),
    ];
    assert_eq!(worker.run_at_once("test", list).await, Ok((1_u64, 1_u64)));
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
    ask(&users.sale.redis, "SET sluice:generation 7").await.unwrap();
    let replica = second.connect();
    for words in [
        "CONFIG SET masteruser replica".to_owned(),
        format!("CONFIG SET masterauth {}", users.password("replica")),
        format!("REPLICAOF 127.0.0.1 {}", users.port()),
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

/// The container's command, run here with exactly its environment: it makes the configuration of `./dev`.
#[test]
fn the_composed_redis_has_the_same_users_and_settings() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let compose = std::fs::read_to_string(root.join("compose.yaml")).unwrap();
    let compose: serde_json::Value = serde_saphyr::from_str(&compose).unwrap();
    let redis = &compose["services"]["redis"];
    assert!(redis["volumes"].as_array().unwrap().contains(&"./ops/redis:/etc/sluice:ro".into()));
    let words: Vec<&str> =
        redis["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[..2], ["sh", "-c"]);
    let begins = "exec docker-entrypoint.sh redis-server /tmp/redis.conf";
    assert!(words[2].trim_end().ends_with(begins), "{}", words[2]);
    let made = std::env::temp_dir().join(format!("sluice-composed-{}.conf", std::process::id()));
    let script = words[2]
        .replace(begins, "true")
        .replace("/etc/sluice", root.join("ops/redis").to_str().unwrap())
        .replace("/tmp/redis.conf", made.to_str().unwrap());
    let logins = required("SLUICE_TEST_REDIS_PASSWORDS");
    let password = |name: &str| {
        let login = logins.split(' ').find(|login| login.starts_with(name)).unwrap();
        login.split_once('=').unwrap().1.to_owned()
    };
    let environment = redis["environment"].as_object().unwrap();
    let environment = environment.keys().map(|key| {
        let name = key.strip_prefix("REDIS_").and_then(|key| key.strip_suffix("_PASSWORD")).unwrap();
        (key, password(&name.to_lowercase()))
    });
    let ran = std::process::Command::new("sh").arg("-c").arg(script).envs(environment).status().unwrap();
    assert!(ran.success());
    let text = std::fs::read_to_string(&made).unwrap();
    std::fs::remove_file(&made).unwrap();
    let users = std::fs::read_to_string(required("SLUICE_TEST_REDIS_USERS")).unwrap();
    let settings = std::fs::read_to_string(root.join("ops/redis/redis.conf")).unwrap();
    assert_eq!(text, settings.clone() + "maxmemory 2gb\n" + &users);
    assert_eq!(users.lines().count(), 5);
    // Without its rights the file is replayed without what the scripts did.
    assert!(users.contains("user default off resetpass ~* &* +@all\n"));
    for setting in ["appendfsync always", "maxmemory-policy noeviction", "lazyfree-lazy-expire yes"] {
        assert!(settings.lines().any(|line| line == setting), "{setting}");
    }
}
