//! Which faults there are, how many of each, and in which round and lane they come.

use std::collections::BTreeMap;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::fleet::Kind;

/// Members of the fleet, in the order in which they are started.
pub(super) const MEMBERS: [(&str, Kind); 9] = [
    ("warden-1", Kind::Worker(&["reconcile"])),
    ("warden-2", Kind::Worker(&["reconcile"])),
    ("orders", Kind::Worker(&["orders"])),
    ("outbox", Kind::Worker(&["outbox"])),
    ("saga", Kind::Worker(&["saga"])),
    ("timeout", Kind::Worker(&["timeout"])),
    ("api", Kind::Worker(&["api"])),
    ("edge-1", Kind::Edge),
    ("edge-2", Kind::Edge),
];
/// The stores.
pub(super) const STORES: [&str; 3] = ["redis", "rabbitmq", "postgres"];

/// What is done to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub(super) enum Deed {
    /// SIGKILL, and started again
    Kill,
    /// SIGSTOP for 1 to 5 s, some longer than a lease
    Pause,
    /// Every byte between a member and its stores is swallowed for 2 to 10 s
    Partition,
    /// RabbitMQ takes nothing from publishers: its memory is full
    MemoryAlarm,
    /// The same: its disk is full
    DiskAlarm,
    /// Redis cannot write any more, and is started again
    FullDisk,
    /// Redis is killed and comes back without the end of its file
    LostTail,
    /// Redis is killed and comes back without its data
    WipedRedis,
    /// A replica that missed the last writes is promoted while the old primary still answers
    StalePromotion,
    /// RabbitMQ is killed and comes back without its data
    WipedBroker,
    /// One connection, or all of one member to one store, for a moment
    #[value(name = "proxy")]
    Network,
}

impl Deed {
    /// The words of tables and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::MemoryAlarm => "memory alarm",
            Self::DiskAlarm => "disk alarm",
            Self::FullDisk => "full disk",
            Self::LostTail => "lost tail",
            Self::WipedRedis => "wiped redis",
            Self::StalePromotion => "stale promotion",
            Self::WipedBroker => "wiped broker",
            Self::Network => "proxy",
        }
    }

    /// Its word on a command line.
    pub(super) fn name(self) -> String {
        self.as_str().replace(' ', "-")
    }

    /// How often it is done in 30 minutes, to all its victims together.
    fn often(self) -> f64 {
        match self {
            Self::Kill => KILLS * 12.0,
            Self::Pause => PAUSES,
            Self::Partition => PARTITIONS,
            Self::MemoryAlarm | Self::DiskAlarm | Self::FullDisk => ALARMS,
            Self::LostTail | Self::WipedRedis | Self::StalePromotion | Self::WipedBroker => LOSSES,
            Self::Network => PROXY,
        }
    }
}

/// One fault that is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// What is done.
    pub(super) deed: Deed,
    /// To whom.
    pub(super) victim: &'static str,
    /// Chooses its details.
    pub(super) seed: u64,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.deed.as_str(), self.victim)
    }
}

/// Faults that follow one another; lanes run beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// The edges.
    Edges,
    /// The worker's roles and the wardens.
    Workers,
    /// The stores, which lose nothing.
    Stores,
    /// The stores, which lose what they had.
    Losses,
    /// The ways between.
    Network,
}

/// How often each thing is done to each victim in 30 minutes.
const KILLS: f64 = 33.0;
const LOSSES: f64 = 17.0;
const PARTITIONS: f64 = 18.0;
const ALARMS: f64 = 6.0;
const PAUSES: f64 = 36.0;
const PROXY: f64 = 420.0;
/// What these counts belong to.
const MINUTES: f64 = 30.0;

/// A drill's faults, by round and lane.
#[derive(Debug)]
pub(super) struct Plan {
    /// What comes in each round.
    pub(super) rounds: Vec<BTreeMap<Lane, Vec<Fault>>>,
}

