//! RabbitMQ: connect, publish with confirm, consume, declare. Nothing else names lapin.
//!
//! A message counts as handed over only when the broker confirmed it *and* did not return it as
//! unroutable; a connection that breaks leaves every unconfirmed message unknown, and the caller
//! still holds it.

mod greeting;
mod io_loop;
mod sender;

pub use sender::Sender;

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, Event, ExchangeKind,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::Millis;
use crate::topology::{ATTEMPT, QUEUE, REASON, SALE, Topology};

/// How long the broker may take for each step of opening a connection.
const OPEN: Duration = Duration::from_secs(5);
/// How long closing in order may take; then the connection is dropped.
const CLOSE: Duration = Duration::from_secs(5);
/// Bytes of a reason, at the most.
const REASON_MAX: usize = 1000;

/// Why the broker has not taken a message, or cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum AmqpError {
    /// The broker or the connection failed: the outcome of what was under way is unknown.
    #[error("rabbitmq: {0}")]
    Broken(#[from] lapin::Error),
    /// No queue takes this message; the broker gave it back.
    #[error("rabbitmq returned a message as unroutable: {0}")]
    Returned(String),
    /// The broker refused the message: its queue is full.
    #[error("rabbitmq refused a message (its queue is full)")]
    Refused,
    /// No answer within this time.
    #[error("rabbitmq gave no answer within {0:?}")]
    Silent(Duration),
    /// A topology that cannot be declared as written.
    #[error("topology: {0}")]
    Topology(String),
}

impl AmqpError {
    /// Whether the broker answered that something does not exist (AMQP 0-9-1: 404 `not-found`).
    pub fn is_not_found(&self) -> bool {
        let Self::Broken(error) = self else { return false };
        let ErrorKind::ProtocolError(error) = error.kind() else { return false };
        *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)
    }
}

/// A connection to the broker. It does not mend itself: the owner sees it break and makes a new one,
/// so that nothing is ever published twice by a library.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    blocked: watch::Receiver<bool>,
    deaths: watch::Receiver<u64>,
}

impl Link {
    /// Connects under a name that operators read in the management UI, such as
    /// `sluice-edge@host#42 relay`.
    pub async fn connect(url: &str, name: &str) -> Result<Self, AmqpError> {
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "Sluice".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let deaths = io_loop::deaths();
        greeting::wait(plain_server(url)).await?;
        let connection = in_time(Connection::connect(url, properties)).await;
        let connection = connection.inspect_err(|error| {
            if matches!(error, AmqpError::Silent(_)) {
                greeting::was_silent();
            }
        })?;
        let (tell, blocked) = watch::channel(false);
        let mut events = Box::pin(connection.events_listener());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(why) => {
                        tracing::warn!(why, "rabbitmq blocks publishers");
                        tell.send_replace(true);
                    }
                    Event::ConnectionUnblocked => {
                        tracing::info!("rabbitmq takes messages again");
                        tell.send_replace(false);
                    }
                    Event::Error(_) => break,
                    _ => {}
                }
            }
        });
        Ok(Self { connection, blocked, deaths })
    }

    /// Whether the broker blocks publishers (memory or disk alarm). Consumers go on.
    pub fn blocked(&self) -> watch::Receiver<bool> {
        self.blocked.clone()
    }

    /// Whether the connection still stands.
    pub fn is_up(&self) -> bool {
        self.connection.status().connected() && !self.deaths.has_changed().unwrap_or(true)
    }

    /// Ends when the client library has broken down: nothing that waits for this connection ends by itself
    /// then. Whoever waits without a deadline waits for this beside it.
    pub fn broken_down(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut deaths = self.deaths.clone();
        async move {
            // The sender lives as long as the process.
            let _ = deaths.changed().await;
        }
    }

    /// A channel to publish on.
    pub async fn publisher(&self) -> Result<Publisher, AmqpError> {
        in_time(async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(Publisher { channel })
        })
        .await
    }

    /// Reads a queue; at most `prefetch` messages are under way at a time.
    pub async fn consumer(&self, queue: &str, tag: &str, prefetch: u16) -> Result<Consumer, AmqpError> {
        in_time(async {
            let channel = self.connection.create_channel().await?;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            let consumer =
                channel.basic_consume(queue.into(), tag.into(), options, FieldTable::default()).await?;
            Ok(Consumer { channel, consumer, deaths: self.deaths.clone() })
        })
        .await
    }

    /// Declares everything; what exists as described is left alone.
    pub async fn declare(&self, topology: &Topology) -> Result<(), AmqpError> {
        let channel = self.connection.create_channel().await?;
        for exchange in &topology.exchanges {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let kind = match exchange.kind {
                "topic" => ExchangeKind::Topic,
                _ => ExchangeKind::Direct,
            };
            channel.exchange_declare(exchange.name.into(), kind, options, FieldTable::default()).await?;
        }
        for queue in &topology.queues {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            let arguments = table(&queue.all_arguments())?;
            channel.queue_declare(queue.name.as_str().into(), options, arguments).await?;
            for (source, key) in &queue.bindings {
                let (name, options) = (queue.name.as_str().into(), QueueBindOptions::default());
                let table = FieldTable::default();
                channel.queue_bind(name, (*source).into(), key.as_str().into(), options, table).await?;
            }
        }
        Ok(())
    }

    /// Looks whether every exchange and queue is there, and changes nothing. The first one that is
    /// missing is the error, see [`AmqpError::is_not_found`].
    pub async fn check(&self, topology: &Topology) -> Result<(), AmqpError> {
        let channel = self.connection.create_channel().await?;
        for exchange in &topology.exchanges {
            let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
            let (name, kind) = (exchange.name.into(), ExchangeKind::Direct);
            channel.exchange_declare(name, kind, options, FieldTable::default()).await?;
        }
        for queue in &topology.queues {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            channel.queue_declare(queue.name.as_str().into(), options, FieldTable::default()).await?;
        }
        Ok(channel.close(200, "bye".into()).await?)
    }

    /// Closes the connection in order.
    pub async fn close(&self) {
        let bye = timeout(CLOSE, self.connection.close(200, "bye".into()));
        // The connection is going away in any case; a broker that is gone has closed it already.
        tokio::select! {
            _ = bye => {}
            () = self.broken_down() => {}
        }
    }
}

