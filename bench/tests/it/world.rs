//! A whole small system of one test's own: its Redis, a virtual host, a database, and a fleet over them.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sluice_bench::admin::{Audit, Offer, audit};
use sluice_bench::client::answer::Answer;
use sluice_bench::client::call::call;
use sluice_bench::client::outcome::Outcome;
use sluice_bench::drill::{Scene, Setting, wait_for};
use sluice_bench::environment::Environment;
use sluice_bench::fleet::{Base, Fleet, Kind};
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_testkit::{PrivateRedis, required};

const SECRET: &str = "a secret of the tests, long enough";
/// Longer than anything that recovers takes on a busy machine.
pub(crate) const RECOVERY: Duration = Duration::from_secs(60);

/// Every worker role but the warden's.
pub(crate) const WORKER: Kind = Kind::Worker(&["orders", "outbox", "saga", "timeout", "api"]);
/// A warden.
pub(crate) const WARDEN: Kind = Kind::Worker(&["reconcile"]);

/// A running system; its parts end with it, the processes before the stores.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) environment: Environment,
    pub(crate) redis: PrivateRedis,
    _broker: Vhost,
    _database: Database,
    _directory: Directory,
}

impl World {
    /// An edge, a worker with every role, and a warden.
    pub(crate) fn small() -> Self {
        Self::of(&[("warden", WARDEN), ("worker", WORKER), ("edge", Kind::Edge)])
    }

    /// These members, started in this order; one has the role `api`, one is an edge.
    pub(crate) fn of(members: &[(&str, Kind)]) -> Self {
        let directory = Directory::new();
        let (redis, broker, database) = (PrivateRedis::start(), Vhost::new(), Database::new());
        let base = base(&redis.url(), &broker, &database.url);
        base.command(&directory.0, &["migrate"]).unwrap();
        base.command(&directory.0, &["topology", "apply"]).unwrap();
        let mut fleet = Fleet::new(directory.0.clone(), base, 1).unwrap();
        for (name, kind) in members {
            fleet.add(name, *kind).unwrap();
        }
        for (name, _) in members {
            fleet.wait(name).unwrap();
        }
        let edge = members.iter().find(|(_, kind)| *kind == Kind::Edge).unwrap().0;
        let environment = environment(&directory.0, &fleet, edge, [&redis.url(), &broker.url, &database.url]);
        Self { fleet, environment, redis, _broker: broker, _database: database, _directory: directory }
    }

    /// Makes a sale of so many units and opens it; `buyers` can buy in it, one unit each.
    pub(crate) fn sale(&self, units: u32, buyers: u32) -> Scene {
        let offer = Offer { stock: units, per_user: 1, price: 100, pay_within: 3_600 };
        let (environment, log) = (self.environment.clone(), None);
        let setting = Setting { environment, connections: 8, log, seed: 1 };
        Scene::open(&setting, offer, buyers).unwrap()
    }

    /// One attempt to buy at an edge: the order of its token, and what came of it.
    pub(crate) fn buy(&self, edge: &str, scene: &Scene, token: &(String, OrderId), buyer: u32) -> Outcome {
        let request = scene.buyers.order_request(buyer, &token.0, 1);
        let reply = call(self.fleet.public(edge).unwrap(), &request);
        let Answer { outcome, .. } = reply.answer();
        outcome
    }

    /// The same attempt, again and again, until it is accepted.
    pub(crate) fn buy_at_last(&self, edge: &str, scene: &Scene, buyer: u32) -> OrderId {
        let token = token(scene, buyer);
        wait_for("an order to be accepted", RECOVERY, || match self.buy(edge, scene, &token, buyer) {
            outcome if outcome.is_held() => Ok(token.1),
            other => anyhow::bail!("the last answer is {other}"),
        })
        .unwrap()
    }

    /// What the audit says once nothing is under way.
    pub(crate) fn audit(&self, scene: &Scene) -> Audit {
        audit(&self.environment, &scene.sale, RECOVERY).unwrap()
    }
}

/// A sale token that is good for a while, and its order.
pub(crate) fn token(scene: &Scene, buyer: u32) -> (String, OrderId) {
    scene.buyers.mint(buyer, Millis(Millis::now().0 + 600_000)).unwrap()
}

