//! Breadth first through every moment that can be reached, so that the first thing found wrong has a
//! shortest way to it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use ahash::RandomState;

use crate::bounds::EPOCHS;
use crate::faults::Faults;
use crate::judge::Violation;
use crate::rules::{Rules, Shape};
use crate::state::State;
use crate::step::{Step, World};

/// What came of an exploration.
#[derive(Debug)]
pub struct Found {
    /// Moments that were reached.
    pub states: usize,
    /// What is wrong, and the way to it.
    pub violation: Option<(Violation, Vec<Step>)>,
}

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub struct Exploration {
    /// Who buys what.
    pub shape: Shape,
    /// Which mechanisms work.
    pub rules: Rules,
    /// Which faults strike.
    pub faults: Faults,
}

/// Every moment, by its number: the order in which they were found. A moment is known by its fingerprint of
/// 128 bits, since millions of whole ones take more time to look up than all else together; that two of ten
/// million have the same has a chance of one in 10^24.
struct Graph {
    world: World,
    /// Whether there may be two wardens.
    rivals: bool,
    seeds: [RandomState; 2],
    numbers: HashMap<u128, u32, BuildHasherDefault<Plain>>,
    /// Those whose followers have not been looked at, in order.
    open: VecDeque<State>,
    parents: Vec<u32>,
    /// Whether all is well when nothing else happens.
    good: Vec<bool>,
    /// What follows from the n-th moment without another fault: `follows[ends[n - 1]..ends[n]]`.
    follows: Vec<u32>,
    ends: Vec<usize>,
}

impl Exploration {
    /// Goes through everything; stops at the first moment that must never be. With `ends`, it is also
    /// asked whether the sale can come to rest from every moment, without another fault.
    pub fn run(&self, ends: bool) -> Found {
        let nothing = Found { states: 0, violation: None };
        let Some(world) = World::new(self.shape, self.rules) else { return nothing };
        let first = world.begin(self.faults);
        let mut graph = Graph {
            world,
            rivals: self.faults.rival > 0,
            seeds: [1, 2].map(|seed| RandomState::with_seeds(seed, 0, 0, 0)),
            numbers: HashMap::default(),
            open: VecDeque::new(),
            parents: Vec::new(),
            good: Vec::new(),
            follows: Vec::new(),
            ends: Vec::new(),
        };
        graph.number(first, 0);
        if let Some((violation, at)) = graph.walk(ends) {
            return graph.found(violation, at, first);
        }
        match ends.then(|| graph.stuck()).flatten() {
            Some(at) => graph.found(Violation::Stuck, at, first),
            None => Found { states: graph.parents.len(), violation: None },
        }
    }
}

impl Graph {
    fn walk(&mut self, keeps_follows: bool) -> Option<(Violation, u32)> {
        let (mut at, mut next) = (0_u32, Vec::new());
        while let Some(state) = self.open.pop_front() {
            if let Some(violation) = self.world.violation(&state) {
                return Some((violation, at));
            }
            next.clear();
            self.world.next(&state, &mut next);
            for (step, then) in &next {
                let number = self.number(*then, at);
                if keeps_follows && !step.is_fault() {
                    self.follows.push(number);
                }
            }
            self.ends.push(self.follows.len());
            // Two wardens may overtake each other for ever: what comes of that ends at the last epoch.
            let cut_off = self.rivals && state.books.epoch == EPOCHS;
            self.good.push(cut_off || self.world.at_rest(&state));
            at += 1;
        }
        None
    }

    fn fingerprint(&self, state: &State) -> u128 {
        let packed = state.packed();
        let [low, high] = [0, 1].map(|half| u128::from(self.seeds[half].hash_one(packed)));
        high << 64 | low
    }

    fn number(&mut self, state: State, parent: u32) -> u32 {
        let next = u32::try_from(self.parents.len()).unwrap_or(u32::MAX);
        match self.numbers.entry(self.fingerprint(&state)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(free) => {
                self.parents.push(parent);
                self.open.push_back(state);
                *free.insert(next)
            }
        }
    }

    /// A moment from which the sale never comes to rest, if there is one: the first one found.
    fn stuck(&self) -> Option<u32> {
        let count = self.parents.len();
        let mut starts = vec![0_u32; count + 1];
        for follows in &self.follows {
            starts[*follows as usize + 1] += 1;
        }
        for at in 0..count {
            starts[at + 1] += starts[at];
        }
        let (mut places, mut before) = (starts.clone(), vec![0_u32; self.follows.len()]);
        for at in 0..count {
            let from = if at == 0 { 0 } else { self.ends[at - 1] };
            for follows in &self.follows[from..self.ends[at]] {
                let place = &mut places[*follows as usize];
                before[*place as usize] = u32::try_from(at).unwrap_or(u32::MAX);
                *place += 1;
            }
        }
        let mut ends_well = self.good.clone();
        let mut open: Vec<usize> = (0..count).filter(|at| ends_well[*at]).collect();
        while let Some(at) = open.pop() {
            for earlier in &before[starts[at] as usize..starts[at + 1] as usize] {
                let earlier = *earlier as usize;
                if !ends_well[earlier] {
                    ends_well[earlier] = true;
                    open.push(earlier);
                }
            }
        }
        ends_well.iter().position(|well| !well).and_then(|at| u32::try_from(at).ok())
    }

    /// The way to a moment, gone once more from the first.
    fn found(&self, violation: Violation, at: u32, first: State) -> Found {
        let mut numbers = vec![at];
        while let Some(&at) = numbers.last().filter(|at| **at != 0) {
            numbers.push(self.parents[at as usize]);
        }
        let (mut way, mut state, mut next) = (Vec::new(), first, Vec::new());
        for number in numbers.iter().rev().skip(1) {
            next.clear();
            self.world.next(&state, &mut next);
            let leads = |then: &State| self.numbers.get(&self.fingerprint(then)) == Some(number);
            if let Some((step, then)) = next.iter().find(|(_, then)| leads(then)) {
                way.push(*step);
                state = *then;
            }
        }
        Found { states: self.parents.len(), violation: Some((violation, way)) }
    }
}

/// A fingerprint is as good as a hash of it.
#[derive(Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |all, byte| all.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = (fingerprint >> 32) as u64;
    }
}