/// Where a server is that speaks AMQP at once; under TLS the first word is another's.
fn plain_server(url: &str) -> Option<(String, u16)> {
    let uri: AMQPUri = url.parse().ok()?;
    (uri.scheme == AMQPScheme::AMQP).then_some((uri.authority.host, uri.authority.port))
}

/// The library waits for ever: heartbeats begin only after the handshake.
async fn in_time<T>(opening: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, AmqpError> {
    Ok(timeout(OPEN, opening).await.map_err(|_| AmqpError::Silent(OPEN))??)
}

fn table(arguments: &serde_json::Value) -> Result<FieldTable, AmqpError> {
    let mut table = FieldTable::default();
    for (key, value) in arguments.as_object().into_iter().flatten() {
        let value = match value {
            serde_json::Value::String(text) => AMQPValue::LongString(text.as_str().into()),
            serde_json::Value::Bool(flag) => AMQPValue::Boolean(*flag),
            serde_json::Value::Number(n) if n.is_i64() => AMQPValue::LongLongInt(n.as_i64().unwrap_or(0)),
            other => return Err(AmqpError::Topology(format!("argument {key} = {other}"))),
        };
        table.insert(key.as_str().into(), value);
    }
    Ok(table)
}

/// A message to hand over, with what an operator finds it by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outgoing<'a> {
    /// Exchange.
    pub exchange: &'a str,
    /// Routing key.
    pub key: &'a str,
    /// `message_id`: what an operator searches for.
    pub id: &'a str,
    /// `type`: what it is. It stays, however often the message is tried again, and where it is parked.
    pub kind: &'a str,
    /// `timestamp`: since when there is this message, in seconds; `None`: since now.
    pub sent: Option<u64>,
    /// The sale that it is about, where it is about one.
    pub sale: Option<&'a str>,
    /// JSON.
    pub body: &'a [u8],
    /// How often it was tried before.
    pub attempt: u32,
    /// Why it is tried again, or parked.
    pub reason: Option<&'a str>,
    /// The queue that it was parked from.
    pub queue: Option<&'a str>,
}

impl<'a> Outgoing<'a> {
    /// A message that was read, on its way somewhere else: all that it was told apart by stays.
    pub fn again(delivery: &'a Delivery, exchange: &'a str, key: &'a str) -> Self {
        Self {
            exchange,
            key,
            id: &delivery.id,
            kind: &delivery.kind,
            sent: delivery.sent,
            sale: delivery.sale.as_deref(),
            body: &delivery.body,
            attempt: delivery.attempt,
            reason: None,
            queue: None,
        }
    }

    fn properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        let mut text = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.into()));
            }
        };
        text(SALE, self.sale);
        text(REASON, self.reason.map(shortened));
        text(QUEUE, self.queue);
        if self.attempt > 0 {
            headers.insert(ATTEMPT.into(), AMQPValue::LongUInt(self.attempt));
        }
        let now = || u64::try_from(Millis::now().seconds()).unwrap_or(0);
        BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_app_id("sluice".into())
            .with_message_id(self.id.into())
            .with_type(self.kind.into())
            .with_timestamp(self.sent.unwrap_or_else(now))
            .with_headers(headers)
    }
}

