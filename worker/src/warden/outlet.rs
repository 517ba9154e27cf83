//! Where the warden publishes: accepted orders that nobody else may publish any more, and barriers.

use std::collections::VecDeque;
use std::time::Duration;

use sluice_shared::amqp::{AmqpError, Outgoing, Publisher, Sender};
use sluice_shared::message::{Accepted, OrderMessage, VERSION};
use sluice_shared::place::write_shard;
use sluice_shared::topology::{ORDERS, write_key};

use super::{Trouble, Warden};

/// Messages without a confirm at a time.
const WINDOW: usize = 512;
/// A broker that does not confirm within this time is away, or blocks.
const PATIENCE: Duration = Duration::from_secs(5);

/// Routing key, id, kind, sale and body.
type Message<'a> = (String, String, &'a str, Option<&'a str>, Vec<u8>);

/// A way to the write queues.
#[derive(Debug)]
pub struct Outlet {
    shards: u16,
    sender: Sender,
}

impl Outlet {
    /// Not connected yet; `what` is how operators read its purpose in the management UI.
    pub fn new(warden: &Warden, what: &str) -> Self {
        let config = &warden.context.config;
        let sender = Sender::new(config.amqp.url.reveal(), format!("{} {what}", warden.context.who));
        Self { shards: config.orders.shards, sender }
    }

    /// How many write queues there are.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Connects; fails at once where there is no broker.
    pub async fn ready(&mut self) -> Result<(), Trouble> {
        Ok(self.sender.publisher().await.map(drop)?)
    }

    /// Publishes orders; `Ok` means that the broker confirmed every one.
    pub async fn orders(&mut self, orders: &[Accepted]) -> Result<(), Trouble> {
        let messages: Result<Vec<_>, Trouble> = orders
            .iter()
            .map(|order| {
                let key = write_key(write_shard(&order.order.uuid, self.shards));
                let id = order.order.to_string();
                let body = encode(&OrderMessage::Accepted(order.clone()))?;
                Ok((key, id, "order.accepted", Some(order.sale.as_str()), body))
            })
            .collect();
        self.send(&messages?).await
    }

    /// Sends a barrier through every write queue.
    pub async fn barrier(&mut self, id: &str) -> Result<(), Trouble> {
        let messages: Result<Vec<_>, Trouble> = (0..self.shards)
            .map(|shard| {
                let body = encode(&OrderMessage::Barrier { v: VERSION, id: id.to_owned(), shard })?;
                Ok((write_key(shard), id.to_owned(), "barrier", None, body))
            })
            .collect();
        self.send(&messages?).await
    }

    async fn send(&mut self, messages: &[Message<'_>]) -> Result<(), Trouble> {
        let sent = publish(&self.sender.publisher().await?, messages).await;
        if sent.is_err() {
            self.sender.reset();
        }
        sent
    }
}

async fn publish(publisher: &Publisher, messages: &[Message<'_>]) -> Result<(), Trouble> {
    let mut waiting = VecDeque::with_capacity(WINDOW);
    for (key, id, kind, sale, body) in messages {
        if waiting.len() >= WINDOW
            && let Some(first) = waiting.pop_front()
        {
            tokio::time::timeout(PATIENCE, first).await.map_err(|_| late())??;
        }
        let message = Outgoing { exchange: ORDERS, key, id, kind, sale: *sale, body, ..Outgoing::default() };
        let confirm = tokio::time::timeout(PATIENCE, publisher.publish(message)).await;
        waiting.push_back(confirm.map_err(|_| late())??);
    }
    for confirm in waiting {
        tokio::time::timeout(PATIENCE, confirm).await.map_err(|_| late())??;
    }
    Ok(())
}

fn late() -> Trouble {
    AmqpError::Silent(PATIENCE).into()
}

fn encode(message: &OrderMessage) -> Result<Vec<u8>, Trouble> {
    serde_json::to_vec(message).map_err(|error| Trouble::Odd(format!("writing a message: {error}")))
}
