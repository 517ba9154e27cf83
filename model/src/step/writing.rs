//! The way to the books: network, broker, writers, outbox, and the warden's reconciling.

use crate::bounds::{EDGES, EPOCHS, ORDERS};
use crate::memory::Deed;
use crate::state::{Call, Cell, Life, Row, State, WARDEN};
use crate::step::{Next, Step, World};

impl World {
    pub(super) fn write(&self, state: &State, next: &mut Next) {
        for order in 0..ORDERS {
            for epoch in 1..=EPOCHS {
                for from in 0..=EDGES {
                    if state.net & State::message(from, order, epoch) != 0 {
                        self.deliver(state, (from, order, epoch), next);
                    }
                }
                if state.queue & State::queued(order, epoch) != 0 {
                    next.push((Step::Write(order, epoch), self.written(state, order, epoch)));
                }
            }
            self.books(state, order, next);
        }
    }

    /// A message comes into the queue, sooner or later, or never: that is a step that is not taken.
    fn deliver(&self, state: &State, (from, order, epoch): (usize, usize, u8), next: &mut Next) {
        let mut then = *state;
        then.net &= !State::message(from, order, epoch);
        then.queue |= State::queued(order, epoch);
        next.push((Step::DeliverUnconfirmed(from, order, epoch), then));
        if from == WARDEN || state.edges[from].life != Life::Up {
            return;
        }
        let place = &mut then.edges[from];
        if place.memory.stamps[order] != epoch {
            return;
        }
        place.memory = self.holder.after(place.memory, Deed::Confirm(order)).0;
        place.erase[order] = epoch;
        if self.rules.copies && state.books.rows[order] == Row::Nothing {
            place.copies[order] = epoch;
        }
        for (call, attempt) in self.shape.calls.iter().enumerate() {
            if *attempt == Some((order, from)) && then.calls[call] == Call::Waiting {
                then.calls[call] = Call::Done;
                then.told |= 1 << order;
            }
        }
        next.push((Step::Deliver(from, order, epoch), then));
    }

    /// A writer's transaction: fence, key, units.
    fn written(&self, state: &State, order: usize, epoch: u8) -> State {
        let mut then = *state;
        then.queue &= !State::queued(order, epoch);
        let fenced = self.rules.fence && epoch < state.books.epoch;
        if fenced || state.books.rows[order] != Row::Nothing {
            return then;
        }
        then.books.seq = state.books.seq.max(state.seqs[order]);
        if state.taken() < self.shape.units {
            then.book(order, Row::Live);
        } else {
            then.book(order, Row::Failed);
            then.books.due |= 1 << order;
        }
        then
    }

    fn books(&self, state: &State, order: usize, next: &mut Next) {
        let rules = &self.rules;
        let cancelled = |step, next: &mut Next| {
            let mut then = *state;
            then.book(order, Row::Cancelled);
            then.books.due |= 1 << order;
            next.push((step, then));
        };
        if self.shape.cancels == Some(order) && state.books.rows[order] == Row::Live {
            cancelled(Step::Cancel(order), next);
        }
        let due = state.books.due & (1 << order) != 0;
        let known = !rules.fences_release && state.redis.data.epoch > 0;
        if due && (known || state.open()) {
            let mut then = *state;
            then.books.due &= !(1 << order);
            release(&mut then, order);
            next.push((Step::Release(order), then));
        }
        if !state.open() {
            return;
        }
        if rules.early_cancel && state.unwritten(order) {
            cancelled(Step::CancelUnwritten(order), next);
        }
        if rules.tells_releases_again && !due && state.dead_and_held(order) {
            let mut then = *state;
            then.books.due |= 1 << order;
            next.push((Step::TellReleaseAgain(order), then));
        }
        if !rules.releases_rows && state.unwritten(order) {
            let mut then = *state;
            release(&mut then, order);
            next.push((Step::ReleaseUnwritten(order), then));
        }
        let epoch = state.redis.data.epoch;
        let message = State::message(WARDEN, order, epoch);
        let looked_at = rules.reconciles_journal || state.redis.data.journal[order] == 0;
        if rules.reconciles && looked_at && state.unwritten(order) && state.net & message == 0 {
            let mut then = *state;
            then.net |= message;
            next.push((Step::Reconcile(order), then));
        }
    }
}

/// release.lua: once, and a tombstone for what is not there.
fn release(then: &mut State, order: usize) {
    let data = &mut then.redis.data;
    if data.cells[order] == Cell::Reserved {
        data.stock += 1;
    }
    data.cells[order] = Cell::Released;
}