impl Plan {
    /// So many minutes' faults, or so many faults; never fewer than one of each kind. Of these kinds only,
    /// if any are named.
    pub(super) fn new(seed: u64, minutes: u32, faults: Option<u32>, only: &[Deed]) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let kinds: Vec<Deed> = Deed::value_variants()
            .iter()
            .copied()
            .filter(|kind| only.is_empty() || only.contains(kind))
            .collect();
        let all: f64 = kinds.iter().map(|kind| kind.often()).sum();
        let share = faults.map_or(f64::from(minutes) / MINUTES, |faults| f64::from(faults) / all);
        let lanes = lanes(share, &kinds, &mut random);
        // A round of so many faults takes less than 40 seconds where nothing else runs.
        let count = usize::try_from(minutes + minutes * 3 / 5).unwrap_or(1).max(1);
        let mut rounds: Vec<BTreeMap<Lane, Vec<Fault>>> = vec![BTreeMap::new(); count];
        for (lane, mut faults) in lanes {
            faults.shuffle(&mut random);
            let all = faults.len();
            for (at, fault) in faults.into_iter().enumerate() {
                rounds[at * count / all].entry(lane).or_default().push(fault);
            }
        }
        Self { rounds }
    }

    /// How many faults there are.
    pub(super) fn count(&self) -> usize {
        self.rounds.iter().flat_map(BTreeMap::values).map(Vec::len).sum()
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn lanes(share: f64, kinds: &[Deed], random: &mut StdRng) -> BTreeMap<Lane, Vec<Fault>> {
    let often = |count: f64| (count * share).ceil().max(1.0) as usize;
    let mut lanes: BTreeMap<Lane, Vec<Fault>> = BTreeMap::new();
    let mut put = |lane: Lane, deed: Deed, victim: &'static str, count: usize| {
        if !kinds.contains(&deed) {
            return;
        }
        let fault = |_| Fault { deed, victim, seed: random.random() };
        lanes.entry(lane).or_default().extend((0..count).map(fault));
    };
    let edges = ["edge-1", "edge-2"];
    let workers = || MEMBERS.iter().map(|(name, _)| *name).filter(|name| !edges.contains(name));
    edges.iter().for_each(|name| put(Lane::Edges, Deed::Kill, name, often(KILLS)));
    workers().for_each(|name| put(Lane::Workers, Deed::Kill, name, often(KILLS)));
    STORES.iter().for_each(|name| put(Lane::Stores, Deed::Kill, name, often(KILLS)));
    for deed in [Deed::LostTail, Deed::WipedRedis, Deed::StalePromotion] {
        put(Lane::Losses, deed, "redis", often(LOSSES));
    }
    put(Lane::Losses, Deed::WipedBroker, "rabbitmq", often(LOSSES));
    put(Lane::Stores, Deed::MemoryAlarm, "rabbitmq", often(ALARMS));
    put(Lane::Stores, Deed::DiskAlarm, "rabbitmq", often(ALARMS));
    put(Lane::Stores, Deed::FullDisk, "redis", often(ALARMS));
    // Everybody in turn, beginning with those that decide most.
    let first =
        ["edge-1", "warden-1", "redis", "edge-2", "orders", "rabbitmq", "warden-2", "saga", "postgres"];
    for (at, deed) in [(often(PAUSES), Deed::Pause), (often(PARTITIONS), Deed::Partition)] {
        for victim in
            first.iter().cycle().filter(|name| deed == Deed::Pause || !STORES.contains(name)).take(at)
        {
            let lane = match () {
                () if edges.contains(victim) => Lane::Edges,
                () if STORES.contains(victim) => Lane::Stores,
                () => Lane::Workers,
            };
            put(lane, deed, victim, 1);
        }
    }
    let everybody: Vec<&'static str> = MEMBERS.iter().map(|(name, _)| *name).collect();
    for at in 0..often(PROXY) {
        // Every second one at an edge: that is where answers are given.
        let victim = if at % 2 == 0 { edges[at / 2 % 2] } else { everybody[at / 2 % everybody.len()] };
        put(Lane::Network, Deed::Network, victim, 1);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn counts(plan: &Plan) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for fault in plan.rounds.iter().flat_map(BTreeMap::values).flatten() {
            *counts.entry(fault.to_string()).or_default() += 1;
            *counts.entry(fault.deed.as_str().to_owned()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn half_an_hour_has_enough_of_each_kind() {
        let plan = Plan::new(7, 30, None, &[]);
        let counts = counts(&plan);
        for victim in MEMBERS.iter().map(|(name, _)| *name).chain(STORES) {
            assert!(counts[&format!("kill {victim}")] >= 20, "{victim}");
        }
        for loss in ["lost tail", "wiped redis", "stale promotion", "wiped broker", "partition"] {
            assert!(counts[loss] >= 10, "{loss}");
        }
        assert!(counts["memory alarm"] + counts["disk alarm"] + counts["full disk"] >= 10);
        let others = plan.count() - counts["proxy"];
        assert!(counts["pause"] >= 20 && others + counts["proxy"].min(300) >= 600, "{counts:?}");
        assert!(plan.rounds.len() >= 30);
        assert!(plan.rounds.iter().all(|round| round.values().map(Vec::len).sum::<usize>() >= 12));
    }

    #[test]
    fn a_small_plan_has_every_kind_and_a_seed_makes_one_plan() {
        let plan = Plan::new(3, 2, Some(100), &[]);
        assert!(plan.count() >= 100 && plan.count() <= 130, "{}", plan.count());
        let kinds = |plan: &Plan| -> BTreeSet<Deed> {
            plan.rounds.iter().flat_map(BTreeMap::values).flatten().map(|fault| fault.deed).collect()
        };
        assert_eq!(kinds(&plan), kinds(&Plan::new(9, 30, None, &[])));
        let same = |one: u64, other: u64| {
            Plan::new(one, 2, None, &[]).rounds == Plan::new(other, 2, None, &[]).rounds
        };
        assert!(same(3, 3) && !same(3, 4));
    }

    #[test]
    fn a_plan_of_one_kind_has_no_other() {
        let counts = counts(&Plan::new(5, 1, Some(3), &[Deed::StalePromotion]));
        assert_eq!((counts["stale promotion"], counts.len()), (3, 2), "{counts:?}");
    }
}
