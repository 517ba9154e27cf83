//! From the script's reply to the buyers' answers, and what is held before those go out. No I/O.

use std::sync::Arc;
use std::time::Instant;

use sluice_protocol::edge::held::{self, Closed, Parcel};
use sluice_protocol::edge::room::Place;
use sluice_protocol::edge::spares::Spares;
use sluice_shared::clock::Millis;
use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::message::{Accepted, VERSION};
use sluice_shared::record::{OrderState, Record};
use sluice_shared::redis::Fault;
use sluice_shared::script::{Answer, Answers, Ask, Reserved};
use tokio::sync::oneshot;

use super::Outcome;
use super::core::{Held, Waiter};

/// Who waits for the answer of one order.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) place: Place,
    pub(crate) reply: oneshot::Sender<Reply>,
}

/// The answer of one order.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: Outcome,
    /// Comes when the broker has the order, where the sale waits for that.
    pub(crate) confirm: Option<oneshot::Receiver<()>>,
}

impl Reply {
    pub(crate) fn plain(outcome: Outcome) -> Self {
        Self { outcome, confirm: None }
    }
}

/// The sale that a reply belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) segment: &'a Arc<Segment>,
    pub(crate) number: u32,
    /// Whether buyers are told of the broker's confirm.
    pub(crate) after_broker: bool,
}

/// What a reply has shown so far: no later reply may show less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Mark {
    epoch: u64,
    seq: u64,
}

impl Mark {
    /// The mark after a reply, or `None` when the reply to a call that was sent after this mark was
    /// known goes back behind it: Redis shows data older than what it showed before.
    pub(crate) fn after(self, answers: &Answers) -> Option<Self> {
        let mut high = Self { epoch: answers.epoch, seq: 0 }.max(self);
        if answers.epoch < self.epoch {
            return None;
        }
        for answer in &answers.answers {
            if let Answer::Ok(seq) = answer {
                let shown = Self { epoch: answers.epoch, seq: *seq };
                if shown <= self {
                    return None;
                }
                high = high.max(shown);
            }
        }
        Some(high)
    }
}

/// Why a whole batch was not answered by the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What each buyer is told.
    pub(crate) outcome: Outcome,
    /// Whether the segment counts as frozen from now on.
    pub(crate) freezes: bool,
    /// For the metric.
    pub(crate) kind: &'static str,
}

/// Reads the result of a call: the answers, or what it means that there are none.
pub(crate) fn judge(result: Result<Reserved, Fault>) -> Result<Answers, Refused> {
    let frozen = |kind| Refused { outcome: Outcome::Frozen, freezes: true, kind };
    let unknown = |kind| Refused { outcome: Outcome::Unavailable, freezes: false, kind };
    match result {
        Ok(Reserved::Answers(answers)) => Ok(answers),
        Ok(Reserved::Frozen(_)) => Err(frozen("frozen")),
        Ok(Reserved::UnknownEdge) => Err(frozen("unknown_edge")),
        Err(Fault::NoScript { .. }) => Err(frozen("no_script")),
        Err(Fault::Refused { why, .. }) if why.contains("OOM") => {
            Err(Refused { outcome: Outcome::Overloaded, freezes: false, kind: "oom" })
        }
        Err(Fault::Refused { .. }) => Err(frozen("refused")),
        Err(Fault::Unknown { .. }) => Err(unknown("unknown")),
        Err(Fault::Unreadable { .. }) => Err(unknown("unreadable")),
    }
}

type Arrival = held::Arrival<Waiter>;

/// Journal entry and message of an order.
type Parcelled = ((u64, u64), Accepted);

/// Answers of a batch, ready to be held and told.
#[derive(Debug)]
pub(crate) struct Prepared {
    epoch: u64,
    arrivals: Vec<Arrival>,
    /// Arrivals that were told before.
    replays: Vec<Arrival>,
    replies: Vec<(oneshot::Sender<Reply>, Reply)>,
}

