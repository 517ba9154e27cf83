//! As many orders as the gate and Redis can take while nobody writes them; then all become rows.

use anyhow::Result;

use super::alone::{start_signing, start_writing, stop_signing, stop_writing};
use super::{Scene, Setting};
use crate::admin::Offer;
use crate::compare::measure::Measured;
use crate::compare::{take, taken_rounds};
use crate::oracle::Rules;
use crate::peer::Peer;
use crate::servers::Servers;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Burst {
    /// Orders of each burst
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1_000..=900_000))]
    pub orders: u32,
    /// Rounds against the peer, each of a sixth as many orders; 0: without the peer
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=21))]
    pub rounds: u32,
}

/// Accepted orders a second, into the journal.
const FLOOR: f64 = 40_000.0;
/// Fewer orders than this are over too soon to tell.
const ENOUGH_TO_TELL: u32 = 100_000;

/// Runs the drill; whether all is good.
pub fn run(setting: &Setting, ask: &Burst) -> Result<bool> {
    let each = ask.orders / 6;
    let buyers = ask.orders * 2 + each * ask.rounds;
    let offer = Offer { stock: buyers, per_user: 1, price: 100, pay_within: 3_600 };
    let mut scene = Scene::open(setting, offer, buyers)?;
    let mut tally = scene.tally("burst", u64::from(buyers))?;
    let mut servers = Servers::new(setting.environment.directory.clone());
    stop_signing(&mut servers, &scene)?;
    let pids = [servers.pid("edge")?, servers.pid("redis")?];
    stop_writing(&mut servers)?;
    let journal = take(&mut scene, &mut tally, &pids, (0..ask.orders).collect())?;
    if ask.rounds > 0 {
        let mut peer = Peer::start()?;
        let first = 2 * ask.orders..2 * ask.orders + each;
        taken_rounds(&mut scene, &mut tally, &mut peer, &servers, ask.rounds, first)?
            .tell(&mut scene.verdicts);
    }
    start_writing(&mut servers, &scene)?;
    scene.audit("once the burst is written", u64::from(buyers))?;
    let running = take(&mut scene, &mut tally, &pids, (ask.orders..2 * ask.orders).collect())?;
    tell("into the journal alone", &journal);
    tell("with everything running", &running);
    let good = journal.rate >= FLOOR || ask.orders < ENOUGH_TO_TELL;
    let words = format!(
        "{} orders into the journal: {:.0} accepted/s, at least {FLOOR:.0}",
        ask.orders, journal.rate
    );
    scene.verdicts.say(good, words);
    scene.audit("at rest", u64::from(buyers))?;
    start_signing(&mut servers, &scene)?;
    scene.close(tally, &Rules { stock: buyers, per_user: 1, returns: false, taken: Some(buyers) })
}

fn tell(what: &str, measured: &Measured) {
    let Measured { each, rate, p99 } = measured;
    let p99 = p99.as_secs_f64() * 1e3;
    println!(
        "{what:<26} {rate:>8.0} accepted/s, gate and Redis {each:.1} µs of CPU each, p99 on the way {p99:.1} ms"
    );
}
