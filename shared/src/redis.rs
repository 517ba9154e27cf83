//! Connections to Redis. A command is sent once: whatever is not answered is an unknown outcome, and
//! nothing here loads or reloads a script behind the caller's back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Client, ErrorKind, IntoConnectionInfo, RedisError, ServerErrorKind};
pub use redis::{Cmd, FromRedisValue, Value};

/// How long one connection is used. Behind an address that has come to mean another server (a replica
/// was promoted) an old connection may still reach the former one: after this time nobody does.
const CONNECTION_AGE: Duration = Duration::from_secs(2);
/// The same for a subscription; whoever subscribes looks for what he missed besides.
const SUBSCRIPTION_AGE: Duration = Duration::from_secs(30);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Commands that may wait in one connection; further callers wait for room.
const PIPELINE: usize = 1024;

/// Why a command has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The script is not there: Redis restarted or was promoted since it was loaded.
    #[error("{doing}: redis does not know the script")]
    NoScript {
        /// What was being done.
        doing: &'static str,
    },
    /// Redis refused the command and did nothing (`READONLY`, `MISCONF`, `OOM`, `NOPERM`, …).
    #[error("{doing}: redis refused: {why}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// Redis' words.
        why: String,
    },
    /// No answer in time, or a connection that broke: it may or may not have been done.
    #[error("{doing}: no answer from redis: {why}")]
    Unknown {
        /// What was being done.
        doing: &'static str,
        /// The client's words.
        why: String,
    },
    /// An answer that no script of ours gives.
    #[error("{doing}: unreadable answer: {why}")]
    Unreadable {
        /// What was being done.
        doing: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Fault {
    /// Reads the client library's error.
    fn of(doing: &'static str, error: &RedisError) -> Self {
        let why = error.to_string();
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => Self::NoScript { doing },
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Refused { doing, why },
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => Self::Refused { doing, why },
            _ => Self::Unknown { doing, why },
        }
    }

    /// Whether it may be of the one key that was asked for, such as one of another type: others can be read.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unreadable { .. })
    }

    /// Whether the command may have been carried out all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Unreadable { .. })
    }
}

/// One connection, shared by cloning; it connects by itself and again after a break, with back-off,
/// and never sends a command twice. Every two seconds a new one takes its place, so that it leads where
/// its address leads; what is under way ends on the old one.
#[derive(Clone)]
pub struct Redis {
    manager: Arc<ArcSwap<ConnectionManager>>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis")
    }
}

fn client(url: &str) -> Result<Client, Fault> {
    let doing = "reading redis.url";
    let info = url.into_connection_info().map_err(|error| Fault::of(doing, &error))?;
    let tcp = TcpSettings::default().set_nodelay(true);
    Client::open(info.set_tcp_settings(tcp)).map_err(|error| Fault::of(doing, &error))
}