impl Prepared {
    /// Builds the messages of what was accepted: outside of any lock.
    pub(crate) fn new(origin: Origin<'_>, answers: Answers, asks: &[Ask], callers: Vec<Caller>) -> Self {
        let Answers { epoch, now, answers, .. } = answers;
        let (arrivals, replies) = (Vec::with_capacity(asks.len()), Vec::with_capacity(asks.len()));
        let mut prepared = Self { epoch, arrivals, replays: Vec::new(), replies };
        for ((answer, ask), caller) in answers.into_iter().zip(asks).zip(callers) {
            let (outcome, parcel) = match answer {
                Answer::Ok(seq) => {
                    let accepted = message(origin, ask, epoch, seq, now);
                    let outcome = Outcome::Accepted {
                        state: OrderState::Accepted,
                        replayed: false,
                        epoch,
                        seq,
                        at: now,
                    };
                    (outcome, Some(((epoch, seq), accepted)))
                }
                Answer::Replay(record) => replay(origin, ask, epoch, &record),
                Answer::Overloaded => (Outcome::Overloaded, None),
                refused => (Outcome::Refused(refused), None),
            };
            prepared.push(origin, outcome, parcel, caller);
        }
        prepared
    }

    fn push(&mut self, origin: Origin<'_>, outcome: Outcome, parcel: Option<Parcelled>, caller: Caller) {
        let Some((entry, accepted)) = parcel else {
            return self.replies.push((caller.reply, Reply::plain(outcome)));
        };
        let Some(parcel) = Parcel::new(origin.segment, entry, accepted) else {
            // Nothing can be held, so nothing is promised; the journal has the order.
            return self.replies.push((caller.reply, Reply::plain(Outcome::Unavailable)));
        };
        let (waiter, confirm) = if origin.after_broker {
            let (tell, told) = oneshot::channel();
            (Some(tell), Some(told))
        } else {
            (None, None)
        };
        let again = matches!(outcome, Outcome::Accepted { replayed: true, .. });
        let arrivals = if again { &mut self.replays } else { &mut self.arrivals };
        arrivals.push(Arrival { parcel, place: caller.place, waiter });
        self.replies.push((caller.reply, Reply { outcome, confirm }));
    }

    /// Whether some of it was accepted before.
    pub(crate) fn has_replays(&self) -> bool {
        !self.replays.is_empty()
    }

    /// Leaves out the replays that a copy is kept of: the broker has confirmed them under this epoch, and
    /// a re-opening takes them back from the copy.
    pub(crate) fn spare(&mut self, spares: &mut Spares, now: Instant) {
        for Arrival { waiter, .. } in self.replays.extract_if(.., |replay| spares.covers(&replay.parcel, now))
        {
            // Whoever waited has gone by now: nobody to tell.
            let _ = waiter.map(|waiter| waiter.send(()));
        }
    }

    /// Holds what was accepted. Under a closed epoch nothing is, and the outcome of every order of the
    /// reply counts as unknown. Only what comes out of here can tell the buyers.
    pub(crate) fn hold(self, held: &mut Held, segment: &Segment, now: Instant) -> Kept {
        let count = self.arrivals.len() + self.replays.len();
        match held.accept(segment, self.epoch, self.arrivals.into_iter().chain(self.replays), now) {
            Ok(()) => Kept { count, replies: self.replies },
            Err(Closed) => {
                let unknown = |(caller, _)| (caller, Reply::plain(Outcome::Unavailable));
                Kept { count: 0, replies: self.replies.into_iter().map(unknown).collect() }
            }
        }
    }
}

/// A batch whose accepted orders are held.
#[derive(Debug)]
pub(crate) struct Kept {
    /// How many orders are held.
    pub(crate) count: usize,
    replies: Vec<(oneshot::Sender<Reply>, Reply)>,
}

impl Kept {
    /// Tells every buyer.
    pub(crate) fn tell(self) {
        for (caller, reply) in self.replies {
            // A buyer who went away finds his order with the same token; it is held all the same.
            let _ = caller.send(reply);
        }
    }
}

fn message(origin: Origin<'_>, ask: &Ask, epoch: u64, seq: u64, at: Millis) -> Accepted {
    let order = OrderId { uuid: ask.uuid, sale: origin.number, segment: origin.segment.index };
    let (sale, user, lines) = (origin.segment.sale.clone(), ask.user.clone(), ask.lines.clone());
    Accepted { v: VERSION, order, sale, epoch, seq, user, lines, at }
}

