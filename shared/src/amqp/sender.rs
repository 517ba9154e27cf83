//! A connection of its own for what a reader has to publish now and then. RabbitMQ blocks connections that
//! publish while it is short of memory or disk, with everything on them, and acknowledgements must go on.

use std::time::Duration;

use tokio::time::timeout;

use super::{AmqpError, Link, Outgoing, Publisher};

/// A broker that has not answered within this time is away, or blocks.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects when there is something to send, and throws a connection away that has failed.
#[derive(Debug)]
pub struct Sender {
    url: String,
    name: String,
    open: Option<(Link, Publisher)>,
}

impl Sender {
    /// Not connected yet; the name is what operators read in the management UI.
    pub fn new(url: &str, name: String) -> Self {
        Self { url: url.to_owned(), name, open: None }
    }

    /// Publishes a message; `Ok` means that the broker confirmed it.
    pub async fn send(&mut self, message: Outgoing<'_>) -> Result<(), AmqpError> {
        let publisher = self.publisher().await?;
        let sent = timeout(PATIENCE, async { publisher.publish(message).await?.await }).await;
        let sent = sent.unwrap_or(Err(AmqpError::Silent(PATIENCE)));
        if matches!(sent, Err(AmqpError::Broken(_) | AmqpError::Silent(_))) {
            self.reset();
        }
        sent
    }

    /// A channel to publish on.
    pub async fn publisher(&mut self) -> Result<Publisher, AmqpError> {
        if let Some((link, publisher)) = &self.open
            && link.is_up()
        {
            return Ok(publisher.clone());
        }
        let link = Link::connect(&self.url, &self.name).await?;
        let publisher = link.publisher().await?;
        self.open = Some((link, publisher.clone()));
        Ok(publisher)
    }

    /// Whatever is wrong with the connection, the next message begins with a new one.
    pub fn reset(&mut self) {
        self.open = None;
    }
}
