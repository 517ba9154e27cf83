//! Every service of `compose.yaml` runs with exactly its command and environment, and together they sell;
//! before them the balancer, which leaves out an edge that is told to stop.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_shared::clock::Millis;
use sluice_shared::jwt::sign_hs256;
use sluice_testkit::{eventually, required};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::harness::compose::{Compose, Started, call, root, variables};
use crate::harness::{PrivatePostgres, Vhost};

const PATIENCE: Duration = Duration::from_secs(60);

/// The private RabbitMQ's virtual host for the services' users, with the rights that they are to have.
fn grant(vhost: &Vhost) {
    let users = std::fs::read_to_string(root().join("ops/rabbitmq/users.json")).unwrap();
    let users: Value = serde_json::from_str(&users).unwrap();
    let ours = users["permissions"].as_array().unwrap().iter().filter(|one| one["vhost"] == "sluice");
    for right in ours {
        let (_, name) = vhost.url.rsplit_once('/').unwrap();
        let rights = json!({"configure": right["configure"], "write": right["write"], "read": right["read"]});
        vhost.put(&format!("/api/permissions/{name}/{}", right["user"].as_str().unwrap()), rights);
    }
}

/// A database of the services' user on the private PostgreSQL; dropped by name at the end.
async fn database(name: &str, make: bool) {
    let mut admin = PgConnection::connect(&required("SLUICE_TEST_DATABASE_URL")).await.unwrap();
    let text = match make {
        true => format!("CREATE DATABASE {name} OWNER sluice"),
        false => format!("DROP DATABASE {name} WITH (FORCE)"),
    };
    sqlx::query(AssertSqlSafe(text)).execute(&mut admin).await.unwrap();
}

