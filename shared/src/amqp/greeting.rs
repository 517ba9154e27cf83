//! The client library (4.12.3) leaves a thread and a socket behind for each connection that is given up in
//! its handshake: it goes on waiting for the server's first word. A server that takes connections and says
//! nothing, because it is stopped or because only a balancer before it lives, would cost more of them with
//! each attempt. So after one such attempt the server is listened to first, on a socket of our own.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{AmqpError, OPEN};

/// The protocol header, AMQP 0-9-1 §4.2.2: whoever understands it answers.
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// Whether a server has said nothing to the last attempt of this process.
static SILENT: AtomicBool = AtomicBool::new(false);

/// An attempt was given up.
pub(super) fn was_silent() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Fails when the server still says nothing. Whatever else is wrong with it, the library finds out.
pub(super) async fn wait(server: Option<(String, u16)>) -> Result<(), AmqpError> {
    let Some((host, port)) = server.filter(|_| SILENT.load(Ordering::Relaxed)) else { return Ok(()) };
    let greeted = async {
        let mut stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.write_all(HEADER).await?;
        stream.read_u8().await
    };
    // An error is an answer as well.
    drop(timeout(OPEN, greeted).await.map_err(|_| AmqpError::Silent(OPEN))?);
    SILENT.store(false, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Link;
    use super::*;

    /// Threads of the library in this process.
    fn threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
        names.filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("lapin-io-loop"))).count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_says_nothing_costs_one_thread_however_often_it_is_tried() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("amqp://a:b@{}/%2f", listener.local_addr().unwrap());
        let accepted = tokio::spawn(async move {
            let mut streams = Vec::new();
            while streams.len() < 3 {
                streams.push(listener.accept().await.unwrap());
            }
            streams
        });
        for _ in 0..3 {
            assert!(matches!(Link::connect(&url, "test").await, Err(AmqpError::Silent(_))));
            assert_eq!(threads(), 1);
        }
        assert_eq!(accepted.await.unwrap().len(), 3);
        // It speaks again: the library is asked, and says what is wrong.
        was_silent();
        let refused = Link::connect("amqp://a:b@127.0.0.1:1/%2f", "test").await;
        assert!(matches!(refused, Err(AmqpError::Broken(_))));
    }
}
