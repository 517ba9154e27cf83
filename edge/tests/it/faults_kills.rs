//! An edge dies, or stands still, at each place that a purchase passes.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;

use crate::engine_harness::{Offer, World};
use crate::gate::Gate;
use crate::harness::{directory, eventually};

/// Messages that came so far: whatever comes of an order says the same of it.
#[derive(Default)]
struct Seen(HashMap<OrderId, (u64, u64)>);

impl Seen {
    /// Reads messages until one is of this order.
    async fn until(&mut self, world: &World, order: OrderId) {
        while !self.0.contains_key(&order) {
            for message in world.vhost.orders(1).await {
                let place = (message.epoch, message.seq);
                assert_eq!(*self.0.entry(message.order).or_insert(place), place);
            }
        }
    }
}

fn armed(plan: &str) -> [(&'static str, String); 1] {
    [(sluice_shared::failpoint::VARIABLE, plan.to_owned())]
}

/// Kills an edge at each of these places; its heir finds what was accepted, and the buyer his order.
async fn killed_at(points: [&str; 4]) {
    let world = World::start().await;
    let segment: Segment = world.sell("sale", Offer::default()).await;
    let (state, mut seen) = (directory(), Seen::default());
    for (n, point) in (1..).zip(points) {
        let doomed = format!("doomed-{n}");
        let mut doomed =
            Gate::start(&world, &state, &segment, &doomed, &armed(&format!("{point}=kill"))).await;
        let (token, order) = doomed.token("sale", point);
        let told = doomed.buy("sale", point, &token);
        assert_eq!(doomed.ended().signal(), Some(9), "{point}");
        assert!(told.is_none_or(|answer| answer.status == 202), "{point}");
        let heir = Gate::start(&world, &state, &segment, &format!("heir-{n}"), &[]).await;
        let taken = point != "F6.before-script";
        if taken {
            // Without the buyer's help.
            seen.until(&world, order).await;
        }
        let again = heir.buy("sale", point, &token).unwrap();
        assert_eq!(again.status, 202, "{point}: {again:?}");
        assert_eq!(again.json()["order_id"], order.to_string(), "{point}");
        assert_eq!(again.field("idempotent-replayed").is_some(), taken, "{point}");
        seen.until(&world, order).await;
        world.journal_empties(&segment).await;
        assert_eq!(world.left(&segment).await, 1000 - n, "{point}");
    }
    assert_eq!(seen.0.len(), points.len());
    std::fs::remove_dir_all(state).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_f7_an_edge_killed_before_it_has_published_leaves_a_whole_order_or_none() {
    killed_at(["F6.before-script", "F7.after-script", "F7.before-answer", "F7.before-publish"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_f9_an_edge_killed_after_it_has_published_leaves_one_order() {
    killed_at(["F8.before-confirm", "F9.after-confirm", "F9.before-erase", "F9.after-erase"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_an_edge_that_stands_still_at_every_place_tells_the_truth_when_it_goes_on() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let (state, mut seen) = (directory(), Seen::default());
    let places = sluice_shared::failpoint::POINTS.into_iter().take(8);
    let plan: Vec<String> = places.map(|point| format!("{point}=stop")).collect();
    let gate = Arc::new(Gate::start(&world, &state, &segment, "slow", &armed(&plan.join(","))).await);
    let (token, order) = gate.token("sale", "alice");
    let buying = {
        let (gate, token) = (gate.clone(), token.clone());
        tokio::task::spawn_blocking(move || gate.buy("sale", "alice", &token))
    };
    // Meanwhile another edge finds the journal's entry.
    let other = world.edge("other", &segment, 1).await;
    let mut stops = 0;
    let end = Instant::now() + Duration::from_secs(30);
    while !buying.is_finished() || world.journal(&segment).await > 0 || gate.is_stopped() {
        assert!(Instant::now() < end, "stopped {stops} times");
        if gate.is_stopped() {
            stops += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
            gate.resume();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Two threads that come to a place at the same moment stop the process once.
    assert!(stops >= 3, "{stops}");
    let answer = buying.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.field("idempotent-replayed")), (202, None));
    assert_eq!(answer.json()["order_id"], order.to_string());
    seen.until(&world, order).await;
    world.journal_empties(&segment).await;
    assert_eq!(world.left(&segment).await, 999);
    other.stop().await;
    std::fs::remove_dir_all(state).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_an_edge_that_stood_still_through_a_reopening_sells_nothing_of_the_old_epoch() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let state = directory();
    let gate = Arc::new(Gate::start(&world, &state, &segment, "slow", &armed("F6.before-script=stop")).await);
    let (token, order) = gate.token("sale", "alice");
    let buying = {
        let (gate, token) = (gate.clone(), token.clone());
        tokio::task::spawn_blocking(move || gate.buy("sale", "alice", &token))
    };
    eventually("it stands still", || gate.is_stopped());
    world.raise(&segment, 1).await;
    world.list(&World::view("sale", Offer::default(), 2)).await;
    gate.resume();
    let answer = buying.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (503, "frozen"));
    assert_eq!(world.left(&segment).await, 1000);
    world.register("slow", &segment, 2).await;
    eventually("it sells under the next epoch", || {
        let answer = gate.buy("sale", "alice", &token).unwrap();
        answer.status == 202 && answer.json()["order_id"] == order.to_string()
    });
    assert_eq!(world.left(&segment).await, 999);
    std::fs::remove_dir_all(state).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_whose_engine_breaks_down_ends_and_its_order_goes_its_way() {
    let world = World::start().await;
    let segment = world.sell("sale", Offer::default()).await;
    let (state, mut seen) = (directory(), Seen::default());
    let plan = armed("F7.before-publish=panic");
    let mut broken = Gate::start(&world, &state, &segment, "broken", &plan).await;
    let (token, order) = broken.token("sale", "alice");
    let told = broken.buy("sale", "alice", &token);
    assert!(told.is_none_or(|answer| answer.status == 202));
    assert_eq!(broken.ended().code(), Some(70));
    let heir = world.edge("heir", &segment, 1).await;
    seen.until(&world, order).await;
    world.journal_empties(&segment).await;
    assert_eq!(world.left(&segment).await, 999);
    heir.stop().await;
    std::fs::remove_dir_all(state).unwrap();
}
