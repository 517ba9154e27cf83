//! What a warden does to re-open a sale, as its own code commands.

use crate::bounds::{EDGES, EPOCHS, ORDERS};
use crate::rules::Raises;
use crate::state::{Cell, Data, Edge, Life, Redis, Row, State, Warden};
use crate::step::{Next, Step, World};
use crate::warden::{Happened, IDLE};
use sluice_protocol::warden::reopening::Command;

impl World {
    /// What one of the wardens may do next.
    pub(super) fn reopen(&self, state: &State, warden: usize, next: &mut Next) {
        let here = &state.wardens[warden];
        if here.at == IDLE {
            self.lease(state, warden, next);
            self.begin_reopening(state, warden, next);
            return;
        }
        let (mut then, command) = (*state, self.reopenings.command(here.at));
        let looks = !matches!(command, Command::Close | Command::Raise | Command::Rest(_));
        let happened = match command {
            // Whatever it would look at is another Redis'.
            _ if looks && !here.same => Happened::RedisFault,
            Command::Close => close(&mut then, warden),
            Command::Listen(_) if self.all_answered(state, warden) => Happened::AllAnswered,
            Command::Listen(_) => {
                if self.rules.asks_again && state.redis.data.asked < here.booked {
                    then.redis.data.asked = here.booked;
                    next.push((Step::AskAgain(warden), then));
                }
                return;
            }
            Command::Drain => {
                self.drain(&mut then, here.booked);
                Happened::Drained
            }
            Command::PushBarrier => {
                then.wardens[warden].barrier = true;
                Happened::BarrierPushed
            }
            Command::WatchBarrier(_) if !here.barrier => Happened::BarrierLost,
            Command::WatchBarrier(_) if state.queue == 0 => Happened::BarrierThrough,
            Command::WatchBarrier(_) => return,
            Command::Raise => return self.raise(state, warden, next),
            Command::Rest(_) => Happened::Rested,
            Command::Finish => return,
        };
        self.goes_on(then, warden, happened, next);
    }

    fn goes_on(&self, mut then: State, warden: usize, happened: Happened, next: &mut Next) {
        let here = &mut then.wardens[warden];
        here.at = self.reopenings.after(here.at, happened);
        if here.at == IDLE {
            *here = Warden::default();
        }
        next.push((Step::Reopening(warden, happened), then));
    }

    /// A lease for what is re-opened or lapsed, and the question is gone. Where two lead, one may not know
    /// yet what the other has asked.
    fn lease(&self, state: &State, warden: usize, next: &mut Next) {
        let data = &state.redis.data;
        let asked = data.asked >= state.books.epoch && !state.rivals;
        if state.is_loaded() && !asked && (data.closing || data.asked > 0) {
            let mut then = *state;
            (then.redis.data.closing, then.redis.data.asked) = (false, 0);
            next.push((Step::Lease(warden), then));
        }
    }

