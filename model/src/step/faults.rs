//! What breaks, and what comes back by itself.

use crate::bounds::{EDGES, ORDERS};
use crate::rules::Faults;
use crate::state::{Call, Data, Edge, Life, Redis, Row, State};
use crate::step::{Next, Step, World};
use crate::warden::IDLE;

impl World {
    pub(super) fn strike(&self, state: &State, next: &mut Next) {
        self.by_itself(state, next);
        if self.rules.one_after_another && !self.is_calm(state) {
            return;
        }
        let faults = state.faults;
        for edge in 0..EDGES {
            let life = state.edges[edge].life;
            if faults.kill > 0 && life != Life::Dead {
                let mut then = self.less(state, |faults| faults.kill -= 1);
                self.kill(&mut then, edge);
                next.push((Step::Kill(edge), then));
            }
            if faults.pause > 0 && life == Life::Up {
                let mut then = self.less(state, |faults| faults.pause -= 1);
                then.edges[edge].life = Life::Paused;
                next.push((Step::Pause(edge), then));
            }
        }
        self.servers(state, next);
    }

    fn servers(&self, state: &State, next: &mut Next) {
        let faults = state.faults;
        let kept = if self.rules.always { state.redis.data } else { state.replica };
        if faults.restart > 0 {
            let mut then = self.less(state, |faults| faults.restart -= 1);
            self.another_redis(&mut then, kept);
            next.push((Step::Restart, then));
        }
        if faults.stale > 0 {
            let mut then = self.less(state, |faults| faults.stale -= 1);
            self.another_redis(&mut then, state.replica);
            next.push((Step::FallBack(false), then));
            if state.redis.sells() {
                then.deposed = Some(state.redis);
                next.push((Step::FallBack(true), then));
            }
        }
        if faults.wipe > 0 {
            let mut then = self.less(state, |faults| faults.wipe -= 1);
            self.another_redis(&mut then, Data::default());
            next.push((Step::Wipe, then));
        }
        if faults.broker > 0 {
            let mut then = self.less(state, |faults| faults.broker -= 1);
            (then.queue, then.barrier) = (0, false);
            next.push((Step::LoseBroker, then));
        }
        if faults.machine > 0 {
            let mut then = self.less(state, |faults| faults.machine -= 1);
            (0..EDGES).for_each(|edge| self.kill(&mut then, edge));
            self.another_redis(&mut then, kept);
            (then.warden, then.loading) = (IDLE, 0);
            next.push((Step::PowerCut, then));
        }
        if faults.warden > 0 && state.warden != IDLE {
            let mut then = self.less(state, |faults| faults.warden -= 1);
            (then.warden, then.loading) = (IDLE, 0);
            next.push((Step::WardenDies, then));
        }
    }

    /// The state with one fault less to come; the replica is forgotten once nothing falls back to it.
    fn less(&self, state: &State, used: impl Fn(&mut Faults)) -> State {
        let mut then = *state;
        used(&mut then.faults);
        if !then.faults.need_a_replica(&self.rules) {
            then.replica = Data::default();
        }
        then
    }

    fn another_redis(&self, then: &mut State, data: Data) {
        (then.redis, then.deposed, then.same) = (Redis { data, script: 0 }, None, false);
    }

    fn kill(&self, then: &mut State, edge: usize) {
        then.edges[edge] = Edge { life: Life::Dead, ..Edge::default() };
        for (call, attempt) in self.shape.calls.iter().enumerate() {
            if attempt.is_some_and(|(_, at)| at == edge) {
                then.calls[call] = Call::Done;
            }
        }
    }

    /// What time brings: paused edges wake, silent ones are struck off, dead ones proven dead, replicas
    /// catch up.
    fn by_itself(&self, state: &State, next: &mut Next) {
        for edge in 0..EDGES {
            let (bit, life) = (1 << edge, state.edges[edge].life);
            let listed = (state.books.register | state.redis.data.members) & bit != 0;
            let strike_off = |step, next: &mut Next| {
                let mut then = *state;
                then.books.register &= !bit;
                then.redis.data.members &= !bit;
                next.push((step, then));
            };
            let careful = state.open() && state.redis.data.journal == [0; ORDERS];
            if life == Life::Paused && listed && (careful || !self.rules.strikes_carefully) {
                strike_off(Step::StrikeOff(edge), next);
            }
            if life == Life::Dead && listed {
                strike_off(Step::ProveDead(edge), next);
            }
            if life == Life::Paused {
                let mut then = *state;
                then.edges[edge].life = Life::Up;
                next.push((Step::Wake(edge), then));
            }
        }
        if state.faults.need_a_replica(&self.rules) && state.replica != state.redis.data {
            let mut then = *state;
            then.replica = state.redis.data;
            next.push((Step::Replicate, then));
        }
        if state.deposed.is_some() {
            let mut then = *state;
            then.deposed = None;
            next.push((Step::DeposedEnds, then));
        }
    }

    /// Whether the next fault may strike where faults come one after another: the sale is open, every
    /// edge is up and registered or dead and struck off, and each accepted order without a row is in
    /// two of Redis, the broker and a living edge.
    fn is_calm(&self, state: &State) -> bool {
        let registered = |edge: usize| state.books.register & (1 << edge) != 0;
        let settled = |edge: usize| match state.edges[edge].life {
            Life::Up => registered(edge),
            Life::Paused => false,
            Life::Dead => !registered(edge),
        };
        let twice = |order: usize| {
            let held = state.edges.iter().any(|edge| edge.memory.stamps[order] > 0);
            let places = [state.reserved(order), state.is_queued(order), held];
            places.into_iter().filter(|there| *there).count() >= 2
        };
        let unwritten = |order: &usize| state.books.rows[*order] == Row::Nothing && state.is_told(*order);
        state.open() && (0..EDGES).all(settled) && (0..ORDERS).filter(unwritten).all(twice)
    }
}
