//! One warden leads, and a sale does not notice when it is another.

use std::time::{Duration, Instant};

use sluice_shared::redis::cmd;
use sluice_testkit::eventually;

use crate::warden_world::{PATIENCE, Place, Process};

async fn leader(place: &Place) -> Option<String> {
    place.redis.run("test", cmd("GET").arg("sluice:warden")).await.unwrap()
}

fn leads(process: &Process) -> bool {
    process.metrics().contains("\nsluice_warden_leading 1\n")
}

#[tokio::test]
async fn a_standby_takes_over_and_the_sale_goes_on_selling() {
    let (place, first, _orders, edge) = Place::open(10_000).await;
    let second = place.warden("");
    let before = leader(&place).await.unwrap();
    assert!(leads(&first) && !leads(&second));
    let killed = Instant::now();
    first.kill().await;
    let mut over = None;
    let mut buyers = 0;
    // Longer than a lease: what is sold at the end is sold under the second one's.
    while killed.elapsed() < Duration::from_secs(8) {
        buyers += 1;
        place.ask(&edge.instance, &format!("u{buyers}")).await.unwrap();
        if over.is_none() && leads(&second) {
            over = Some(killed.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let over = over.expect("the second leads");
    assert!(over < Duration::from_millis(2_000 + 1_000), "{over:?}");
    assert_ne!(leader(&place).await.unwrap(), before);
    assert_eq!(place.epoch().await, 1);
}

#[tokio::test]
async fn leases_need_neither_postgresql_nor_rabbitmq() {
    let (place, first, orders, edge) = Place::open(10_000).await;
    first.kill().await;
    orders.kill().await;
    // Nobody listens there: this one can only renew what it finds.
    let nowhere = "[database]\nurl = \"postgres://nobody@127.0.0.1:1/none\"\nconnect_timeout_ms = 500\n";
    let second = place.warden(nowhere);
    let end = Instant::now() + Duration::from_secs(8);
    let mut buyers = 0;
    while Instant::now() < end {
        buyers += 1;
        place.ask(&edge.instance, &format!("u{buyers}")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(leads(&second));
    second.kill().await;
    eventually("without any warden the lease runs out", PATIENCE, || async {
        let asked = place.ask(&edge.instance, "last").await;
        asked.is_err_and(|why| why.contains("lease"))
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_ends_in_order_steps_down_at_once() {
    let (place, first, _orders, _edge) = Place::open(10).await;
    first.stop().await;
    assert_eq!(leader(&place).await, None);
}
