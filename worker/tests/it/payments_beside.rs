//! Payment notices beside buyers who ask for what does not exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice_shared::ids::OrderId;
use sluice_shared::sale::SaleStep;
use tokio::task::JoinSet;

use crate::api_world::{EDGE_SECRET, World, a_notice};

/// Look-ups a second, each of an id that nobody knows.
const LOOK_UPS: u64 = 2_000;
const NOTICES: usize = 60;

/// One notice each 50 ms; how long the slowest but one in a hundred took, and all were booked.
async fn notices(world: &World, order: &OrderId, name: &str) -> Duration {
    let mut took = Vec::new();
    for n in 0..NOTICES {
        let begun = Instant::now();
        let mut notice = a_notice(order, &format!("{name}-{n}"));
        notice["status"] = "failed".into();
        world.notice(&notice).await.expect(200);
        took.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(50).saturating_sub(begun.elapsed())).await;
    }
    took.sort_unstable();
    took[NOTICES * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notices_are_booked_beside_thousands_of_look_ups() {
    let world = Arc::new(World::start().await);
    world.sale_in("a", SaleStep::Open).await;
    let order = world.order("a", "alice").await;
    let alone = notices(&world, &order, "alone").await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut crowd = JoinSet::new();
    for _ in 0..32 {
        let (stop, asked, address) = (stop.clone(), asked.clone(), world.address);
        crowd.spawn(async move { ask(address, &stop, &asked).await });
    }
    let begun = Instant::now();
    let beside = notices(&world, &order, "beside").await;
    let rate = asked.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    while let Some(answers) = crowd.join_next().await {
        answers.unwrap();
    }
    println!("p99 of notices: {alone:?} alone, {beside:?} beside {rate:.0} look-ups a second");
    assert!(rate > 200.0, "only {rate} look-ups a second");
    // Generous: another test may have the machine.
    assert!(beside < alone * 10 + Duration::from_millis(250), "{alone:?} alone, {beside:?} beside");
}

/// Asks for orders that do not exist, at its part of the rate, on one connection.
async fn ask(address: std::net::SocketAddr, stop: &AtomicBool, asked: &AtomicU64) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (pause, mut answer) = (Duration::from_micros(32 * 1_000_000 / LOOK_UPS), vec![0; 4096]);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let order = OrderId::mint(1, 0);
        let head = format!(
            "GET /internal/v1/orders/{order} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {EDGE_SECRET}\r\n\
             x-sluice-user: mallory\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let read = stream.read(&mut answer).await.unwrap();
        let status = answer.get(9..12).unwrap_or_default();
        assert!(status == b"404" || status == b"503", "{}", String::from_utf8_lossy(&answer[..read]));
        asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(pause.saturating_sub(begun.elapsed())).await;
    }
}
