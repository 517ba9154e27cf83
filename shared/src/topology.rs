//! Exchanges, queues, bindings and policies, as data: the declarations, `ops/rabbitmq/definitions.json`
//! and `sluice-worker topology` all come from here.
//!
//! Queue arguments hold only what can never change (type, dead-letter target, strategy, delay of a
//! retry step); limits are policies, which an operator can change in the management UI.

use serde_json::{Value, json};

/// The virtual host.
pub const VHOST: &str = "sluice";
/// Direct: accepted orders, routing key `write.NN`; what comes back from the retry ladder.
pub const ORDERS: &str = "sluice.orders";
/// Direct: messages waiting for their next attempt, routing key `2s`, `10s`, `30s` or `60s` and the queue
/// that they go back to.
pub const RETRY: &str = "sluice.retry";
/// Direct: messages that no retry can mend, routing key `parked`.
pub const DEAD: &str = "sluice.dead";
/// Topic: what the outbox tells, routing key = its topic.
pub const EVENTS: &str = "sluice.events";
/// Queue of `order.created` and `order.changed`, read by the saga.
pub const SAGA: &str = "sluice.saga";
/// Queue of `stock.release`, read by the saga.
pub const RELEASE: &str = "sluice.stock.release";
/// Queue of parked messages, read by operators.
pub const PARKED: &str = "sluice.parked";
/// Header that counts attempts: the broker's own counters differ between its versions.
pub const ATTEMPT: &str = "x-sluice-attempt";
/// Header that says why a message was tried again, or parked.
pub const REASON: &str = "x-sluice-reason";
/// Header that says which queue a parked message was in.
pub const QUEUE: &str = "x-sluice-queue";
/// Header that says which sale a message is about.
pub const SALE: &str = "sale";

/// Where messages wait that nothing is wrong with: name and delay in milliseconds.
pub const WAITING: (&str, u32) = ("2s", 2_000);
/// The steps of the retry ladder, of messages that failed. One queue a step, because a per-message TTL waits
/// behind the longer one before it.
pub const LADDER: [(&str, u32); 3] = [("10s", 10_000), ("30s", 30_000), ("60s", 60_000)];

/// The queue of one write shard.
pub fn write_queue(shard: u16) -> String {
    format!("sluice.orders.write.{shard:02}")
}

/// The routing key of one write shard.
pub fn write_key(shard: u16) -> String {
    format!("write.{shard:02}")
}

/// An exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// `direct` or `topic`.
    pub kind: &'static str,
}

/// A quorum queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Arguments beside the type: a JSON object of strings, integers and booleans.
    pub arguments: Value,
    /// Where its messages come from: exchange and routing key.
    pub bindings: Vec<(&'static str, String)>,
}

/// A policy: limits that can change.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: &'static str,
    /// Which queues, as a regular expression.
    pub pattern: &'static str,
    /// Higher wins.
    pub priority: u8,
    /// The limits.
    pub definition: Value,
}

/// The whole topology.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// Exchanges, all durable.
    pub exchanges: Vec<Exchange>,
    /// Queues, all quorum.
    pub queues: Vec<Queue>,
    /// Policies.
    pub policies: Vec<Policy>,
}

impl Topology {
    /// The topology with this many write shards (1…64).
    pub fn new(shards: u16) -> Self {
        let exchange = |name, kind| Exchange { name, kind };
        let mut queues: Vec<Queue> = (0..shards).map(write).collect();
        queues.push(work(SAGA, &["order.created", "order.changed", "*.sluice.saga"]));
        queues.push(work(RELEASE, &["stock.release", "*.sluice.stock.release"]));
        queues.extend([WAITING].iter().chain(&LADDER).map(|(step, delay)| Queue {
            name: format!("sluice.retry.{step}"),
            // Back by the key that it came with, `<step>.<queue>`: each queue binds its own name.
            arguments: json!({
                "x-dead-letter-exchange": EVENTS, "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish", "x-message-ttl": delay
            }),
            bindings: [SAGA, RELEASE].iter().map(|queue| (RETRY, format!("{step}.{queue}"))).collect(),
        }));
        queues.push(Queue {
            name: PARKED.to_owned(),
            arguments: json!({}),
            bindings: vec![(DEAD, "parked".to_owned())],
        });
        Self {
            exchanges: vec![
                exchange(ORDERS, "direct"),
                exchange(RETRY, "direct"),
                exchange(DEAD, "direct"),
                exchange(EVENTS, "topic"),
            ],
            queues,
            policies: policies(),
        }
    }

