//! A broker that lost what was declared in it, and the messages with that.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use sluice_shared::clock::Millis;
use sluice_shared::record::{OrderState, Record};
use sluice_shared::topology::{SAGA, Topology};
use sluice_testkit::eventually;
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::Flow;
use sluice_worker::store::payments::{NoticeStatus, PaymentNotice};

use crate::harness::broker::SHARDS;
use crate::warden_world::{PATIENCE, Place, user};

/// Nobody looks at the order map of its own accord.
const NEVER: &str = "[reconcile]\nreconcile_ms = 600000\n";

async fn as_described(place: &Place) -> bool {
    let link = place.broker.link().await;
    let checked = link.check(&Topology::new(SHARDS)).await;
    link.close().await;
    checked.is_ok()
}

#[tokio::test]
async fn a_confirmed_order_survives_a_broker_that_lost_everything() {
    let (place, warden, orders, edge) = Place::open(10).await;
    warden.stop().await;
    orders.stop().await;
    let _warden = place.warden(NEVER);
    place.until_sells(&edge).await;
    let order = place.ask(&edge.instance, "b").await.unwrap();
    place.broker.publish_orders(std::slice::from_ref(&order)).await;
    place.run(&["XDEL", &place.segment.journal(), &format!("{}-{}", order.epoch, order.seq)]).await;
    place.broker.wipe();
    assert!(!as_described(&place).await);
    let _orders = place.orders();
    eventually("the order is in the books", PATIENCE, || place.written(&order.order)).await;
    assert!(as_described(&place).await);
}

#[tokio::test]
async fn what_the_books_told_through_a_broker_that_lost_everything_is_told_again() {
    let (place, warden, _orders, edge) = Place::open(10).await;
    warden.stop().await;
    let _warden = place.warden(NEVER);
    place.until_sells(&edge).await;
    let paid = place.bought(&edge.instance, "ann").await.order;
    let cancelled = place.bought(&edge.instance, "bob").await.order;
    let left = place.left().await;
    let notice = PaymentNotice {
        payment_id: "p".to_owned(),
        order: paid,
        amount: 1500,
        currency: "EUR".to_owned(),
        status: NoticeStatus::Succeeded,
    };
    place.db.store.notice(&notice).await.unwrap();
    place.db.store.cancel(&cancelled, &user("bob")).await.unwrap();
    let outbox = place.outbox();
    eventually("all is told", PATIENCE, || async {
        place.db.count("SELECT count(*) FROM outbox WHERE published_at IS NULL").await == 0
    })
    .await;
    outbox.stop().await;
    place.broker.wipe();
    eventually("it is declared again", PATIENCE, || as_described(&place)).await;
    let (_outbox, _saga) = (place.outbox(), place.saga());
    eventually("the buyer is told that it is paid", PATIENCE, || async {
        place.record(&paid).await.is_some_and(|record| record.state == OrderState::Paid)
    })
    .await;
    eventually("the unit is back", PATIENCE, || async { place.left().await == left + 1 }).await;
    eventually("both sagas are at their end", PATIENCE, || async {
        place.db.count("SELECT count(*) FROM saga WHERE state IN ('committed', 'undone')").await == 2
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_somebody_deleted_is_declared_again() {
    let (place, warden, _orders, _edge) = Place::open(10).await;
    for (times, queue) in [(1, "sluice.orders.write.01"), (2, SAGA)] {
        place.broker.delete_queue(queue);
        let counted = format!("sluice_warden_topology_repairs_total {times}");
        eventually("it is declared again", PATIENCE, || async { warden.metrics().contains(&counted) }).await;
        eventually("it is there", PATIENCE, || as_described(&place)).await;
    }
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_waited_for_and_no_segments_trouble() {
    let mut place = Place::new(10).await;
    let (login, server) = place.broker.url.split_once('@').unwrap();
    let (server, host) = server.split_once('/').unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let proxy = Proxy::start(any, server.parse().unwrap(), Protocol::Amqp, 1).unwrap();
    place.broker.url = format!("{login}@{}/{host}", proxy.address());
    let (place, warden, orders, edge) = place.opened().await;
    warden.stop().await;
    orders.stop().await;
    let _orders = place.orders();
    let warden = place.warden("[reconcile]\nreconcile_ms = 300\n");
    place.until_sells(&edge).await;
    // Orders that nobody publishes but a warden, as soon as they are old enough.
    let forgotten = async |who: &str| {
        let order = place.ask(&edge.instance, who).await.unwrap();
        place.run(&["XTRIM", &place.segment.journal(), "MAXLEN", "0"]).await;
        let record = place.record(&order.order).await.unwrap();
        let old = Record { accepted: Millis(record.accepted.0 - 10_000), ..record };
        place.run(&["HSET", &place.segment.orders(), &order.order.field(), &old.to_string()]).await;
        order.order
    };
    let before = forgotten("ann").await;
    eventually("its connection is open", PATIENCE, || place.written(&before)).await;
    proxy.flow_both(Flow::Hold);
    let order = forgotten("bob").await;
    let silence = Instant::now();
    while silence.elapsed() < Duration::from_secs(12) {
        assert!(warden.metrics().contains("sluice_warden_unread_segments 0"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!place.written(&order).await);
    proxy.heal();
    eventually("its row", PATIENCE, || place.written(&order)).await;
    assert_eq!(place.db.count("SELECT count(*) FROM fenced_messages").await, 0);
}
