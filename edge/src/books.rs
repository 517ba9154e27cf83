//! Whether the workers can ask the books: looked at now and then for `/-/ready`, never for a request.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Api;

/// How often they are asked.
const EVERY: Duration = Duration::from_secs(2);
/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

const UNKNOWN: u8 = 0;
const GOOD: u8 = 1;
const NO_POSTGRESQL: u8 = 2;
const NOBODY: u8 = 3;

/// What was seen last.
#[derive(Debug)]
pub struct Books {
    api: Api,
    seen: AtomicU8,
}

impl Books {
    /// Those behind this back office.
    pub fn new(api: Api) -> Self {
        Self { api, seen: AtomicU8::new(UNKNOWN) }
    }

    /// What is not well with them, for operators.
    pub fn reason(&self) -> Option<&'static str> {
        match self.seen.load(Ordering::Relaxed) {
            NO_POSTGRESQL => Some("postgresql is away: orders are accepted and written later"),
            NOBODY => Some("the back office does not answer: orders are accepted and written later"),
            _ => None,
        }
    }

    async fn look(&self) -> u8 {
        match tokio::time::timeout(PATIENCE, self.ask()).await {
            Ok(Ok(status)) if status == *b"200" => GOOD,
            Ok(Ok(status)) if status == *b"503" => NO_POSTGRESQL,
            // Another status comes from something that is no back office of ours.
            Ok(Ok(_) | Err(_)) | Err(_) => NOBODY,
        }
    }

    /// The status that the back office answers.
    async fn ask(&self) -> std::io::Result<[u8; 3]> {
        let mut stream = TcpStream::connect(&self.api.address).await?;
        let request = format!(
            "GET /internal/v1/ready HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
            self.api.address,
            self.api.secret.reveal(),
        );
        stream.write_all(request.as_bytes()).await?;
        let mut line = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut line).await?;
        let mut status = [0; 3];
        status.copy_from_slice(&line[9..]);
        Ok(status)
    }
}

#[async_trait]
impl BackgroundService for Books {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        loop {
            self.seen.store(self.look().await, Ordering::Relaxed);
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                // An error means that the sender was dropped: treat it as a stop.
                _ = shutdown.wait_for(|stopping| *stopping) => return,
            }
        }
    }
}