/// Of a reason, what fits into a header: a frame has 128 KiB for all of them.
fn shortened(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_MAX)]
}

/// A channel with publisher confirms.
#[derive(Debug, Clone)]
pub struct Publisher {
    channel: Channel,
}

impl Publisher {
    /// Sends a message, persistent and mandatory; the answer is the future of its confirm. The
    /// caller bounds how many of those it has open.
    pub async fn publish(
        &self,
        message: Outgoing<'_>,
    ) -> Result<impl Future<Output = Result<(), AmqpError>> + Send + use<>, AmqpError> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let (exchange, key, properties) = (message.exchange.into(), message.key.into(), message.properties());
        let confirm = self.channel.basic_publish(exchange, key, options, message.body, properties).await?;
        Ok(async move {
            match confirm.await? {
                Confirmation::Ack(None) => Ok(()),
                // An unroutable message is acknowledged all the same: it is gone, and not a success.
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                    Err(AmqpError::Returned(returned.reply_text.to_string()))
                }
                Confirmation::Nack(None) | Confirmation::NotRequested => Err(AmqpError::Refused),
            }
        })
    }
}

/// The messages of one queue, until the connection breaks.
#[derive(Debug)]
pub struct Consumer {
    channel: Channel,
    consumer: lapin::Consumer,
    deaths: watch::Receiver<u64>,
}

impl Consumer {
    /// The next message; `None` when the queue or the connection is gone.
    pub async fn next(&mut self) -> Option<Result<Delivery, AmqpError>> {
        let next = self.consumer.next().await?;
        Some(next.map(Delivery::of).map_err(AmqpError::from))
    }

    /// Acknowledges every message up to and including this one.
    pub async fn ack_through(&self, tag: u64) -> Result<(), AmqpError> {
        let options = BasicAckOptions { multiple: true };
        Ok(self.channel.basic_ack(tag, options).await?)
    }

    /// Acknowledges one message.
    pub async fn ack(&self, tag: u64) -> Result<(), AmqpError> {
        Ok(self.channel.basic_ack(tag, BasicAckOptions { multiple: false }).await?)
    }

    /// Gives one message back: to its queue, or to its dead-letter exchange.
    pub async fn reject(&self, tag: u64, requeue: bool) -> Result<(), AmqpError> {
        Ok(self.channel.basic_reject(tag, BasicRejectOptions { requeue }).await?)
    }

    /// Gives up the channel; what was not acknowledged goes back to the queue.
    pub async fn close(mut self) {
        let bye = timeout(CLOSE, self.channel.close(200, "bye".into()));
        // The broker requeues by itself when the channel is gone already.
        tokio::select! {
            _ = bye => {}
            _ = self.deaths.changed() => {}
        }
    }
}

/// One message.
#[derive(Debug, Default)]
pub struct Delivery {
    /// For [`Consumer::ack`] and [`Consumer::reject`].
    pub tag: u64,
    /// JSON.
    pub body: Vec<u8>,
    /// How often it was tried before, by our own header.
    pub attempt: u32,
    /// Whether the broker delivered it before.
    pub redelivered: bool,
    /// `message_id`.
    pub id: String,
    /// `type`.
    pub kind: String,
    /// `timestamp`, in seconds.
    pub sent: Option<u64>,
    /// The sale that it is about, by our own header.
    pub sale: Option<String>,
    /// Why it was tried again or parked, by our own header.
    pub reason: Option<String>,
    /// The queue that it was parked from, by our own header.
    pub queue: Option<String>,
}

impl Delivery {
    fn of(delivery: lapin::message::Delivery) -> Self {
        let properties = &delivery.properties;
        let header = |name: &str| properties.headers().as_ref()?.inner().get(name);
        let text = |name: &str| match header(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            _ => None,
        };
        let attempt = match header(ATTEMPT) {
            Some(AMQPValue::LongUInt(n)) => *n,
            _ => 0,
        };
        let word = |word: &Option<ShortString>| word.as_ref().map(ToString::to_string).unwrap_or_default();
        Self {
            tag: delivery.delivery_tag,
            attempt,
            redelivered: delivery.redelivered,
            id: word(properties.message_id()),
            kind: word(properties.kind()),
            sent: *properties.timestamp(),
            sale: text(SALE),
            reason: text(REASON),
            queue: text(QUEUE),
            body: delivery.data,
        }
    }
}
