//! What a request costs, as a ratio to what it costs the peer in the same run.
//!
//! Servers on core 0, generator on core 1, the same connections; rounds in turn, medians compared.

pub mod measure;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::admin::Offer;
use crate::client::Kind;
use crate::client::engine::Options;
use crate::client::outcome::ACCEPTED;
use crate::cpu::{self, Pinned};
use crate::crowd::{Crowd, Plan};
use crate::drill::{Ask, Scene, Setting, alone, wait_for};
use crate::oracle::{Rules, accepted};
use crate::peer::Peer;
use crate::report::{Tally, Verdicts};
use crate::schedule::Profile;
use crate::servers::Servers;
use measure::{Measured, Ring, measure};

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Compare {
    /// Which row; all of them if not given
    #[arg(value_enum)]
    pub name: Option<Name>,
    /// Rounds of each row, in turn with the peer's
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=21))]
    pub rounds: u32,
    /// Requests a round; of orders a quarter of it
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(4_000..=2_000_000))]
    pub requests: u32,
}

/// A row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// A refusal after sell-out, against the peer's local flag
    Refusal,
    /// A unit taken (gate and Redis), against the peer's nginx and Redis
    Taken,
}

/// Users in turn in the refusal row, on both sides.
const USERS: u32 = 100_000;
/// The most that our side may cost, as a share of the peer's.
const REFUSAL_BAR: f64 = 0.8;
const TAKEN_BAR: f64 = 0.5;

/// Measures; whether every ratio is within its bar.
pub fn run(setting: &Setting, ask: &Compare) -> Result<bool> {
    let mut peer = Peer::start()?;
    let mut good = true;
    if ask.name != Some(Name::Taken) {
        good &= refusal(setting, &mut peer, ask)?;
    }
    if ask.name != Some(Name::Refusal) {
        good &= taken(setting, &mut peer, ask)?;
    }
    Ok(good)
}

/// Both sides of a row, round by round.
#[derive(Debug)]
pub struct Row {
    name: &'static str,
    bar: f64,
    ours: Vec<Measured>,
    peer: Vec<Measured>,
}

impl Row {
    /// A row without rounds.
    pub fn new(name: &'static str, bar: f64) -> Self {
        Self { name, bar, ours: Vec::new(), peer: Vec::new() }
    }

    /// Prints the medians and judges their ratio.
    pub fn tell(&self, verdicts: &mut Verdicts) {
        println!("\n{:<44} {:>12} {:>12} {:>10}", self.name, "CPU µs each", "requests/s", "p99 ms");
        for (side, rounds) in [("  ours", &self.ours), ("  peer", &self.peer)] {
            let (each, rate) = (median(rounds, |round| round.each), median(rounds, |round| round.rate));
            let p99 = median(rounds, |round| round.p99.as_secs_f64() * 1e3);
            println!("{side:<44} {each:>12.2} {rate:>12.0} {p99:>10.2}");
        }
        let ratio = median(&self.ours, |round| round.each) / median(&self.peer, |round| round.each);
        let words = format!("{}: {ratio:.2} of the peer's CPU time, at most {:.2}", self.name, self.bar);
        verdicts.say(ratio <= self.bar, words);
    }
}

