//! A virtual host of one test's own, with the topology declared.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sluice_shared::amqp::{Consumer, Link, Outgoing};
use sluice_shared::place::write_shard;
use sluice_shared::topology::{ORDERS, Topology, write_key};
use sluice_testkit::required;

use sluice_shared::message::{Accepted, OrderMessage};

/// The number of write queues in tests.
pub const SHARDS: u16 = 2;

pub struct Vhost {
    name: String,
    user: String,
    management: String,
    authorization: String,
    pub url: String,
}

impl Vhost {
    pub async fn new() -> Self {
        let vhost = Self::bare();
        let link = vhost.link().await;
        link.declare(&Topology::new(SHARDS)).await.unwrap();
        link.close().await;
        vhost
    }

    /// Without the topology.
    pub fn bare() -> Self {
        let url = required("SLUICE_TEST_AMQP_MANAGEMENT_URL");
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (login, address) = rest.split_once('@').expect("user:password@ in the management URL");
        let user = login.split(':').next().unwrap().to_owned();
        let name = format!("sluice-test-{}", uuid::Uuid::now_v7().simple());
        let amqp = required("SLUICE_TEST_AMQP_URL");
        let (server, _) = amqp.rsplit_once('/').expect("a virtual host in SLUICE_TEST_AMQP_URL");
        let vhost = Self {
            url: format!("{server}/{name}"),
            management: format!("{scheme}://{}", address.trim_end_matches('/')),
            authorization: format!("Basic {}", STANDARD.encode(login)),
            name,
            user,
        };
        vhost.make();
        vhost
    }

    fn make(&self) {
        self.put(&format!("/api/vhosts/{}", self.name), json!({}));
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.put(&format!("/api/permissions/{}/{}", self.name, self.user), all);
    }

    /// As a broker whose data is gone: no connection, no exchange, no queue, no message is left.
    pub fn wipe(&self) {
        let delete = ureq::delete(format!("{}/api/vhosts/{}", self.management, self.name));
        delete.header("Authorization", &self.authorization).call().unwrap();
        self.make();
    }

    /// Deletes one queue, as an operator may by mistake.
    pub fn delete_queue(&self, queue: &str) {
        let delete = ureq::delete(format!("{}/api/queues/{}/{queue}", self.management, self.name));
        delete.header("Authorization", &self.authorization).call().unwrap();
    }

    pub async fn link(&self) -> Link {
        Link::connect(&self.url, "sluice-test").await.expect("rabbitmq answers")
    }

    pub fn put(&self, path: &str, body: Value) {
        let request = ureq::put(format!("{}{path}", self.management));
        request.header("Authorization", &self.authorization).send_json(body).unwrap();
    }

    /// Messages of a queue as they lie there, taken out of it.
    pub async fn drain(&self, queue: &str, n: usize) -> Vec<sluice_shared::amqp::Delivery> {
        let link = self.link().await;
        let mut consumer = link.consumer(queue, "test", 1000).await.unwrap();
        let mut found = Vec::new();
        while found.len() < n {
            found.push(consumer.next().await.unwrap().unwrap());
        }
        // At once: of many single acknowledgements a quorum queue forgets some when the channel closes.
        consumer.ack_through(found.last().map_or(0, |last| last.tag)).await.unwrap();
        consumer.close().await;
        link.close().await;
        found
    }

    pub async fn consumer(&self, queue: &str) -> (Link, Consumer) {
        let link = self.link().await;
        let consumer = link.consumer(queue, "test", 100).await.unwrap();
        (link, consumer)
    }

    /// What an edge publishes.
    pub async fn publish_orders(&self, orders: &[Accepted]) {
        let bodies: Vec<_> = orders
            .iter()
            .map(|order| {
                let body = serde_json::to_vec(&OrderMessage::Accepted(order.clone())).unwrap();
                (write_key(write_shard(&order.order.uuid, SHARDS)), body)
            })
            .collect();
        self.publish(ORDERS, &bodies).await;
    }

    pub async fn publish(&self, exchange: &str, messages: &[(String, Vec<u8>)]) {
        let link = self.link().await;
        let publisher = link.publisher().await.unwrap();
        let mut confirms = Vec::new();
        for (key, body) in messages {
            let message = Outgoing { exchange, key, id: "t", kind: "t", body, ..Outgoing::default() };
            confirms.push(publisher.publish(message).await.unwrap());
        }
        for confirm in confirms {
            confirm.await.unwrap();
        }
        link.close().await;
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let delete = ureq::delete(format!("{}/api/vhosts/{}", self.management, self.name));
        // What stays behind is a virtual host of a test server.
        let _ = delete.header("Authorization", &self.authorization).call();
    }
}
