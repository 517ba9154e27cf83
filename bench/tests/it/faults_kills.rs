//! A whole system, each of whose processes dies at each place that an order passes.

use sluice_bench::drill::wait_for;
use sluice_bench::fleet::Kind;
use sluice_shared::failpoint::POINTS;

use crate::world::{RECOVERY, WARDEN, WORKER, World, token};

#[test]
fn f6_f54_f69_whoever_dies_wherever_each_order_is_a_row_once() {
    let world = World::of(&[("warden", WARDEN), ("worker", WORKER), ("edge", Kind::Edge)]);
    let scene = world.sale(100, 100);
    let places = POINTS.into_iter().filter(|point| !point.starts_with("F76.") && !point.starts_with("F85."));
    let mut buyers = 0;
    for point in places {
        let member = if point.starts_with("F54.") || point.starts_with("F69.") { "worker" } else { "edge" };
        world.fleet.kill(member).unwrap();
        world.fleet.start_armed(member, &format!("{point}=kill")).unwrap();
        let lost = token(&scene, buyers);
        wait_for("its death", RECOVERY, || {
            // Whatever is answered: the process is to come by.
            world.buy("edge", &scene, &lost, buyers);
            anyhow::ensure!(world.fleet.pid(member).is_err(), "{member} lives on at {point}");
            Ok(())
        })
        .unwrap();
        world.fleet.start(member).unwrap();
        world.fleet.wait(member).unwrap();
        wait_for("the order", RECOVERY, || {
            let told = world.buy("edge", &scene, &lost, buyers);
            anyhow::ensure!(told.is_held(), "{point}: {told}");
            Ok(())
        })
        .unwrap();
        buyers += 1;
    }
    let audit = world.audit(&scene);
    assert_eq!(audit.code, 0, "{}", audit.text);
    let rows = scene.admin.orders(&scene.sale).unwrap();
    assert_eq!(u32::try_from(rows.len()).unwrap(), buyers);
}
