//! Faults of one way between a member and a store.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::doer::{Doer, millis};
use super::plan::Fault;
use crate::drill::wait_for;
use crate::fleet::{Link, Store};
use sluice_testkit::proxy::rules::{Flow, Trap};
use sluice_testkit::proxy::way::Way;

/// How long a trap waits for what springs it.
const SPRING: Duration = Duration::from_secs(2);

/// Frames of RabbitMQ's, of a publisher and of a consumer, and what may happen at each.
const PUBLISHER: [&str; 6] = [
    "up lose frame publish",
    "up cut frame publish",
    "up twice frame publish",
    "down lose frame confirm",
    "down cut frame confirm",
    "down twice frame confirm",
];
const CONSUMER: [&str; 3] = ["down lose frame deliver", "up lose frame ack", "up cut frame ack"];
const SCRIPTS: [&str; 3] = ["up lose frame script", "up cut frame script", "up twice frame script"];
/// The message ends with the zero: without it nothing is committed.
const COMMITS: [&str; 2] = ["up lose text COMMIT", "up cut text COMMIT\0"];

/// What is done to a way.
#[derive(Debug)]
enum Trouble {
    /// Something lasts for a while.
    Lasts(Option<Way>, Flow, Duration),
    Refuse(Duration),
    Reset,
    HalfClose(Way),
    Spring(&'static str),
    SpringAt(Way, u64),
}

/// Disturbs one way of the member.
pub(super) fn disturb(doer: &Doer<'_>, fault: Fault, random: &mut StdRng) -> Result<()> {
    let ways: Vec<&Link> =
        doer.ground.fleet.links().iter().filter(|link| link.member == fault.victim).collect();
    let link = ways.choose(random).with_context(|| format!("{} has no ways", fault.victim))?;
    let trouble = draw(link, random);
    let details = format!("{} {trouble:?}", link.store.as_str());
    let number = doer.journal.begin(fault, &details);
    let proxy = &link.proxy;
    match trouble {
        Trouble::Lasts(way, flow, time) => {
            match way {
                Some(way) => proxy.flow(way, flow),
                None => proxy.flow_both(flow),
            }
            std::thread::sleep(time);
        }
        Trouble::Refuse(time) => {
            proxy.refuse(true);
            proxy.reset();
            std::thread::sleep(time);
        }
        Trouble::Reset => proxy.reset(),
        Trouble::HalfClose(way) => proxy.half_close(way),
        Trouble::Spring(words) => spring(link, words.parse()?),
        Trouble::SpringAt(way, count) => {
            let word = if way == Way::Up { "up" } else { "down" };
            spring(link, format!("{word} cut bytes {count}").parse()?);
        }
    }
    proxy.heal();
    doer.recovered(number, fault, || doer.ground.fleet.is_ready(fault.victim))
}

/// Waits until the trap springs; where nothing comes, the connections are reset instead.
fn spring(link: &Link, trap: Trap) {
    link.proxy.set(trap);
    let sprung = || if link.proxy.has_sprung() { Ok(()) } else { anyhow::bail!("nothing came") };
    if wait_for("a trap to spring", SPRING, sprung).is_err() {
        link.proxy.reset();
    }
}

fn draw(link: &Link, random: &mut StdRng) -> Trouble {
    let way = if random.random_bool(0.5) { Way::Up } else { Way::Down };
    let some = [Some(Way::Up), Some(Way::Down), None][random.random_range(0..3)];
    let time = millis(random, 200..2_500);
    match random.random_range(0..12) {
        0 => Trouble::Reset,
        1 => Trouble::Refuse(time),
        2 => Trouble::HalfClose(way),
        3 => Trouble::Lasts(some, Flow::Drop, time),
        4 => Trouble::Lasts(some, Flow::Hold, time),
        5 => {
            let most = millis(random, 20..400);
            Trouble::Lasts(some, Flow::Delay(Duration::from_millis(5), most), time)
        }
        6 => Trouble::Lasts(some, Flow::Throttle(random.random_range(5_000..100_000)), time),
        7 => Trouble::SpringAt(way, random.random_range(1..5_000)),
        _ => Trouble::Spring(trap(link, random)),
    }
}

/// A trap at what this member says to this store.
fn trap(link: &Link, random: &mut StdRng) -> &'static str {
    let warden = link.member.starts_with("warden");
    let choice: &[&'static str] = match (link.store, link.member.as_str()) {
        // A warden's scripts are never sent twice: it says each once and looks.
        (Store::Redis, _) if warden => &SCRIPTS[..2],
        (Store::Redis, _) => &SCRIPTS,
        (Store::Broker, "orders" | "saga") => &CONSUMER,
        (Store::Broker, _) => &PUBLISHER,
        (Store::Database, _) => &COMMITS,
    };
    choice.choose(random).copied().unwrap_or("up cut bytes 1")
}
