//! A warden dies at each step of a re-opening, while another one waits.

use std::os::unix::process::ExitStatusExt;

use sluice_shared::failpoint;
use sluice_shared::ids::OrderId;
use sluice_shared::keys::REOPENING;
use sluice_shared::redis::cmd;
use sluice_testkit::eventually;

use crate::harness::process::Worker;
use crate::warden_world::{Edge, PATIENCE, Place, Process};

/// Each round a new leader re-opens the sale and is killed on the way; the warden that waits finishes.
async fn killed_on_the_way(points: &[&str], written: bool, lose: impl AsyncFn(&mut Place)) {
    let (mut place, mut leader, _orders, edge) = Place::open(1_000).await;
    let mut orders = Vec::new();
    for (n, point) in points.iter().enumerate() {
        for buyer in 0..3 {
            orders.push(bought(&place, &edge, &format!("u{n}-{buyer}"), written).await);
        }
        let before = place.epoch().await;
        let mut doomed = doomed(&place, leader, &format!("{point}=kill")).await;
        // A Redis that forgets who leads would let the one that waits begin: then it comes afterwards.
        let standby = (!written).then(|| place.warden(""));
        lose(&mut place).await;
        assert_eq!(doomed.end().await.signal(), Some(9), "{point}");
        leader = standby.unwrap_or_else(|| place.warden(""));
        let sells = || async {
            let asked = place.redis.run::<u64>("test", cmd("HLEN").arg(REOPENING)).await;
            let (epoch, view) = (place.epoch().await, place.view().await);
            asked == Ok(0)
                && epoch > before
                && view.is_some_and(|view| view.epochs == [epoch])
                && place.ask(&edge.instance, &format!("after-{n}")).await.is_ok()
        };
        eventually(&format!("it sells again after {point}"), PATIENCE, sells).await;
        for order in &orders {
            assert!(place.written(order).await && place.record(order).await.is_some(), "{point}: {order}");
        }
    }
    let balanced = || async {
        let report = sluice_worker::audit::judge(&place.db.store, &place.redis, None).await.unwrap();
        report.balanced
    };
    eventually("the books balance", PATIENCE, balanced).await;
}

/// An order, as soon as the sale sells; in the books as well where what is nowhere but in Redis may be
/// lost with it, for no edge holds anything here.
async fn bought(place: &Place, edge: &Edge, who: &str, written: bool) -> OrderId {
    let bought = std::cell::RefCell::new(None);
    eventually("it sells", PATIENCE, || async {
        let asked = place.ask(&edge.instance, who).await;
        asked.map(|order| bought.replace(Some(order))).is_ok()
    })
    .await;
    let order = bought.take().unwrap();
    if written {
        // A warden that looks for orders without a row may be first.
        place.db.store.write_orders(std::slice::from_ref(&order)).await.unwrap();
        eventually("it has a row", PATIENCE, || place.written(&order.order)).await;
    }
    order.order
}

/// A leading warden with this failpoint, as a process of its own, in the place of another.
async fn doomed(place: &Place, old: Process, plan: &str) -> Worker {
    let leader = || async {
        place.redis.run::<Option<String>>("test", cmd("GET").arg("sluice:warden")).await.unwrap()
    };
    let before = leader().await;
    let plan = [(failpoint::VARIABLE, plan.to_owned()), ("SLUICE__NAME", "doomed".to_owned())];
    let doomed = Worker::start(&place.urls(), &["reconcile"], &plan);
    old.stop().await;
    eventually("another one leads", PATIENCE, || async {
        let now = leader().await;
        now.is_some() && now != before
    })
    .await;
    doomed
}

#[tokio::test]
async fn f85_a_warden_killed_at_any_step_of_a_reopening_is_succeeded() {
    let steps = failpoint::POINTS.into_iter().filter(|point| point.starts_with("F85."));
    killed_on_the_way(&steps.collect::<Vec<_>>(), false, async |place| place.server.crash_and_restart())
        .await;
}

#[tokio::test]
async fn f85_a_warden_killed_while_it_restores_is_succeeded() {
    let steps = ["F85.raise", "F85.books-raised", "F85.redis-raised", "F85.scripts-loaded", "F85.done"];
    killed_on_the_way(&steps, true, async |place| place.run(&["FLUSHALL"]).await).await;
}

#[tokio::test]
async fn f85_a_reopening_that_breaks_down_is_begun_again_by_whoever_leads_next() {
    let (mut place, leader, _orders, edge) = Place::open(10).await;
    let order = bought(&place, &edge, "bob", false).await;
    let before = place.epoch().await;
    // Its process lives on: nobody else is there to lead.
    let _broken = doomed(&place, leader, "F85.drain=panic").await;
    place.server.crash_and_restart();
    let sells = async || place.epoch().await > before && place.ask(&edge.instance, "eve").await.is_ok();
    eventually("it sells again", PATIENCE, sells).await;
    eventually("the order is in the books", PATIENCE, || place.written(&order)).await;
}