/// A replay is held like a new order while its row may not exist: whoever was told first may be gone.
/// The message carries the epoch of *this* reply; the journal entry, and what the buyer is told, that of
/// the first.
fn replay(origin: Origin<'_>, ask: &Ask, epoch: u64, record: &Record) -> (Outcome, Option<Parcelled>) {
    let Record { state, epoch: first, seq, accepted: at, .. } = *record;
    let outcome = Outcome::Accepted { state, replayed: true, epoch: first, seq, at };
    if record.state != OrderState::Accepted || record.released {
        return (outcome, None);
    }
    let first = Accepted::of(origin.segment, origin.number, ask.uuid, record);
    (outcome, Some(((record.epoch, record.seq), Accepted { epoch, ..first })))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use sluice_protocol::edge::room::Room;
    use sluice_shared::ids::{SaleId, UserId};
    use sluice_shared::lines::Lines;
    use sluice_shared::message::OrderMessage;
    use sluice_shared::script::Frozen;

    const UUID: [u8; 16] = [7; 16];

    fn segment() -> Arc<Segment> {
        Arc::new(Segment::new(SaleId::parse("sale").unwrap(), 0))
    }

    fn answers(epoch: u64, answer: Answer) -> Answers {
        Answers { epoch, now: Millis(50), left: Vec::new(), answers: vec![answer] }
    }

    fn record(text: &str) -> Answer {
        Answer::Replay(Box::new(Record::parse(text).unwrap()))
    }

    /// What the buyer is told of one answer, and whether it is held.
    fn told(held: &mut Held, after_broker: bool, answers: Answers) -> (Reply, usize) {
        told_with(held, &mut Spares::new(0, Duration::ZERO), after_broker, answers)
    }

    /// The same where copies are kept.
    fn told_with(
        held: &mut Held,
        spares: &mut Spares,
        after_broker: bool,
        answers: Answers,
    ) -> (Reply, usize) {
        let (segment, room) = (segment(), Room::new(1));
        let (user, lines) = (UserId::parse("u").unwrap(), Lines::parse("phone=1").unwrap());
        let ask = Ask { uuid: UUID, user, lines, expired: false };
        let (reply, mut answer) = oneshot::channel();
        let caller = Caller { place: room.take().unwrap(), reply };
        let origin = Origin { segment: &segment, number: 1, after_broker };
        let mut prepared = Prepared::new(origin, answers, &[ask], vec![caller]);
        prepared.spare(spares, Instant::now());
        let kept = prepared.hold(held, &segment, Instant::now());
        let count = kept.count;
        assert!(answer.try_recv().is_err(), "told before it was held");
        kept.tell();
        (answer.try_recv().unwrap(), count)
    }

    fn published(held: &mut Held) -> (Accepted, (u64, u64)) {
        let (_, _, parcel) = held.take(1, Instant::now()).remove(0);
        let OrderMessage::Accepted(message) = serde_json::from_slice(&parcel.body).unwrap() else {
            unreachable!("another message");
        };
        (message, parcel.entry)
    }

    #[test]
    fn an_ok_is_held_before_the_buyer_is_told() {
        let mut held = Held::new(1);
        let (reply, count) = told(&mut held, false, answers(3, Answer::Ok(9)));
        let (state, at) = (OrderState::Accepted, Millis(50));
        let outcome = Outcome::Accepted { state, replayed: false, epoch: 3, seq: 9, at };
        assert_eq!((reply.outcome, count, held.count()), (outcome, 1, 1));
        assert!(reply.confirm.is_none());
        let (message, entry) = published(&mut held);
        assert_eq!((message.epoch, message.seq, message.at, entry), (3, 9, Millis(50), (3, 9)));
    }

    #[test]
    fn a_replay_is_held_as_well_while_it_may_have_no_row() {
        let mut held = Held::new(1);
        let (reply, count) = told(&mut held, false, answers(3, record("Ah|3|4|20|20|0|-|phone=1|u")));
        assert_eq!((count, held.count()), (1, 1));
        assert!(matches!(reply.outcome, Outcome::Accepted { replayed: true, seq: 4, .. }));
    }

    #[test]
    fn a_replay_is_not_held_again_while_there_is_a_copy_of_its_epoch() {
        let (mut held, mut spares) = (Held::new(1), Spares::new(9, Duration::from_secs(30)));
        let replay = || record("Ah|3|4|20|20|0|-|phone=1|u");
        assert_eq!(told_with(&mut held, &mut spares, false, answers(3, replay())).1, 1);
        let (ticket, _, _) = held.take(1, Instant::now()).remove(0);
        spares.keep(&held.confirmed(&[ticket]).0, Instant::now());
        let (reply, count) = told_with(&mut held, &mut spares, true, answers(3, replay()));
        assert_eq!((count, held.count()), (0, 0));
        assert!(matches!(reply.outcome, Outcome::Accepted { replayed: true, seq: 4, .. }));
        assert!(reply.confirm.is_some_and(|mut confirm| confirm.try_recv().is_ok()), "confirmed before");
        assert_eq!(told_with(&mut held, &mut spares, false, answers(5, replay())).1, 1, "another epoch");
        held.close(&segment(), 3);
        let (reply, _) = told_with(&mut held, &mut spares, false, answers(3, replay()));
        assert_eq!(reply.outcome, Outcome::Unavailable, "a closed epoch");
    }

    #[test]
    fn a_replay_is_stamped_with_the_epoch_of_its_own_reply() {
        let mut held = Held::new(1);
        let (reply, _) = told(&mut held, false, answers(5, record("Ah|3|4|20|20|0|-|phone=1|u")));
        let first = Outcome::Accepted {
            state: OrderState::Accepted,
            replayed: true,
            epoch: 3,
            seq: 4,
            at: Millis(20),
        };
        assert_eq!(reply.outcome, first);
        let (message, entry) = published(&mut held);
        assert_eq!((message.epoch, message.seq, message.at, entry), (5, 4, Millis(20), (3, 4)));
        held.close(&segment(), 4);
        assert!(!held.nothing_held().is_empty());
        held.close(&segment(), 5);
        assert!(held.nothing_held().is_empty());
    }

    #[test]
    fn a_replay_that_has_its_row_is_not_held() {
        let mut held = Held::new(1);
        let (reply, count) = told(&mut held, false, answers(3, record("Ph|3|4|20|30|99|-|phone=1|u")));
        assert_eq!((count, held.count()), (0, 0));
        assert!(matches!(reply.outcome, Outcome::Accepted { state: OrderState::PendingPayment, .. }));
    }

    #[test]
    fn a_reply_of_a_closed_epoch_is_an_unknown_outcome_and_nothing_is_held() {
        for answer in [Answer::Ok(9), record("Ah|3|4|20|20|0|-|phone=1|u")] {
            let mut held = Held::new(1);
            held.close(&segment(), 3);
            let (reply, count) = told(&mut held, true, answers(3, answer));
            assert_eq!((reply.outcome, count, held.count()), (Outcome::Unavailable, 0, 0));
            assert!(reply.confirm.is_none());
        }
    }

    #[test]
    fn a_sale_that_waits_for_the_broker_hears_of_its_confirm() {
        let mut held = Held::new(1);
        let (reply, _) = told(&mut held, true, answers(3, Answer::Ok(9)));
        let mut confirm = reply.confirm.unwrap();
        let (ticket, _, _) = held.take(1, Instant::now()).remove(0);
        assert!(confirm.try_recv().is_err());
        let (_, waiters) = held.confirmed(&[ticket]);
        waiters.into_iter().for_each(|waiter| waiter.send(()).unwrap());
        assert!(confirm.try_recv().is_ok());
    }

    #[test]
    fn every_refusal_of_a_whole_batch_has_its_meaning() {
        let refused = |why: &str| Err(Fault::Refused { doing: "x", why: why.to_owned() });
        let meaning = |result| {
            let refused = judge(result).unwrap_err();
            (refused.outcome, refused.freezes)
        };
        let frozen = (Outcome::Frozen, true);
        assert_eq!(meaning(Err(Fault::NoScript { doing: "x" })), frozen);
        assert_eq!(meaning(Ok(Reserved::Frozen(Frozen::Fenced(2)))), frozen);
        assert_eq!(meaning(Ok(Reserved::Frozen(Frozen::Because("lease".into())))), frozen);
        assert_eq!(meaning(Ok(Reserved::UnknownEdge)), frozen);
        assert_eq!(meaning(refused("READONLY: no")), frozen);
        assert_eq!(meaning(refused("MISCONF: disk")), frozen);
        assert_eq!(meaning(refused("OOM: memory")), (Outcome::Overloaded, false));
        let why = "gone".to_owned();
        assert_eq!(meaning(Err(Fault::Unknown { doing: "x", why })), (Outcome::Unavailable, false));
    }

    #[test]
    fn data_older_than_what_was_shown_before_is_noticed() {
        let mark = Mark::default().after(&answers(2, Answer::Ok(8))).unwrap();
        assert!(mark.after(&answers(2, Answer::Ok(9))).is_some());
        assert!(mark.after(&answers(2, Answer::Ok(8))).is_none());
        assert!(mark.after(&answers(1, Answer::Ok(99))).is_none());
        assert!(mark.after(&answers(1, Answer::Spent)).is_none());
        assert_eq!(mark.after(&answers(2, Answer::Spent)), Some(mark));
        assert!(mark.after(&answers(3, Answer::Ok(9))).is_some());
    }
}