    /// As RabbitMQ imports it (`definitions.json`), without users: their password hashes are secrets.
    pub fn definitions(&self) -> Value {
        let exchanges: Vec<Value> = self
            .exchanges
            .iter()
            .map(|e| {
                json!({"vhost": VHOST, "name": e.name, "type": e.kind, "durable": true,
                "auto_delete": false, "internal": false, "arguments": {}})
            })
            .collect();
        let queues: Vec<Value> = self
            .queues
            .iter()
            .map(|q| {
                json!({"vhost": VHOST, "name": q.name, "durable": true, "auto_delete": false,
                "arguments": q.all_arguments()})
            })
            .collect();
        let bindings: Vec<Value> = self
            .queues
            .iter()
            .flat_map(|q| q.bindings.iter().map(move |b| (q, b)))
            .map(|(q, (source, key))| {
                json!({"vhost": VHOST, "source": source, "destination": q.name,
                "destination_type": "queue", "routing_key": key, "arguments": {}})
            })
            .collect();
        let policies: Vec<Value> = self
            .policies
            .iter()
            .map(|p| {
                json!({"vhost": VHOST, "name": p.name, "pattern": p.pattern, "apply-to": "queues",
                "priority": p.priority, "definition": p.definition})
            })
            .collect();
        json!({"vhosts": [{"name": VHOST}], "exchanges": exchanges, "queues": queues,
            "bindings": bindings, "policies": policies})
    }
}

impl Queue {
    /// All arguments of the declaration, the type among them.
    pub fn all_arguments(&self) -> Value {
        let mut arguments = self.arguments.clone();
        arguments["x-queue-type"] = json!("quorum");
        arguments
    }
}

/// Accepted orders of one shard. A single active consumer, so that a barrier message that comes
/// through has every earlier message committed before it.
fn write(shard: u16) -> Queue {
    Queue {
        name: write_queue(shard),
        arguments: json!({"x-single-active-consumer": true, "x-overflow": "reject-publish"}),
        bindings: vec![(ORDERS, write_key(shard))],
    }
}

fn work(name: &str, keys: &[&str]) -> Queue {
    Queue {
        name: name.to_owned(),
        arguments: json!({
            "x-overflow": "reject-publish", "x-dead-letter-exchange": DEAD,
            "x-dead-letter-routing-key": "parked", "x-dead-letter-strategy": "at-least-once"
        }),
        bindings: keys.iter().map(|key| (EVENTS, (*key).to_owned())).collect(),
    }
}

/// Every queue is bounded: a full one refuses, and the sender keeps what it has.
fn policies() -> Vec<Policy> {
    vec![
        Policy {
            name: "sluice-orders",
            pattern: r"^sluice\.orders\.",
            priority: 10,
            // Explicit, because newer brokers drop a message after 20 deliveries: an order is
            // delivered as often as its writer has to stop, and the writer parks poison itself.
            definition: json!({"max-length": 5_000_000, "delivery-limit": 1_000_000}),
        },
        Policy {
            name: "sluice-saga",
            pattern: r"^sluice\.saga$",
            priority: 10,
            definition: json!({"max-length": 1_000_000, "delivery-limit": 50}),
        },
        Policy {
            name: "sluice-release",
            pattern: r"^sluice\.stock\.release$",
            priority: 10,
            // A release is never given up.
            definition: json!({"max-length": 1_000_000, "delivery-limit": 1_000_000}),
        },
        Policy {
            name: "sluice-rest",
            pattern: r"^sluice\.(retry\.|parked$)",
            priority: 10,
            // The others refuse by their arguments; by default the oldest message is dropped.
            definition: json!({"max-length": 1_000_000, "overflow": "reject-publish"}),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_starts_at_an_exchange_that_exists() {
        let topology = Topology::new(4);
        for queue in &topology.queues {
            for (source, _) in &queue.bindings {
                assert!(topology.exchanges.iter().any(|e| e.name == *source), "{source}");
            }
        }
    }
}
