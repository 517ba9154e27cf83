//! Breadth first through every moment that can be reached, so that the first thing found wrong has a
//! shortest way to it.

use ahash::RandomState;
use indexmap::IndexSet;

use crate::bounds::EPOCHS;
use crate::judge::Violation;
use crate::rules::{Faults, Rules, Shape};
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

/// Every moment, in the order in which they were found.
struct Graph {
    world: World,
    /// Whether there may be two wardens.
    rivals: bool,
    states: IndexSet<State, RandomState>,
    parents: Vec<u32>,
    /// What follows from the n-th moment: `follows[ends[n - 1]..ends[n]]`.
    follows: Vec<u32>,
    ends: Vec<usize>,
}

impl Exploration {
    /// Goes through everything; stops at the first moment that must never be. With `ends`, it is also
    /// asked whether the sale can come to rest from every moment.
    pub fn run(&self, ends: bool) -> Found {
        let nothing = Found { states: 0, violation: None };
        let Some(world) = World::new(self.shape, self.rules) else { return nothing };
        let first = world.begin(self.faults);
        let mut graph = Graph {
            world,
            rivals: self.faults.rival > 0,
            states: IndexSet::from_iter([first]),
            parents: vec![0],
            follows: Vec::new(),
            ends: Vec::new(),
        };
        if let Some((violation, at)) = graph.walk(ends) {
            return graph.found(violation, at);
        }
        match ends.then(|| graph.stuck()).flatten() {
            Some(at) => graph.found(Violation::Stuck, at),
            None => Found { states: graph.states.len(), violation: None },
        }
    }
}

impl Graph {
    fn walk(&mut self, keeps_follows: bool) -> Option<(Violation, usize)> {
        let (mut at, mut next) = (0, Vec::new());
        while let Some(state) = self.states.get_index(at).copied() {
            if let Some(violation) = self.world.violation(&state) {
                return Some((violation, at));
            }
            next.clear();
            self.world.next(&state, &mut next);
            for (_, then) in &next {
                let number = self.number(*then, at);
                if keeps_follows {
                    self.follows.push(number);
                }
            }
            self.ends.push(self.follows.len());
            at += 1;
        }
        None
    }

    fn number(&mut self, state: State, parent: usize) -> u32 {
        let (number, fresh) = self.states.insert_full(state);
        if fresh {
            self.parents.push(u32::try_from(parent).unwrap_or(u32::MAX));
        }
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// A moment from which the sale never comes to rest, if there is one: the first one found.
    fn stuck(&self) -> Option<usize> {
        let count = self.states.len();
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
        // Two wardens may overtake each other for ever: what comes of that ends at the last epoch.
        let cut_off = |state: &State| self.rivals && state.books.epoch == EPOCHS;
        let good = |state: &State| self.world.at_rest(state) || cut_off(state);
        let mut ends_well: Vec<bool> = self.states.iter().map(good).collect();
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
        ends_well.iter().position(|well| !well)
    }

    /// The way to a moment.
    fn found(&self, violation: Violation, at: usize) -> Found {
        let (mut way, mut at, mut next) = (Vec::new(), at, Vec::new());
        while at != 0 {
            let parent = self.parents[at] as usize;
            next.clear();
            self.world.next(&self.states[parent], &mut next);
            way.extend(next.iter().find(|(_, then)| *then == self.states[at]).map(|(step, _)| *step));
            at = parent;
        }
        way.reverse();
        Found { states: self.states.len(), violation: Some((violation, way)) }
    }
}
