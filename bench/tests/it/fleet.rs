//! A fleet's members are killed, paused and cut off one by one, and what was sold stays sold.

use nix::sys::signal::Signal;
use sluice_bench::client::outcome::{ACCEPTED, UNAVAILABLE};
use sluice_bench::drill::wait_for;
use sluice_bench::fleet::{Kind, Store};
use sluice_testkit::proxy::rules::Flow;
use sluice_testkit::proxy::way::Way;

use crate::world::{RECOVERY, WARDEN, WORKER, World, token};

#[test]
fn what_was_sold_before_and_after_a_kill_of_each_member_is_in_the_books() {
    let world = World::small();
    let scene = world.sale(100, 100);
    for (buyer, member) in (0..).zip(["edge", "worker", "warden"]) {
        world.buy_at_last("edge", &scene, buyer * 2);
        let pid = world.fleet.pid(member).unwrap();
        world.fleet.kill(member).unwrap();
        assert!(world.fleet.pid(member).is_err());
        world.fleet.start(member).unwrap();
        world.fleet.wait(member).unwrap();
        assert_ne!(world.fleet.pid(member).unwrap(), pid);
        world.buy_at_last("edge", &scene, buyer * 2 + 1);
    }
    let audit = world.audit(&scene);
    assert_eq!(audit.code, 0, "{}", audit.text);
    assert_eq!(scene.admin.orders(&scene.sale).unwrap().len(), 6);
}

#[test]
fn an_edge_that_is_cut_off_refuses_while_another_sells() {
    let members = [("warden", WARDEN), ("worker", WORKER), ("edge-1", Kind::Edge), ("edge-2", Kind::Edge)];
    let world = World::of(&members);
    let scene = world.sale(100, 10);
    for (buyer, edge) in [(3, "edge-1"), (4, "edge-2")] {
        world.buy_at_last(edge, &scene, buyer);
    }
    let redis = world.fleet.link("edge-1", Store::Redis).unwrap();
    redis.flow(Way::Down, Flow::Drop);
    let lost = token(&scene, 0);
    assert_eq!(world.buy("edge-1", &scene, &lost, 0), UNAVAILABLE);
    assert_eq!(world.buy("edge-2", &scene, &token(&scene, 1), 1), ACCEPTED);
    assert!(redis.status().swallowed > 0);
    // The other edge tells the truth about the reply that was lost.
    assert!(world.buy("edge-2", &scene, &lost, 0).is_held());
    world.fleet.heal();
    world.buy_at_last("edge-1", &scene, 2);
    assert_eq!(world.audit(&scene).code, 0);
}

#[test]
fn a_paused_member_goes_on_where_it_was() {
    let world = World::small();
    let scene = world.sale(10, 10);
    world.fleet.signal("worker", Signal::SIGSTOP).unwrap();
    let order = world.buy_at_last("edge", &scene, 0);
    world.fleet.signal("worker", Signal::SIGCONT).unwrap();
    world.fleet.wait("worker").unwrap();
    assert_eq!(world.audit(&scene).code, 0);
    assert_eq!(scene.admin.orders(&scene.sale).unwrap()[0].id, order);
    assert!(world.fleet.metric("edge", "sluice_relay_held").unwrap() < 1.0);
    world.fleet.stop_all().unwrap();
    assert!(world.fleet.names().all(|name| world.fleet.pid(name).is_err()));
    assert!(world.fleet.log("edge").metadata().unwrap().len() > 0);
}

#[test]
fn a_sale_goes_on_by_itself_after_a_crash_of_redis() {
    let mut world = World::small();
    let scene = world.sale(10, 10);
    world.buy_at_last("edge", &scene, 0);
    world.redis.crash_and_restart();
    world.buy_at_last("edge", &scene, 1);
    let audit = world.audit(&scene);
    assert_eq!(audit.code, 0, "{}", audit.text);
    for error in [world.fleet.kill("edges").unwrap_err(), world.fleet.start("edges").unwrap_err()] {
        assert!(error.to_string().contains("no member is called edges"), "{error}");
    }
    assert!(world.fleet.start("edge").unwrap_err().to_string().contains("runs already"));
    assert!(world.fleet.link("edge", Store::Database).is_err());
}

#[test]
fn a_step_of_one_sale_among_many_makes_an_edge_read_its_view_alone() {
    let world = World::small();
    let scenes: Vec<_> = (0..6).map(|_| world.sale(10, 1)).collect();
    let (edge, one) = (world.fleet.public("edge").unwrap(), &scenes[2]);
    let whole = || world.fleet.metric("edge", "sluice_sales_whole_lists_total").unwrap();
    let (before, admin) = (whole(), &one.admin);
    for (step, state) in [("pause", "paused"), ("resume", "open"), ("pause", "paused"), ("close", "ended")] {
        admin.step(&one.sale, step).unwrap();
        wait_for("the edge to know", RECOVERY, || {
            let told = admin.look(edge, &one.sale)?.0;
            anyhow::ensure!(told == state, "it is {told}");
            Ok(())
        })
        .unwrap();
    }
    // An edge that is told late, on a busy machine, may have asked by itself.
    assert!(whole() - before < 2.0, "{before} whole lists, then {}", whole());
}