fn median(rounds: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The generator's core for as long as it lives; servers get core 0 one by one.
pub struct Bench {
    pinned: bool,
}

impl Bench {
    /// Takes the generator's core, where there is a second one.
    pub fn new() -> Result<Self> {
        let pinned = cpu::cores() > 1;
        if pinned {
            cpu::pin_this_thread(&[1])?;
        } else {
            eprintln!("one core only: servers and generator share it");
        }
        Ok(Self { pinned })
    }

    /// Puts servers on their core.
    pub fn pin(&self, pids: &[i32]) -> Result<Option<Pinned>> {
        self.pinned.then(|| Pinned::new(pids, &[0])).transpose()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Where this fails there was nothing to give back.
        cpu::pin_this_thread(&(0..cpu::cores()).collect::<Vec<_>>()).ok();
    }
}

fn peer_options(scene: &Scene, target: std::net::SocketAddrV4) -> Options {
    Options { targets: vec![target], bots: 0, ..scene.options(Duration::from_secs(300)) }
}

/// Requests for the peer, `count` users from `first` on.
fn peer_requests(first: u32, count: u32) -> Vec<Bytes> {
    let request = |user: u32| Bytes::from(format!("GET /buy?s=1&u={user} HTTP/1.1\r\nHost: peer\r\n\r\n"));
    (first..first + count).map(request).collect()
}

fn refusal(setting: &Setting, peer: &mut Peer, ask: &Compare) -> Result<bool> {
    let offer = Offer { stock: 1, per_user: 1, price: 100, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, USERS + 1)?;
    let mut tally = scene.tally("refusal", 1)?;
    let ours = sold_out(&scene, &mut tally)?;
    let servers = Servers::new(setting.environment.directory.clone());
    let edge = [servers.pid("edge")?];
    let bench = Bench::new()?;
    let count = u64::from(ask.requests);
    let (mut ours, mut theirs) = (Ring::new(ours, count), Ring::new(peer_requests(0, USERS), count));
    let mut floor = Vec::new();
    let mut row = Row::new("refusal after sell-out", REFUSAL_BAR);
    for round in 1..=ask.rounds {
        eprintln!("refusal: round {round} of {}", ask.rounds);
        let pids = peer.constant_pids()?;
        let pinned = bench.pin(&pids)?;
        floor.push(measure(&peer_options(&scene, peer.constant()), theirs.again(count), &pids, 409)?);
        drop(pinned);
        peer.sell_out()?;
        let pids = peer.gate_pids()?;
        let pinned = bench.pin(&pids)?;
        let options = peer_options(&scene, peer.gate());
        measure(&options, theirs.again(1_000), &pids, 409)?;
        row.peer.push(measure(&options, theirs.again(count), &pids, 409)?);
        drop(pinned);
        let _pinned = bench.pin(&edge)?;
        let options = peer_options(&scene, setting.environment.edge);
        measure(&options, ours.again(1_000), &edge, 409)?;
        row.ours.push(measure(&options, ours.again(count), &edge, 409)?);
    }
    drop(bench);
    row.tell(&mut scene.verdicts);
    println!("  nginx answering a constant: {:.2} µs", median(&floor, |round| round.each));
    scene.audit("at rest", 1)?;
    scene.close(tally, &Rules { stock: 1, per_user: 1, returns: false, taken: Some(1) })
}

/// Sells the only unit; requests of everybody else, with good tokens.
fn sold_out(scene: &Scene, tally: &mut Tally) -> Result<Vec<Bytes>> {
    let expires = sluice_shared::clock::Millis::now().after(Duration::from_secs(14 * 60));
    let mint = |buyer| scene.buyers.mint(buyer, expires).context("minting a token");
    let (token, order) = mint(USERS)?;
    let request = scene.buyers.order_request(USERS, &token, 1);
    let ask = Ask { buyer: USERS, order: &order, units: 1, request };
    let outcome = scene.ask(tally, Kind::Buy, &ask, &[ACCEPTED]).outcome();
    if outcome != ACCEPTED {
        bail!("the only unit was not sold: {outcome}");
    }
    let edge = scene.setting.environment.edge;
    wait_for("the gate to know", Duration::from_secs(10), || match scene.admin.look(edge, &scene.sale)? {
        (state, false) if state == "sold_out" => Ok(()),
        (state, _) => bail!("the sale is {state}"),
    })?;
    (0..USERS).map(|buyer| Ok(scene.buyers.order_request(buyer, &mint(buyer)?.0, 1))).collect()
}

fn taken(setting: &Setting, peer: &mut Peer, ask: &Compare) -> Result<bool> {
    let each = ask.requests / 4;
    let buyers = each * ask.rounds;
    let offer = Offer { stock: buyers, per_user: 1, price: 100, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    let mut tally = scene.tally("taken", u64::from(buyers))?;
    let mut servers = Servers::new(setting.environment.directory.clone());
    alone::stop_signing(&mut servers, &scene)?;
    alone::stop_writing(&mut servers)?;
    let measured = taken_rounds(&mut scene, &mut tally, peer, &servers, ask.rounds, 0..each);
    alone::start_writing(&mut servers, &scene)?;
    measured?.tell(&mut scene.verdicts);
    scene.audit("once all is written", u64::from(buyers))?;
    alone::start_signing(&mut servers, &scene)?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: Some(buyers) })
}

/// Rounds of units taken; the first round's buyers are these, the next ones follow.
pub fn taken_rounds(
    scene: &mut Scene,
    tally: &mut Tally,
    peer: &mut Peer,
    servers: &Servers,
    rounds: u32,
    first: std::ops::Range<u32>,
) -> Result<Row> {
    let pids = [servers.pid("edge")?, servers.pid("redis")?];
    let mut row = Row::new("unit taken (gate and Redis, no receipt)", TAKEN_BAR);
    let bench = Bench::new()?;
    let each = first.end - first.start;
    for round in 0..rounds {
        eprintln!("taken: round {} of {rounds}", round + 1);
        peer.stock(100_000_000)?;
        let theirs = peer.taking_pids()?;
        let pinned = bench.pin(&theirs)?;
        let options = peer_options(scene, peer.gate());
        measure(&options, &mut Ring::new(peer_requests(each, 1_000), 1_000), &theirs, 202)?;
        let mut load = Ring::new(peer_requests(2 * each, each), u64::from(each));
        row.peer.push(measure(&options, &mut load, &theirs, 202)?);
        drop(pinned);
        let _pinned = bench.pin(&pids)?;
        let who = (first.start + round * each..first.end + round * each).collect();
        row.ours.push(take(scene, tally, &pids, who)?);
    }
    Ok(row)
}

/// Takes a unit for each buyer as fast as answers come.
pub fn take(scene: &mut Scene, tally: &mut Tally, pids: &[i32], who: Vec<u32>) -> Result<Measured> {
    let count = who.len() as u64;
    // Nobody orders who has not fetched a token: the gate has met these buyers before.
    let visits: Vec<Bytes> = who.iter().map(|buyer| scene.buyers.token_request(*buyer)).collect();
    measure(&scene.options(Duration::from_secs(300)), &mut Ring::new(visits, count), pids, 200)?;
    let plan = Plan { mint: true, ..scene.plan(Profile::Step) };
    let mut crowd = Crowd::new(&scene.buyers, who, plan);
    let from = scene.now();
    let used = cpu::of(pids)?;
    let ran = scene.run(&mut crowd, tally, Duration::from_secs(300))?;
    let used = cpu::of(pids)?.saturating_sub(used);
    let mut entries = tally.entries()?;
    entries.retain(|entry| entry.sent >= from && entry.kind.is_order());
    let taken = u64::from(accepted(&entries));
    if taken != count {
        scene.verdicts.say(false, format!("{taken} of {count} were accepted"));
    }
    entries.iter_mut().for_each(|entry| entry.due = entry.sent);
    Ok(Measured::of(used, taken, ran.elapsed, &entries))
}
