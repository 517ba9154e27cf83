//! An order that broker and Redis lose, one after the other, and what its receipt is worth then: with a
//! real edge before real workers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::jwt::sign_hs256;
use sluice_shared::place::write_shard;
use sluice_shared::sale::SaleStep;
use sluice_shared::topology::write_queue;
use sluice_testkit::{eventually, free_port, required};
use sluice_worker::audit::judge;
use sluice_worker::role;
use tokio::sync::watch;

use crate::harness::broker::SHARDS;
use crate::warden_world::{PATIENCE, Place, Process};

const JWT_SECRET: &str = "jwt secret of the tests";
const SECRET: &str = "one secret for all the rest";
const SEED: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";

/// A sale behind a real edge; killed when dropped.
struct Shop {
    place: Place,
    public: SocketAddr,
    office: SocketAddr,
    edge: Child,
    state: PathBuf,
    _warden: Process,
    _stop: watch::Sender<bool>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        // It may have ended already; what stays behind is a directory in the temporary folder.
        let _ = self.edge.kill();
        let _ = self.edge.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

impl Shop {
    async fn open(stock: u64) -> Self {
        let place = Place::new(stock).await;
        place.step(SaleStep::Preloaded).await;
        place.step(SaleStep::Open).await;
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (public, admin, office) = (local(free_port()), local(free_port()), local(free_port()));
        let api = format!(
            "[api]\nlisten = \"{office}\"\nadmin_token = \"{SECRET}\"\nadmin_jwt_secret = \"{SECRET}\"\n\
             payment_secret = \"{SECRET}\"\nedge_secret = \"{SECRET}\"\n"
        );
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(role::api::run(place.context(&api), stopped));
        let state = std::env::temp_dir().join(format!("sluice-test-shop-{}", std::process::id()));
        let edge = Command::new(PathBuf::from(required("SLUICE_TEST_BIN")).join("sluice-edge"))
            .env("SLUICE__STATE_DIR", &state)
            .env("SLUICE__LISTEN__PUBLIC", public.to_string())
            .env("SLUICE__LISTEN__ADMIN", admin.to_string())
            .env("SLUICE__LISTEN__THREADS", "1")
            .env("SLUICE__IDENTITY__JWT_SECRET", JWT_SECRET)
            .env("SLUICE__TOKEN__KEYS", format!("k1:{SECRET}"))
            .env("SLUICE__RECEIPT__KEYS", format!("r1:{SEED}"))
            .env("SLUICE__REDIS__URL", place.server.url())
            .env("SLUICE__REDIS__DEADLINE_MS", "2000")
            .env("SLUICE__AMQP__URL", &place.broker.url)
            .env("SLUICE__RELAY__SHARDS", SHARDS.to_string())
            // With a copy of its own the edge would not let it be lost.
            .env("SLUICE__RELAY__SPARE_MAX", "0")
            .env("SLUICE__API__ADDRESS", office.to_string())
            .env("SLUICE__API__SECRET", SECRET)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let warden = place.warden("");
        Self { place, public, office, edge, state, _warden: warden, _stop: stop }
    }

    /// A call with JSON; status and body of the answer, (0, null) when there was none.
    fn post(&self, url: &str, fields: &[(&str, &str)], body: &Value) -> (u16, Value) {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = ureq::Agent::new_with_config(config.timeout_global(Some(PATIENCE)).build());
        let mut request = agent.post(url);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let Ok(mut answer) = request.send_json(body) else { return (0, Value::Null) };
        (answer.status().as_u16(), answer.body_mut().read_json().unwrap_or(Value::Null))
    }

    fn buyer(&self, path: &str, user: &str, token: &str, body: &Value) -> (u16, Value) {
        let claims = json!({"sub": user, "exp": Millis::now().seconds() + 600});
        let bearer = format!("Bearer {}", sign_hs256(JWT_SECRET, &claims));
        let fields = [("Authorization", bearer.as_str()), ("X-Sale-Token", token)];
        self.post(&format!("http://{}{path}", self.public), &fields, body)
    }

    /// Buys a phone as soon as one can be bought: the order and its receipt.
    async fn buy(&self, user: &str) -> (OrderId, String) {
        let mut bought = None;
        let deadline = Duration::from_secs(40);
        eventually("a phone is bought", deadline, || {
            let (status, token) = self.buyer("/v1/sales/demo/token", user, "", &json!({}));
            if status == 200 {
                let token = token["token"].as_str().unwrap().to_owned();
                let body = json!({"sku": "phone", "quantity": 1});
                let (status, told) = self.buyer("/v1/sales/demo/orders", user, &token, &body);
                assert!(matches!(status, 202 | 503), "{status} {told}");
                bought = (status == 202).then(|| {
                    let text = |name: &str| told[name].as_str().expect("a text").to_owned();
                    (OrderId::parse(&text("order_id")).unwrap(), text("receipt"))
                });
            }
            std::future::ready(bought.is_some())
        })
        .await;
        bought.unwrap()
    }

