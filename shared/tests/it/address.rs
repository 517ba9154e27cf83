//! A connection leads where its address leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use sluice_shared::redis::{Redis, cmd};
use sluice_testkit::{PrivateRedis, eventually};
use tokio::net::{TcpListener, TcpStream};

/// An address behind which one server can take another's place; connections that stand are left alone.
async fn relay(target: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let to = target.load(Ordering::Relaxed);
            tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", to)).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    port
}

async fn port(redis: &Redis) -> Option<u16> {
    let mut get = cmd("CONFIG");
    get.arg("GET").arg("port");
    let pair: Vec<String> = redis.run("test", &get).await.ok()?;
    pair.get(1)?.parse().ok()
}

#[tokio::test]
async fn a_connection_does_not_stay_with_a_server_that_its_address_has_left() {
    let (old, mut new) = (PrivateRedis::start(), PrivateRedis::start());
    let target = Arc::new(AtomicU16::new(old.port()));
    let url = format!("redis://127.0.0.1:{}", relay(target.clone()).await);
    let redis = Redis::lazy(&url, Duration::from_secs(2)).unwrap();
    let clone = redis.clone();
    assert_eq!(port(&redis).await, Some(old.port()));
    target.store(new.port(), Ordering::Relaxed);
    eventually("it leads to the new one", Duration::from_secs(10), || async {
        port(&redis).await == Some(new.port()) && port(&clone).await == Some(new.port())
    })
    .await;
    // Without a server the last connection is as good as any, and finds back when there is one.
    new.crash_and_restart();
    eventually("it answers again", Duration::from_secs(10), || async {
        port(&redis).await == Some(new.port())
    })
    .await;
}
