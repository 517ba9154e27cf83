//! What the warden does to re-open a sale, as its own code commands.

use sluice_worker::warden::reopening::Command;

use crate::bounds::{EDGES, EPOCHS, ORDERS};
use crate::rules::Raises;
use crate::state::{Cell, Data, Edge, Life, Redis, Row, State};
use crate::step::{Next, Step, World};
use crate::warden::{Happened, IDLE};

impl World {
    pub(super) fn reopen(&self, state: &State, next: &mut Next) {
        if state.warden == IDLE {
            self.begin_reopening(state, next);
            return;
        }
        let mut then = *state;
        let happened = match self.reopenings.command(state.warden) {
            Command::Close => {
                (then.redis.data.closing, then.same) = (state.redis.data.epoch > 0, true);
                then.edges = state.edges.map(|edge| Edge { said: 0, ..edge });
                Happened::Closed(state.books.epoch)
            }
            Command::Listen(_) if self.all_answered(state) => Happened::AllAnswered,
            Command::Listen(_) => return,
            Command::Drain if state.same => {
                self.drain(&mut then);
                Happened::Drained
            }
            Command::Drain => Happened::RedisFault,
            Command::PushBarrier => {
                then.barrier = true;
                Happened::BarrierPushed
            }
            Command::WatchBarrier(_) if !state.barrier => Happened::BarrierLost,
            Command::WatchBarrier(_) if state.queue == 0 => Happened::BarrierThrough,
            Command::WatchBarrier(_) => return,
            Command::Raise => return self.raise(state, next),
            Command::Rest(_) => Happened::Rested,
            Command::Finish => return,
        };
        then.warden = self.reopenings.after(state.warden, happened);
        next.push((Step::Reopening(happened), then));
    }

    fn begin_reopening(&self, state: &State, next: &mut Next) {
        if state.open() {
            return;
        }
        if state.books.epoch < EPOCHS {
            let mut then = *state;
            then.warden = self.reopenings.after(IDLE, Happened::Begins);
            (then.barrier, then.loading) = (false, 0);
            next.push((Step::Reopening(Happened::Begins), then));
        }
        let data = &state.redis.data;
        let books_agree = data.epoch == state.books.epoch && data.seq >= state.books.seq;
        let alive = |edge: &&Edge| edge.life != Life::Dead;
        let edges_agree = state.edges.iter().filter(alive).all(|edge| data.seq >= edge.seen);
        let again = match self.rules.raises {
            Raises::Always => false,
            Raises::UnlessBooksAgree => books_agree,
            Raises::UnlessEdgesAgree => books_agree && edges_agree,
        };
        let late = !self.rules.loads_once && state.books.epoch > 1 && data.epoch == state.books.epoch;
        let alone = self.rules.loads_alone || data.epoch == 0;
        if (again || late || !alone) && state.redis.script == 0 {
            let mut then = *state;
            (then.redis.script, then.redis.data.closing) = (data.epoch, false);
            next.push((Step::LoadAgain, then));
        }
    }

    /// Whether the question stands.
    pub(super) fn is_asking(&self, state: &State) -> bool {
        matches!(self.reopenings.command(state.warden), Command::Listen(_))
    }

    fn all_answered(&self, state: &State) -> bool {
        let register = if self.rules.register { state.books.register } else { state.redis.data.members };
        let answered = |edge: usize| {
            register & (1 << edge) == 0 || !self.reopenings.waits_for(state.warden, state.edges[edge].said)
        };
        !self.rules.collects || (0..EDGES).all(answered)
    }

    /// Publishes, with confirm, what has no row; only from data of the present epoch.
    fn drain(&self, then: &mut State) {
        if !self.rules.drains || then.redis.data.epoch != then.books.epoch {
            return;
        }
        let unwritten = (0..ORDERS).filter(|order| then.unwritten(*order));
        then.queue |= unwritten.fold(0, |all, order| all | State::queued(order, then.books.epoch));
    }

    /// Restores and raises; then, if it is still the same Redis, loads the scripts.
    fn raise(&self, state: &State, next: &mut Next) {
        let mut then = *state;
        let current = state.redis.data.epoch == state.books.epoch;
        let happened = if !state.same {
            then.loading = 0;
            Happened::RedisFault
        } else if state.loading > 0 {
            (then.redis.script, then.loading) = (state.loading, 0);
            Happened::Raised
        } else if self.rules.drains && current && (0..ORDERS).any(|order| state.unwritten(order)) {
            Happened::Unwritten
        } else {
            if state.books.epoch < EPOCHS {
                self.restore(&mut then);
                next.push((Step::Restore, then));
            }
            return;
        };
        then.warden = self.reopenings.after(state.warden, happened);
        next.push((Step::Reopening(happened), then));
    }

    /// Redis as the books have it, under the next epoch.
    fn restore(&self, then: &mut State) {
        then.books.epoch += 1;
        let cell = |row: Row| match row {
            Row::Nothing => Cell::Nothing,
            Row::Live => Cell::Reserved,
            Row::Cancelled | Row::Failed => Cell::Released,
        };
        let data = Data {
            epoch: then.books.epoch,
            stock: self.shape.units - then.taken(),
            seq: then.books.seq,
            cells: then.books.rows.map(cell),
            journal: [0; ORDERS],
            members: if self.rules.register { then.books.register } else { then.redis.data.members },
            closing: false,
        };
        then.redis = Redis { data, script: 0 };
        then.loading = then.books.epoch;
    }
}