fn base(redis: &str, broker: &Vhost, database: &str) -> Base {
    let edge = format!(
        "[identity]\njwt_secret = {SECRET:?}\n[token]\nkeys = [\"k1:{SECRET}\"]\n[redis]\nurl = {redis:?}\n\
         [amqp]\nurl = {:?}\n[api]\nsecret = {SECRET:?}\n",
        broker.url
    );
    let worker = format!(
        "[redis]\nurl = {redis:?}\n[amqp]\nurl = {:?}\nmanagement_url = {:?}\n[database]\nurl = {database:?}\n\
         [api]\nadmin_token = {SECRET:?}\nadmin_jwt_secret = {SECRET:?}\npayment_secret = {SECRET:?}\n\
         edge_secret = {SECRET:?}\n",
        broker.url, broker.management_url
    );
    let program = |name: &str| Path::new(&required("SLUICE_TEST_BIN")).join(name);
    let programs = (program("sluice-edge"), program("sluice-worker"));
    Base::new(edge.parse().unwrap(), worker.parse().unwrap(), programs).unwrap()
}

/// The file that drills read.
fn environment(directory: &Path, fleet: &Fleet, edge: &str, stores: [&str; 3]) -> Environment {
    let [redis, amqp, database] = stores;
    let http = |address: SocketAddrV4| format!("http://{address}");
    let values = [
        ("EDGE_URL", http(fleet.public(edge).unwrap())),
        ("EDGE_ADMIN_URL", http(fleet.private(edge).unwrap())),
        ("API_URL", http(fleet.api())),
        ("REDIS_URL", redis.to_owned()),
        ("AMQP_URL", amqp.to_owned()),
        ("AMQP_MANAGEMENT_URL", required("SLUICE_TEST_AMQP_MANAGEMENT_URL")),
        ("DATABASE_URL", database.to_owned()),
        ("ADMIN_TOKEN", SECRET.to_owned()),
        ("JWT_SECRET", SECRET.to_owned()),
        ("TOKEN_SECRET", SECRET.to_owned()),
        ("PAYMENT_SECRET", SECRET.to_owned()),
    ];
    let lines: String = values.iter().map(|(name, value)| format!("SLUICE_{name}='{value}'\n")).collect();
    std::fs::write(directory.join("env"), lines).unwrap();
    std::os::unix::fs::symlink(required("SLUICE_TEST_BIN"), directory.join("bin")).unwrap();
    Environment::load(&directory.join("env")).unwrap()
}

/// A directory that goes with its test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("sluice-bench-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the logs are in {}/logs", self.0.display());
        } else {
            // What stays behind is a directory of temporary files.
            std::fs::remove_dir_all(&self.0).unwrap_or_default();
        }
    }
}

/// A virtual host of the test's own.
struct Vhost {
    url: String,
    management_url: String,
    path: String,
    authorization: String,
}

impl Vhost {
    fn new() -> Self {
        let management_url = required("SLUICE_TEST_AMQP_MANAGEMENT_URL");
        let (login, address) = management_url.trim_start_matches("http://").split_once('@').unwrap();
        let name = format!("sluice-test-{}", uuid::Uuid::now_v7().simple());
        let user = login.split(':').next().unwrap();
        let amqp = required("SLUICE_TEST_AMQP_URL");
        let vhost = Self {
            url: format!("{}/{name}", amqp.rsplit_once('/').unwrap().0),
            path: format!("http://{address}/api/vhosts/{name}"),
            authorization: format!("Basic {}", STANDARD.encode(login)),
            management_url: management_url.clone(),
        };
        vhost.put(&vhost.path, &json!({}));
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        vhost.put(&format!("http://{address}/api/permissions/{name}/{user}"), &all);
        vhost
    }

    fn put(&self, url: &str, body: &Value) {
        ureq::put(url).header("Authorization", &self.authorization).send_json(body).unwrap();
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // What stays behind is a virtual host of a test server.
        ureq::delete(&self.path)
            .header("Authorization", &self.authorization)
            .call()
            .map(drop)
            .unwrap_or_default();
    }
}

/// A database of the test's own.
struct Database {
    url: String,
    name: String,
}

impl Database {
    fn new() -> Self {
        let name = format!("sluice_bench_{}", uuid::Uuid::now_v7().simple());
        psql(&format!("CREATE DATABASE {name}")).unwrap();
        let server = required("SLUICE_TEST_DATABASE_URL");
        Self { url: format!("{}/{name}", server.rsplit_once('/').unwrap().0), name }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // What stays behind is a database of a test server.
        psql(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).unwrap_or_default();
    }
}

/// As the server's administrator.
fn psql(sql: &str) -> anyhow::Result<()> {
    let url = required("SLUICE_TEST_DATABASE_URL");
    let done =
        Command::new("psql").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql]).output()?;
    anyhow::ensure!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
