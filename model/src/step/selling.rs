//! Buyers, reserve.lua and edges.

use crate::bounds::{EDGES, ORDERS};
use crate::memory::Deed;
use crate::rules::{AcceptAfter, Raises};
use crate::state::{Call, Cell, Data, Edge, Life, Redis, Said, State};
use crate::step::{Next, Step, World};

impl World {
    pub(super) fn sell(&self, state: &State, next: &mut Next) {
        for (call, attempt) in self.shape.calls.iter().enumerate() {
            let Some((order, edge)) = *attempt else { continue };
            let up = state.edges[edge].life == Life::Up;
            // What an edge has sent arrives also when it stands still since.
            let sent = state.edges[edge].life != Life::Dead;
            match state.calls[call] {
                Call::New if sent => self.ask(state, call, (order, edge), next),
                Call::Reply(..) if up => self.reply(state, call, (order, edge), next),
                Call::Waiting => {
                    let mut then = *state;
                    then.calls[call] = Call::Done;
                    next.push((Step::GiveUp(call), then));
                }
                _ => {}
            }
        }
        for edge in (0..EDGES).filter(|edge| state.edges[*edge].life == Life::Up) {
            self.edge(state, edge, next);
        }
    }

    /// The script runs, on the Redis that is meant or on a deposed one.
    fn ask(&self, state: &State, call: usize, attempt: (usize, usize), next: &mut Next) {
        let mut then = *state;
        if self.reserve(&mut then, call, attempt, false) {
            next.push((Step::Ask(call), then));
        }
        let mut then = *state;
        if state.deposed.is_some() && self.reserve(&mut then, call, attempt, true) {
            next.push((Step::AskDeposed(call), then));
        }
    }

    /// reserve.lua; whether it ran. A frozen sale and an unknown edge leave the buyer where he was.
    fn reserve(&self, then: &mut State, call: usize, (order, edge): (usize, usize), deposed: bool) -> bool {
        let mut redis: Redis = if deposed { then.deposed.unwrap_or_default() } else { then.redis };
        let known = redis.data.members & (1 << edge) != 0;
        if !redis.sells() || (self.rules.membership && !known) {
            return false;
        }
        let data = &mut redis.data;
        let buyer = self.shape.buyers[order];
        let holds =
            |(other, cell): (usize, &Cell)| *cell == Cell::Reserved && self.shape.buyers[other] == buyer;
        let mine = data.cells.iter().enumerate().filter(|(other, cell)| holds((*other, *cell))).count();
        let (epoch, journalled) = (data.epoch, data.journal[order] != 0);
        then.calls[call] = match data.cells[order] {
            Cell::Released => Call::Done,
            Cell::Reserved => Call::Reply(epoch, Said::Replay(journalled)),
            Cell::Nothing if mine >= self.shape.per_buyer || data.stock <= 0 => {
                if then.is_told(order) {
                    Call::Reply(epoch, Said::Refused)
                } else {
                    Call::Done
                }
            }
            Cell::Nothing => {
                data.stock -= 1;
                data.cells[order] = Cell::Reserved;
                data.journal[order] = epoch;
                if self.rules.raises != Raises::Always {
                    data.seq += 1;
                    then.seqs[order] = data.seq;
                }
                Call::Reply(epoch, Said::Taken)
            }
        };
        if deposed {
            then.deposed = Some(redis);
        } else {
            then.redis = redis;
        }
        true
    }

    /// The reply is lost, or taken: held, then told. Under a closed epoch it counts as lost, whatever
    /// it says.
    fn reply(&self, state: &State, call: usize, (order, edge): (usize, usize), next: &mut Next) {
        let Call::Reply(epoch, said) = state.calls[call] else { return };
        let mut then = *state;
        then.calls[call] = Call::Done;
        next.push((Step::LoseReply(call), then));

        let (rules, place) = (&self.rules, &mut then.edges[edge]);
        let spared = rules.spares_copied && said != Said::Refused && place.copies[order] == epoch;
        let holds = match said {
            Said::Taken => rules.memory,
            Said::Replay(journalled) => {
                rules.memory && rules.holds_replays && !spared && (journalled || rules.holds_old_replays)
            }
            Said::Refused => false,
        };
        let stamp = if rules.stamps_reply { epoch } else { state.books.epoch };
        if holds {
            let (memory, agreed) = self.holder.after(place.memory, Deed::Accept(order, stamp));
            place.memory = memory;
            if !agreed {
                return;
            }
        } else if (spared || said == Said::Refused) && epoch <= place.memory.closed {
            return;
        }
        if rules.raises == Raises::UnlessEdgesAgree {
            place.seen = place.seen.max(state.seqs[order]);
        }
        if said == Said::Refused {
            then.refused = true;
        } else if holds && rules.accept_after == AcceptAfter::Broker {
            then.calls[call] = Call::Waiting;
        } else {
            then.told |= 1 << order;
        }
        next.push((Step::TakeReply(call), then));
    }

