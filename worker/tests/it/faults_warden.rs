//! A warden dies at each step of a re-opening, while another one waits.

use std::os::unix::process::ExitStatusExt;

use sluice_shared::failpoint;
use sluice_shared::redis::cmd;
use sluice_shared::testing::eventually;

use crate::harness::process::Worker;
use crate::warden_world::{PATIENCE, Place, Process};

/// Each round a new leader re-opens the sale and is killed on the way; the warden that waits finishes.
async fn killed_on_the_way(points: &[&str], written: bool, lose: impl AsyncFn(&mut Place)) {
    let (mut place, mut leader, _orders, edge) = Place::open(1_000).await;
    let mut orders = Vec::new();
    for (n, point) in points.iter().enumerate() {
        for buyer in 0..3 {
            let who = format!("u{n}-{buyer}");
            // What is nowhere but in Redis may be lost with it: no edge holds anything here.
            let order = if written {
                Ok(place.bought(&edge.instance, &who).await)
            } else {
                place.ask(&edge.instance, &who).await
            };
            orders.push(order.unwrap().order);
        }
        let before = place.epoch().await;
        let mut doomed = doomed(&place, leader, point).await;
        leader = place.warden("");
        lose(&mut place).await;
        assert_eq!(doomed.end().await.signal(), Some(9), "{point}");
        let sells = || async {
            place.view().await.is_some_and(|view| view.epochs[0] > before)
                && place.ask(&edge.instance, &format!("after-{n}")).await.map(|order| order.order).is_ok()
        };
        eventually(&format!("it sells again after {point}"), PATIENCE, sells).await;
        assert!(place.epoch().await > before, "{point}");
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

/// A leading warden that dies at this place, as a process of its own, in the place of another.
async fn doomed(place: &Place, old: Process, point: &str) -> Worker {
    let leader = || async {
        place.redis.run::<Option<String>>("test", cmd("GET").arg("sluice:warden")).await.unwrap()
    };
    let before = leader().await;
    let plan = [(failpoint::VARIABLE, format!("{point}=kill")), ("SLUICE__NAME", "doomed".to_owned())];
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