    /// Claims until there is an answer that is not "try again".
    async fn claim(&self, user: &str, receipt: &str) -> (u16, Value) {
        let mut answer = (0, Value::Null);
        eventually("the claim is judged", PATIENCE, || {
            answer = self.buyer("/v1/orders/claim", user, "", &json!({ "receipt": receipt }));
            std::future::ready(!matches!(answer.0, 0 | 503))
        })
        .await;
        answer
    }

    async fn written(&self, order: &OrderId) {
        eventually("the order is written", PATIENCE, || self.place.written(order)).await;
    }

    /// The broker loses an order that it had confirmed, then Redis everything: the next epoch begins.
    async fn lose(&self, order: &OrderId) {
        let (place, epoch) = (&self.place, self.place.epoch().await);
        eventually("the broker has it", PATIENCE, || async {
            let journal = sluice_shared::redis::cmd("XLEN").arg(place.segment.journal()).to_owned();
            place.redis.run::<u64>("test", &journal).await == Ok(0)
        })
        .await;
        place.broker.drain(&write_queue(write_shard(&order.uuid, SHARDS)), 1).await;
        place.run(&["FLUSHALL"]).await;
        place.run(&["SCRIPT", "FLUSH"]).await;
        let orders = place.orders();
        eventually("the next epoch sells", Duration::from_secs(40), || async {
            place.view().await.is_some_and(|view| view.epochs == [epoch + 1])
        })
        .await;
        orders.stop().await;
        assert!(!place.written(order).await && place.record(order).await.is_none(), "it is lost");
    }

    async fn balanced(&self) -> bool {
        let place = &self.place;
        let seen = judge(&place.db.store, &place.redis, Some(&place.segment.sale)).await.unwrap();
        let broken = seen.sales[0].equations.iter().filter(|equation| !equation.holds);
        let broken: Vec<_> = broken.collect();
        assert!(broken.iter().all(|equation| equation.name == "A6"), "{broken:#?}");
        seen.balanced
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_broker_and_redis_have_lost_is_honoured_by_its_receipt_or_named() {
    let shop = Shop::open(3).await;
    // One is in the books: Redis is restored with it.
    let orders = shop.place.orders();
    let (first, _) = shop.buy("zoe").await;
    shop.written(&first).await;
    orders.stop().await;

    let (lost, receipt) = shop.buy("alice").await;
    shop.lose(&lost).await;
    let orders = shop.place.orders();
    for _ in 0..2 {
        let (status, order) = shop.claim("alice", &receipt).await;
        assert_eq!((status, &order["order_id"]), (200, &json!(lost)), "{order}");
        shop.written(&lost).await;
    }
    let row = shop.place.db.store.order(&lost).await.unwrap().unwrap();
    assert_eq!((row.epoch, row.user.as_str(), row.lines.to_string().as_str()), (2, "alice", "phone=1"));
    assert!(shop.balanced().await);
    orders.stop().await;

    // Again, and somebody else is quicker: there is no unit left for the claim.
    let (lost, receipt) = shop.buy("bob").await;
    shop.lose(&lost).await;
    let orders = shop.place.orders();
    let (last, _) = shop.buy("carol").await;
    shop.written(&last).await;
    for _ in 0..2 {
        let (status, refused) = shop.claim("bob", &receipt).await;
        assert_eq!((status, &refused["code"]), (409, &json!("not_honoured")), "{refused}");
        assert!(!shop.balanced().await);
    }
    // A unit is found; the same receipt gets it, and the claim is resolved by that.
    let bearer = format!("Bearer {SECRET}");
    let fields = [("Authorization", bearer.as_str()), ("Idempotency-Key", "found")];
    let url = format!("http://{}/admin/v1/sales/demo/stock", shop.office);
    let found = shop.post(&url, &fields, &json!({"sku": "phone", "delta": 1, "reason": "found one"}));
    assert_eq!(found.0, 200, "{found:?}");
    assert_eq!(shop.claim("bob", &receipt).await.0, 200);
    shop.written(&lost).await;
    assert!(shop.balanced().await);
    orders.stop().await;
}