fn server_of(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap();
    let (_, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    rest.split_once('/').map_or(rest, |(server, _)| server)
}

/// `redis-server` with the file that the container makes for itself.
fn redis(compose: &Compose) -> Started {
    let file = compose.directory.join("redis.conf");
    let (file, settings) = (file.to_str().unwrap(), root().join("ops/redis"));
    let others = [
        ("exec docker-entrypoint.sh redis-server /tmp/redis.conf", "true"),
        ("/tmp/redis.conf", file),
        ("/etc/sluice", settings.to_str().unwrap()),
    ];
    assert!(compose.shell("redis", &others).status().unwrap().success());
    let mut server = Command::new(required("SLUICE_TEST_REDIS_SERVER"));
    server.arg(file).args(["--bind", compose.address("redis")]).env_clear().current_dir(&compose.directory);
    let log = File::create(compose.directory.join("redis.log")).unwrap();
    Started(server.stdin(Stdio::null()).stdout(log).spawn().unwrap())
}

/// Debian's HAProxy with the file that the container has, but for the names of the edges.
fn balancer(compose: &Compose) -> Started {
    let text = std::fs::read_to_string(root().join("ops/haproxy/haproxy.cfg")).unwrap();
    let text =
        compose.here("balancer", &text).replace("bind :", &format!("bind {}:", compose.address("balancer")));
    let file = compose.directory.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    let log = File::create(compose.directory.join("balancer.log")).unwrap();
    let mut server = Command::new("/usr/sbin/haproxy");
    server
        .args(["-W", "-db", "-f"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Started(server.spawn().unwrap())
}

/// Runs what is to end by itself, in its order.
fn run_once(compose: &Compose) {
    let once: Vec<String> =
        compose.services_of("sluice-worker").into_iter().filter(|name| compose.is_once(name)).collect();
    assert_eq!(once.len(), 3, "{once:?}");
    for service in once {
        let status = compose.command(&service).status().unwrap();
        assert!(status.success(), "{service}: {status}: {}", compose.log(&service));
    }
}

/// Starts all others and waits until their health checks are content.
async fn start(compose: &Compose) -> Vec<(String, Started)> {
    let mut names = compose.services_of("sluice-worker");
    names.extend(compose.services_of("sluice-edge"));
    names.retain(|name| !compose.is_once(name));
    assert_eq!(names.len(), 9, "{names:?}");
    let started: Vec<_> = names.into_iter().map(|name| (name.clone(), compose.start(&name))).collect();
    let end = Instant::now() + PATIENCE;
    for (service, _) in &started {
        let url = compose.health(service);
        while !matches!(call("GET", &url, &[], None), Some((200, _))) {
            assert!(Instant::now() < end, "{service} is not healthy: {url}: {}", compose.log(service));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    started
}

/// A sale that is open; by the back office.
async fn open_a_sale(compose: &Compose) {
    let token = format!("Bearer {}", variables()["SLUICE_ADMIN_TOKEN"]);
    let admin = format!("http://{}:8091/admin/v1", compose.address("api"));
    let utc = |seconds| Millis::now().after(Duration::from_secs(seconds)).to_text();
    let sale = json!({"sale": "demo", "starts_at": utc(0), "ends_at": utc(3600), "mode": "queued",
        "accept_after": "journal", "pay_within_seconds": 900, "segments": 1,
        "items": [{"sku": "phone", "title": "Phone", "price": 1, "currency": "EUR", "stock": 10, "per_user": 9}]});
    let asked = |path: &str, body: Option<&Value>| {
        let answer =
            call("POST", &format!("{admin}/sales{path}"), &[("authorization", token.as_str())], body);
        matches!(answer, Some((200..=299, _))).then_some(()).ok_or(answer)
    };
    asked("", Some(&sale)).unwrap();
    for step in ["/demo/preload", "/demo/open"] {
        // The wardens look at the books first.
        eventually(step, PATIENCE, || async { asked(step, None).is_ok() }).await;
    }
}

/// Buys through the balancer until it is written in the books.
async fn buy(gate: &str) {
    let claims = json!({"sub": "alice", "exp": Millis::now().seconds() + 3600});
    let bearer = format!("Bearer {}", sign_hs256(&variables()["SLUICE_JWT_SECRET"], &claims));
    let ours = [("authorization", bearer.as_str())];
    let mut token = String::new();
    let end = Instant::now() + PATIENCE;
    while token.is_empty() {
        let answer = call("POST", &format!("{gate}/v1/sales/demo/token"), &ours, None);
        assert!(Instant::now() < end, "no token: {answer:?}");
        token = answer.and_then(|(_, body)| Some(body["token"].as_str()?.to_owned())).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let fields = [ours[0], ("x-sale-token", token.as_str())];
    let wanted = json!({"sku": "phone", "quantity": 1});
    let (status, order) =
        call("POST", &format!("{gate}/v1/sales/demo/orders"), &fields, Some(&wanted)).unwrap();
    assert_eq!(status, 202, "{order}");
    let order = format!("{gate}/v1/orders/{}", order["order_id"].as_str().unwrap());
    let written = || async {
        call("GET", &order, &ours, None).is_some_and(|(_, order)| order["state"] == "pending_payment")
    };
    eventually("the order is in the books, and the buyer is told", PATIENCE, written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_starts_with_its_environment_alone_and_they_sell() {
    let vhost = Vhost::bare();
    grant(&vhost);
    let name = format!("sluice_compose_{}", uuid::Uuid::now_v7().simple());
    database(&name, true).await;
    let (_, path) = vhost.url.rsplit_once('/').unwrap();
    let amqp = server_of(&vhost.url);
    let management = required("SLUICE_TEST_AMQP_MANAGEMENT_URL");
    let books = required("SLUICE_TEST_DATABASE_URL");
    let compose = Compose::read(&[
        ("rabbitmq:5672/sluice", format!("{amqp}/{path}")),
        ("rabbitmq:15672", server_of(&management).to_owned()),
        ("postgres:5432/sluice", format!("{}/{name}", server_of(&books))),
    ]);
    let _redis = redis(&compose);
    let balancer = balancer(&compose);
    run_once(&compose);
    let mut started = start(&compose).await;
    open_a_sale(&compose).await;
    let gate = format!("http://{}:8080", compose.address("balancer"));
    buy(&gate).await;
    // An edge is told to stop: nobody is turned away, and the other one serves.
    let view = format!("{gate}/v1/sales/demo");
    let at = started.iter().position(|(name, _)| name == "edge-1").unwrap();
    let mut edge = started.swap_remove(at).1;
    edge.terminate();
    let mut served = 0;
    let end = Instant::now() + PATIENCE;
    while edge.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the edge does not stop");
        let answer = call("GET", &view, &[], None);
        assert!(matches!(answer, Some((200, _))), "{served} were served, then {answer:?}");
        served += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(served > 20, "{served} were served while it stopped");
    buy(&gate).await;
    drop((started, balancer));
    database(&name, false).await;
}

#[test]
fn the_users_of_rabbitmq_are_written_whole_or_told_what_is_missing() {
    let compose = Compose::read(&[]);
    let file = compose.volume("definitions").join("users.json");
    let status = compose.command("users").status().unwrap();
    assert!(status.success(), "{}", compose.log("users"));
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let names: Vec<_> = written["users"].as_array().unwrap().iter().map(|user| &user["name"]).collect();
    assert_eq!(names, ["edge", "worker", "operator"]);
    let told = compose.command("users").env_remove("SLUICE_AMQP_EDGE_PASSWORD").status().unwrap();
    assert_eq!(told.code(), Some(64));
    assert!(compose.log("users").contains("set SLUICE_AMQP_EDGE_PASSWORD"), "{}", compose.log("users"));
    let plan = ["topology", "plan", "--output", "x"];
    let told = Command::new(env!("CARGO_BIN_EXE_sluice-worker")).args(plan).env_clear().output().unwrap();
    assert_eq!(told.status.code(), Some(64), "{told:?}");
}

async fn run(connection: &mut PgConnection, text: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(text).execute(connection).await.map(drop)
}

/// As the image runs it once: the server's user is the one of the services, and may do all.
#[tokio::test]
async fn the_reader_that_postgresql_gets_reads_what_comes_later_and_writes_nothing() {
    let server = PrivatePostgres::start(&[]);
    let url =
        |user: &str, database: &str| format!("postgres://{user}@127.0.0.1:{}/{database}", server.port());
    let end = Instant::now() + PATIENCE;
    let mut admin = loop {
        match PgConnection::connect(&url("postgres", "postgres")).await {
            Ok(admin) => break admin,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    run(&mut admin, "CREATE ROLE sluice SUPERUSER LOGIN").await.unwrap();
    run(&mut admin, "CREATE DATABASE sluice OWNER sluice").await.unwrap();
    let script = root().join("ops/postgres/reader.sh");
    let done = Command::new(&script)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", required("SLUICE_TEST_POSTGRES_BIN")))
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", server.port().to_string())
        .envs([("POSTGRES_USER", "sluice"), ("POSTGRES_DB", "sluice")])
        .env("SLUICE_DATABASE_READER_PASSWORD", "it's a password")
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let mut owner = PgConnection::connect(&url("sluice", "sluice")).await.unwrap();
    run(&mut owner, "CREATE TABLE later (n int)").await.unwrap();
    let mut reader = PgConnection::connect(&url("sluice_reader", "sluice")).await.unwrap();
    run(&mut reader, "SELECT n FROM later").await.unwrap();
    let refused = run(&mut reader, "INSERT INTO later VALUES (1)").await.unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
}
