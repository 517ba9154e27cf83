//! A replica that had lost touch is promoted, and the old primary is still there.

use std::net::{Ipv4Addr, SocketAddrV4};

use sluice_shared::ids::OrderId;
use sluice_shared::lines::Lines;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::script::{Ask, Reserved, SegmentScripts};
use sluice_testkit::proxy::Proxy;
use sluice_testkit::proxy::frames::Protocol;
use sluice_testkit::proxy::rules::Flow;
use sluice_testkit::{PrivateRedis, eventually};

use crate::warden_world::{PATIENCE, Place, user};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

fn address(redis: &PrivateRedis) -> SocketAddrV4 {
    redis.url().trim_start_matches("redis://").parse().unwrap()
}

async fn replicate(redis: &Redis, from: &[&str; 2]) {
    let follow = cmd("REPLICAOF").arg(from).to_owned();
    redis.run::<String>("test", &follow).await.unwrap();
}

async fn orders_in(redis: &Redis, place: &Place) -> u64 {
    redis.run("test", cmd("HLEN").arg(place.segment.orders())).await.unwrap()
}

#[tokio::test]
async fn f31_f32_a_stale_replica_is_restored_and_the_old_primary_stops_selling() {
    let (replica, mut front) = (PrivateRedis::start(), None);
    let place = Place::new_through(1_000, |primary| {
        let proxy = Proxy::start(ANY, address(primary), Protocol::Redis, 1).unwrap();
        let url = format!("redis://{}", proxy.address());
        front = Some(proxy);
        url
    });
    let (place, _warden, _orders, edge) = place.await.opened().await;
    let front = front.unwrap();
    let link = Proxy::start(ANY, address(&place.server), Protocol::Plain, 2).unwrap();
    let (primary, second) = (place.server.connect(), replica.connect());
    replicate(&second, &["127.0.0.1", &link.address().port().to_string()]).await;
    let mut orders = Vec::new();
    for n in 0..5 {
        orders.push(place.bought(&edge.instance, &format!("early-{n}")).await);
    }
    let same = || async { orders_in(&second, &place).await == orders_in(&primary, &place).await };
    eventually("the replica has followed", PATIENCE, same).await;
    link.flow_both(Flow::Drop);
    link.refuse(true);
    for n in 0..5 {
        orders.push(place.bought(&edge.instance, &format!("late-{n}")).await);
    }
    // One more that only its edge and the broker have.
    let unwritten = place.ask(&edge.instance, "last").await.unwrap();
    place.broker.publish_orders(std::slice::from_ref(&unwritten)).await;
    orders.push(unwritten);
    let (have, had) = (orders_in(&second, &place).await, orders_in(&primary, &place).await);
    assert!(have < had, "the replica is stale: {have} of {had}");
    replicate(&second, &["NO", "ONE"]).await;
    front.aim(address(&replica));
    front.reset();
    eventually("the next epoch sells", PATIENCE, || async {
        place.view().await.is_some_and(|view| view.epochs[0] >= 2)
    })
    .await;
    for order in &orders {
        assert!(place.written(&order.order).await && place.record(&order.order).await.is_some());
    }
    place.until_sells(&edge).await;
    // Whoever still reaches the old one is refused, once its lease has ended.
    let scripts = SegmentScripts::new(place.segment.clone(), 1);
    eventually("the old primary sells no more", PATIENCE, || async {
        let lines = Lines::parse("phone=1").unwrap();
        let order = OrderId::mint(place.number, 0);
        let ask = Ask { uuid: order.uuid, user: user("split"), lines, expired: true };
        !matches!(scripts.reserve(&primary, &edge.instance, &[ask]).await, Ok(Reserved::Answers(_)))
    })
    .await;
    let report = sluice_worker::audit::judge(&place.db.store, &place.redis, None).await.unwrap();
    assert!(report.balanced, "{report:#?}");
}