    /// What an edge does by itself.
    fn edge(&self, state: &State, edge: usize, next: &mut Next) {
        let (here, rules) = (&state.edges[edge], &self.rules);
        for order in 0..ORDERS {
            let (stamp, entry) = (here.memory.stamps[order], state.redis.data.journal[order]);
            if stamp > 0 && (rules.publishes_frozen || state.open()) {
                self.publish(state, edge, order, next);
            }
            if rules.sweep && entry > 0 && !self.is_attended(state, order) {
                let (memory, agreed) = self.holder.after(here.memory, Deed::Adopt(order, entry));
                if agreed {
                    let mut then = *state;
                    then.edges[edge].memory = memory;
                    next.push((Step::Adopt(edge, order), then));
                }
            }
            if here.erase[order] > 0 {
                let mut then = *state;
                then.edges[edge].erase[order] = 0;
                if entry == here.erase[order] {
                    then.redis.data.journal[order] = 0;
                    if !rules.erase_keeps_record {
                        then.redis.data.cells[order] = Cell::Nothing;
                    }
                }
                next.push((Step::Erase(edge, order), then));
            }
        }
        if !rules.holds_frozen && !state.open() && here.memory.stamps != [0; ORDERS] {
            let mut then = *state;
            then.edges[edge].memory.stamps = [0; ORDERS];
            next.push((Step::DropFrozen(edge), then));
        }
        if state.redis.data.asked > 0 || state.leaders().any(|warden| self.listens(state, warden)) {
            self.hear(state, edge, next);
        }
    }

    /// Whether an edge that runs holds the order: entries are swept only when they are old.
    fn is_attended(&self, state: &State, order: usize) -> bool {
        state.edges.iter().any(|edge| edge.life == Life::Up && edge.memory.stamps[order] > 0)
    }

    fn publish(&self, state: &State, edge: usize, order: usize, next: &mut Next) {
        let stamp = state.edges[edge].memory.stamps[order];
        let message = State::message(edge, order, stamp);
        if state.net & message != 0 {
            return;
        }
        let mut then = *state;
        then.net |= message;
        let place = &mut then.edges[edge];
        if !self.rules.until_confirmed {
            place.memory = self.holder.after(place.memory, Deed::Confirm(order)).0;
            place.erase[order] = stamp;
        }
        if !self.rules.erases_confirmed {
            place.erase[order] = stamp;
        }
        next.push((Step::Publish(edge, order), then));
    }

    /// Copies of the epoch that Redis does not know are held again.
    fn recall(&self, place: &mut Edge, data: &Data, epoch: u8) {
        for order in 0..ORDERS {
            if place.copies[order] == epoch && data.cells[order] == Cell::Nothing {
                place.memory = self.holder.after(place.memory, Deed::Recall(order, epoch)).0;
                place.copies[order] = 0;
            }
        }
    }

    /// The edge hears that an epoch is to be closed, closes it, takes back what Redis has lost of it, and
    /// says of which closed epoch it holds nothing: to every warden that listens.
    fn hear(&self, state: &State, edge: usize, next: &mut Next) {
        let (mut then, epoch) = (*state, state.redis.data.asked);
        let place = &mut then.edges[edge];
        let empty = if self.rules.gate {
            if epoch > 0 {
                place.memory = self.holder.after(place.memory, Deed::Close(epoch)).0;
                self.recall(place, &state.redis.data, epoch);
            }
            self.holder.says_empty(place.memory)
        } else {
            let free = place.memory.stamps.iter().all(|stamp| *stamp == 0 || *stamp > epoch);
            if free { epoch } else { 0 }
        };
        let word = if self.rules.waits { empty } else { epoch };
        for warden in state.leaders().filter(|warden| self.listens(state, *warden)) {
            place.said[warden] = place.said[warden].max(word);
        }
        if then != *state {
            next.push((Step::Hear(edge), then));
        }
    }
}