impl Redis {
    /// A connection that is made with the first command. Must be called inside the runtime that will
    /// use it: the library's driver lives there.
    pub fn lazy(url: &str, deadline: Duration) -> Result<Self, Fault> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(deadline))
            .set_connection_timeout(Some(CONNECT))
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(200))
            .set_number_of_retries(2)
            .set_pipeline_buffer_size(PIPELINE);
        let client = client(url)?;
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config.clone())
            .map_err(|error| Fault::of("preparing a connection", &error))?;
        let manager = Arc::new(ArcSwap::from_pointee(manager));
        tokio::spawn(follow_address(Arc::downgrade(&manager), client, config));
        Ok(Self { manager })
    }

    /// Whether the text is a URL that the client understands.
    pub fn check_url(url: &str) -> Result<(), Fault> {
        client(url).map(|_| ())
    }

    /// Sends one command and reads its answer as `T`.
    pub async fn run<T: FromRedisValue>(&self, doing: &'static str, command: &Cmd) -> Result<T, Fault> {
        let mut manager = ConnectionManager::clone(&self.manager.load());
        let value: Value =
            command.query_async(&mut manager).await.map_err(|error| Fault::of(doing, &error))?;
        T::from_redis_value(value).map_err(|error| Fault::Unreadable { doing, why: error.to_string() })
    }

    /// Sends commands in one go, one right behind another; their answers are the members of `T`.
    pub async fn run_all<T: FromRedisValue>(
        &self,
        doing: &'static str,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<T, Fault> {
        self.send(doing, redis::pipe(), commands).await
    }

    /// The same as one transaction: nobody sees one of the commands done and another not.
    pub async fn run_at_once<T: FromRedisValue>(
        &self,
        doing: &'static str,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<T, Fault> {
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        self.send(doing, pipeline, commands).await
    }

    async fn send<T: FromRedisValue>(
        &self,
        doing: &'static str,
        mut pipeline: redis::Pipeline,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<T, Fault> {
        for command in commands {
            pipeline.add_command(command);
        }
        let mut manager = ConnectionManager::clone(&self.manager.load());
        let value: Value =
            pipeline.query_async(&mut manager).await.map_err(|error| Fault::of(doing, &error))?;
        T::from_redis_value(value).map_err(|error| Fault::Unreadable { doing, why: error.to_string() })
    }

    /// Sends commands in one go; each has an answer or a fault of its own.
    pub async fn run_each<T: FromRedisValue>(
        &self,
        doing: &'static str,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<Vec<Result<T, Fault>>, Fault> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for command in commands {
            pipeline.add_command(command);
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let mut manager = ConnectionManager::clone(&self.manager.load());
        let answers: Vec<Result<Value, RedisError>> =
            pipeline.query_async(&mut manager).await.map_err(|error| Fault::of(doing, &error))?;
        let read = |answer: Result<Value, RedisError>| {
            let value = answer.map_err(|error| Fault::of(doing, &error))?;
            T::from_redis_value(value).map_err(|error| Fault::Unreadable { doing, why: error.to_string() })
        };
        Ok(answers.into_iter().map(read).collect())
    }

    /// Redis' clock.
    pub async fn time(&self) -> Result<crate::clock::Millis, Fault> {
        let (seconds, micros): (i64, i64) = self.run("reading the time", &redis::cmd("TIME")).await?;
        Ok(crate::clock::Millis(seconds * 1000 + micros / 1000))
    }

    /// Follows channels on a connection of its own until it breaks: `(channel, payload)`.
    /// The caller subscribes anew, and looks at what it may have missed.
    pub async fn subscribe(
        url: &str,
        channels: &[String],
    ) -> Result<impl Stream<Item = (String, String)> + Send + use<>, Fault> {
        let doing = "subscribing";
        let client = client(url)?;
        let connect = tokio::time::timeout(Duration::from_secs(2), client.get_async_pubsub());
        let mut pubsub = connect
            .await
            .map_err(|_| Fault::Unknown { doing, why: "no connection in 2 s".to_owned() })?
            .map_err(|error| Fault::of(doing, &error))?;
        pubsub.subscribe(channels).await.map_err(|error| Fault::of(doing, &error))?;
        let messages = pubsub.into_on_message().take_until(Box::pin(tokio::time::sleep(SUBSCRIPTION_AGE)));
        Ok(messages.map(|message| {
            let payload: Vec<u8> = message.get_payload_bytes().to_vec();
            let payload = String::from_utf8_lossy(&payload).into_owned();
            (message.get_channel_name().to_owned(), payload)
        }))
    }
}

/// Puts a new connection in the place of the old one, again and again, until nobody uses it. Where none
/// can be had, the old one stays: it may be better, and mends itself.
async fn follow_address(
    place: Weak<ArcSwap<ConnectionManager>>,
    client: Client,
    config: ConnectionManagerConfig,
) {
    loop {
        tokio::time::sleep(CONNECTION_AGE).await;
        if place.strong_count() == 0 {
            return;
        }
        let fresh = ConnectionManager::new_with_config(client.clone(), config.clone()).await;
        if let (Ok(fresh), Some(place)) = (fresh, place.upgrade()) {
            place.store(Arc::new(fresh));
        }
    }
}

/// A command by name, for `Redis::run`.
pub fn cmd(name: &str) -> Cmd {
    redis::cmd(name)
}