    fn begin_reopening(&self, state: &State, warden: usize, next: &mut Next) {
        let data = &state.redis.data;
        if state.is_loaded() && data.asked < state.books.epoch {
            return;
        }
        if state.books.epoch < EPOCHS {
            let mut then = *state;
            then.wardens[warden] = Warden { same: true, ..Warden::default() };
            self.goes_on(then, warden, Happened::Begins, next);
        }
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
            then.redis.script = data.epoch;
            (then.redis.data.closing, then.redis.data.asked) = (false, 0);
            next.push((Step::LoadAgain, then));
        }
    }

    /// Whether a warden waits for the edges' words.
    pub(super) fn listens(&self, state: &State, warden: usize) -> bool {
        let at = state.wardens[warden].at;
        at != IDLE && matches!(self.reopenings.command(at), Command::Listen(_))
    }

    fn all_answered(&self, state: &State, warden: usize) -> bool {
        let register = if self.rules.register { state.books.register } else { state.redis.data.members };
        let waits = |edge: usize| {
            let said = state.edges[edge].said[warden];
            self.reopenings.waits_for(state.wardens[warden].at, said)
        };
        !self.rules.collects || (0..EDGES).all(|edge| register & (1 << edge) == 0 || !waits(edge))
    }

    /// Publishes, with confirm, what has no row; only from data of the epoch that it asked for.
    fn drain(&self, then: &mut State, booked: u8) {
        if !self.rules.drains || then.redis.data.epoch != booked {
            return;
        }
        let unwritten = (0..ORDERS).filter(|order| then.unwritten(*order));
        then.queue |= unwritten.fold(0, |all, order| all | State::queued(order, booked));
    }

    /// Ends the epoch in the books, restores Redis, loads the scripts: three steps, between which anything
    /// may happen.
    fn raise(&self, state: &State, warden: usize, next: &mut Next) {
        let (mut then, here) = (*state, &state.wardens[warden]);
        let place = &mut then.wardens[warden];
        let ends = if self.rules.ends_asked { here.booked } else { state.books.epoch };
        let unwritten = self.rules.drains
            && state.redis.data.epoch == ends
            && (0..ORDERS).any(|order| state.unwritten(order));
        let happened = if here.loading > 0 {
            // Scripts of an older epoch change nothing for one that has its own.
            then.redis.script = state.redis.script.max(here.loading);
            place.loading = 0;
            if here.same { Happened::Raised } else { Happened::RedisFault }
        } else if here.raised > 0 && state.redis.data.epoch >= here.raised {
            place.raised = 0;
            Happened::Overtaken
        } else if here.raised > 0 {
            (place.raised, place.loading) = (0, here.raised);
            place.image = [0; ORDERS];
            self.restore(&mut then, here.raised, here.image);
            next.push((Step::Restore(warden), then));
            return;
        } else if !here.same {
            Happened::RedisFault
        } else if ends != state.books.epoch {
            Happened::Overtaken
        } else if unwritten {
            Happened::Unwritten
        } else {
            if state.books.epoch < EPOCHS {
                place.raised = ends + 1;
                place.image = state.books.rows.map(|row| row as u8);
                then.books.epoch += 1;
                // Copies of an ended epoch would meet the fence.
                then.edges.iter_mut().for_each(|edge| edge.copies = [0; ORDERS]);
                next.push((Step::Raise(warden), then));
            }
            return;
        };
        self.goes_on(then, warden, happened, next);
    }

    /// Redis as the books had it when they were read, under the next epoch and without a lease.
    fn restore(&self, then: &mut State, epoch: u8, image: [u8; ORDERS]) {
        let cell = |row: u8| match row {
            row if row == Row::Nothing as u8 => Cell::Nothing,
            row if row == Row::Live as u8 => Cell::Reserved,
            _ => Cell::Released,
        };
        let cells = image.map(cell);
        let taken = cells.iter().filter(|cell| **cell == Cell::Reserved).count();
        let data = Data {
            epoch,
            stock: self.shape.units - i8::try_from(taken).unwrap_or(i8::MAX),
            seq: then.books.seq,
            cells,
            journal: [0; ORDERS],
            members: if self.rules.register { then.books.register } else { then.redis.data.members },
            closing: true,
            asked: then.redis.data.asked,
        };
        then.redis = Redis { data, script: 0 };
        then.edges.iter_mut().for_each(|edge| edge.owes = 0);
    }
}

/// The lease ends, and the question for the epoch of the books stands in Redis.
fn close(then: &mut State, warden: usize) -> Happened {
    let booked = then.books.epoch;
    let data = &mut then.redis.data;
    (data.closing, data.asked) = (data.epoch > 0, booked);
    then.edges.iter_mut().for_each(|edge| edge.said[warden] = 0);
    then.wardens[warden] = Warden { at: then.wardens[warden].at, booked, same: true, ..Warden::default() };
    Happened::Closed(booked)
}
