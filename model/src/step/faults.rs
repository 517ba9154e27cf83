//! What breaks, and what comes back by itself.

use crate::bounds::{EDGES, ORDERS};
use crate::faults::Faults;
use crate::state::{Call, Data, Edge, Life, Redis, Row, State, Warden};
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
            then.queue = 0;
            then.wardens.iter_mut().for_each(|warden| warden.barrier = false);
            next.push((Step::LoseBroker, then));
        }
        if faults.machine > 0 {
            let mut then = self.less(state, |faults| faults.machine -= 1);
            (0..EDGES).for_each(|edge| self.kill(&mut then, edge));
            self.another_redis(&mut then, kept);
            (then.wardens, then.rivals) = Default::default();
            next.push((Step::PowerCut, then));
        }
        self.wardens(state, next);
    }

    fn wardens(&self, state: &State, next: &mut Next) {
        let faults = state.faults;
        if faults.warden > 0 && state.wardens[0].at != IDLE {
            let mut then = *state;
            then.faults.warden -= 1;
            then.wardens[0] = Warden::default();
            next.push((Step::WardenDies, then));
        }
        if faults.lapse > 0 && state.redis.sells() {
            let mut then = self.less(state, |faults| faults.lapse -= 1);
            then.redis.data.closing = true;
            next.push((Step::Lapse, then));
        }
        if faults.rival > 0 && !state.rivals && state.wardens[0].at != IDLE {
            let mut then = self.less(state, |faults| faults.rival -= 1);
            then.rivals = true;
            next.push((Step::Rival, then));
        }
    }

    /// The state with one fault less to come; the replica is forgotten once nothing falls back to it.
    fn less(&self, state: &State, used: impl Fn(&mut Faults)) -> State {
        let mut then = *state;
        then.faults = then.faults.after(used);
        if !then.faults.need_a_replica(self.rules.always) {
            then.replica = Data::default();
        }
        then
    }

    fn another_redis(&self, then: &mut State, data: Data) {
        (then.redis, then.deposed) = (Redis { data, script: 0 }, None);
        let at_work = then.wardens.iter_mut().filter(|warden| warden.at != IDLE);
        at_work.for_each(|warden| warden.same = false);
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
    /// catch up, one of two wardens steps down.
    fn by_itself(&self, state: &State, next: &mut Next) {
        for edge in 0..EDGES {
            let listed = (state.books.register | state.redis.data.members) & (1 << edge) != 0;
            match state.edges[edge].life {
                Life::Up => self.admit(state, edge, next),
                Life::Paused if !self.rules.strikes_carefully && listed => {
                    next.push((Step::StrikeOff(edge), struck_off(state, edge)));
                }
                Life::Paused if self.rules.strikes_carefully => self.part(state, edge, next),
                Life::Dead if listed => next.push((Step::ProveDead(edge), struck_off(state, edge))),
                Life::Paused | Life::Dead => {}
            }
            if state.edges[edge].life == Life::Paused {
                let mut then = *state;
                then.edges[edge].life = Life::Up;
                next.push((Step::Wake(edge), then));
            }
        }
        if state.rivals {
            for stays in [0, 1] {
                let mut then = *state;
                then.rivals = false;
                then.wardens = [state.wardens[stays], Warden::default()];
                then.edges.iter_mut().for_each(|edge| edge.said = [edge.said[stays], 0]);
                next.push((Step::StepDown(1 - stays), then));
            }
        }
        if state.faults.need_a_replica(self.rules.always) && state.replica != state.redis.data {
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

    /// A silent edge leaves in two steps while all is well: the script refuses it, and when the journal
    /// holds nothing any more of what was there by then, it leaves the register.
    fn part(&self, state: &State, edge: usize, next: &mut Next) {
        let (bit, mut then) = (1 << edge, *state);
        if !state.open() || state.books.register & bit == 0 {
            return;
        }
        let refused = state.redis.data.members & bit == 0;
        if !refused {
            then.redis.data.members &= !bit;
            then.edges[edge].owes = state.journalled();
            next.push((Step::Refuse(edge), then));
        }
        let gone = state.edges[edge].owes & state.journalled() == 0 || !self.rules.leaves_nothing;
        if gone && (refused || !self.rules.refuses_first) {
            then = *state;
            then.books.register &= !bit;
            then.edges[edge].owes = 0;
            next.push((Step::StrikeOff(edge), then));
        }
    }

    /// An edge that is heard comes into the register, and only then the script serves it.
    fn admit(&self, state: &State, edge: usize, next: &mut Next) {
        let (bit, mut then) = (1 << edge, *state);
        if !self.rules.strikes_carefully || !self.rules.membership {
            return;
        }
        if state.books.register & bit == 0 {
            then.books.register |= bit;
            next.push((Step::Register(edge), then));
        } else if state.redis.data.members & bit == 0 && state.open() {
            then.redis.data.members |= bit;
            then.edges[edge].owes = 0;
            next.push((Step::Admit(edge), then));
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

/// Out of the register, and out of what the script serves.
fn struck_off(state: &State, edge: usize) -> State {
    let mut then = *state;
    then.books.register &= !(1 << edge);
    then.redis.data.members &= !(1 << edge);
    then
}
