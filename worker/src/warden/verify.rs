//! Is what Redis holds exactly what the books say? Asked while a segment is frozen, drained, and
//! every message of its epoch handled: then nothing may be under way, and any difference is a loss.
//!
//! Nothing here holds a sale: what is compared one by one comes page by page, a row with its record, and
//! of all the rest there are sums. That no record is without a row, and that every mark is the sum of its
//! buyer's orders, is proved by sums of keyed hashes that are equal only if what was added up is.
//! No buyer is named: what is said here goes into the log.

use std::collections::{BTreeMap, BTreeSet};

use sluice_shared::ids::SkuId;
use sluice_shared::record::{OrderState, Record};

use super::image::{Head, Image};
use crate::store::books::OrderFact;

mod shelved;

pub use shelved::Shelved;

/// Differences told by name, at the most.
const NAMED: usize = 20;

/// What the comparison says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything fits.
    Equal,
    /// Accepted orders have no row yet: they must be drained again.
    Unwritten(usize),
    /// Redis has lost data, or has it wrong; what, for people. The books can mend it, but for accepted
    /// orders that have no row yet: so many.
    Lost(Vec<String>, usize),
    /// Redis knows what the books have known and do not know any more; what, for people.
    BooksBehind(Vec<String>),
}

/// The books' side, without the orders.
#[derive(Debug, Clone, Default)]
pub struct Ledgered {
    /// The epoch that PostgreSQL has ended, or is about to.
    pub epoch: u64,
    /// Units that this segment should have been given in all; `None` where that is only known for all
    /// segments together.
    pub init: Option<BTreeMap<SkuId, u64>>,
    /// Units that it is given when it is restored: what the books say, whatever Redis was told of it.
    pub given: Option<BTreeMap<SkuId, u64>>,
    /// Stock changes that are in those units and not finished, with their SKU.
    pub changes: Vec<(String, SkuId)>,
    /// The SKUs of the sale.
    pub skus: BTreeSet<SkuId>,
}

/// A comparison under way.
#[derive(Debug)]
pub struct Comparison<'a> {
    image: &'a Image,
    shelved: &'a Shelved,
    books: &'a Ledgered,
    found: Findings,
    rows: usize,
    /// The sum of the hashes of orders that have a row and a record.
    matched: u64,
    /// The highest sequence of all rows.
    seq: u64,
    /// Accepted orders without a row.
    unwritten: usize,
}

impl<'a> Comparison<'a> {
    /// What the segment holds, and what it should.
    pub fn new(image: &'a Image, shelved: &'a Shelved, books: &'a Ledgered) -> Self {
        let mut found = shelved.torn().clone();
        if image.head.fence.is_none() {
            found.note("meta is missing".to_owned());
        }
        if image.head.epoch > books.epoch {
            found.behind(format!("redis is in epoch {}, the books in {}", image.head.epoch, books.epoch));
        }
        for field in &image.torn {
            found.note(format!("{field} cannot be read"));
        }
        if image.head.seq > 0 && !image.has_journal() {
            found.note("the journal is missing".to_owned());
        }
        Self { image, shelved, books, found, rows: 0, matched: 0, seq: 0, unwritten: 0 }
    }

    /// A row, with its record.
    pub fn row(&mut self, uuid: &[u8; 16], row: &OrderFact, record: Option<&Record>) {
        self.rows += 1;
        self.seq = self.seq.max(row.seq);
        let name = || hex::encode(uuid);
        match record {
            None => self.found.note(format!("order {} has a row but no record", name())),
            Some(record) if record.lines != row.lines || record.user != row.user => {
                self.found.note(format!("order {} has other lines or another user in redis", name()));
            }
            Some(record) if is_given_back(row, record) => {
                self.found.note(format!("order {} is live but its units were released", name()));
            }
            Some(_) => {}
        }
        if record.is_some() {
            self.matched = self.matched.wrapping_add(self.shelved.hash(uuid));
        }
    }

    /// Whether records without a row have to be looked for, all rows being compared.
    pub fn has_strays(&self) -> bool {
        self.matched != self.shelved.orders()
    }

    /// A record without a row. An accepted one can still be written.
    pub fn stray(&mut self, uuid: &[u8; 16], record: &Record) {
        let fresh = record.state == OrderState::Accepted && !record.released;
        if fresh && record.epoch == self.books.epoch {
            self.unwritten += 1;
            return;
        }
        let (name, word) = (hex::encode(uuid), record.state.as_str());
        let what = format!("order {name} ({word}, epoch {}) has no row", record.epoch);
        // Only a row moves a record on from accepted.
        if fresh { self.found.note(what) } else { self.found.behind(what) }
    }

    /// The highest sequence of the rows.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// What it comes to.
    pub fn verdict(mut self) -> Verdict {
        if self.image.keys() == 0 {
            return Verdict::Lost(vec![format!("everything; the books have {} orders", self.rows)], 0);
        }
        self.units();
        let marks = self.shelved.wrong_marks();
        if marks > 0 {
            self.found
                .note(format!("the marks of {marks} buyers, or more, are not the sums of their orders"));
        }
        match (self.found.behind, self.found.count, self.unwritten) {
            (true, ..) => Verdict::BooksBehind(self.found.told()),
            (false, 0, 0) => Verdict::Equal,
            (false, 0, n) => Verdict::Unwritten(n),
            (false, _, n) => Verdict::Lost(self.found.told(), n),
        }
    }

    /// Stock left + units held = units put on the shelf.
    fn units(&mut self) {
        let (head, shelved, books, found) = (&self.image.head, self.shelved, self.books, &mut self.found);
        for sku in &books.skus {
            let Some(init) = head.init.get(sku) else {
                found.note(format!("{sku}: nothing says how many units were put on the shelf"));
                continue;
            };
            let Some(Some(left)) = head.stock.get(sku) else {
                found.note(format!("{sku}: the units left are missing"));
                continue;
            };
            let held = shelved.held(sku);
            if held.iter().all(|held| i128::from(*left) + i128::from(*held) != i128::from(*init)) {
                let [held, _] = held;
                found.note(format!("{sku}: {left} left + {held} held ≠ {init} put on the shelf"));
            }
            let booked = books.init.as_ref().map(|init| init.get(sku).copied().unwrap_or(0));
            if let Some(booked) = booked.filter(|booked| booked != init) {
                found.note(format!("{sku}: {init} put on the shelf, {booked} by the books"));
            }
        }
        for sku in head.stock.keys().filter(|sku| !books.skus.contains(*sku)) {
            found.note(format!("{sku}: not in the books"));
        }
    }
}

/// Whether a record says that units are back which its row says are sold.
pub fn is_given_back(row: &OrderFact, record: &Record) -> bool {
    row.live && record.released
}

#[derive(Debug, Clone, Default)]
struct Findings {
    count: usize,
    named: Vec<String>,
    behind: bool,
}

impl Findings {
    /// Something that the books must have known once.
    fn behind(&mut self, what: String) {
        self.behind = true;
        self.note(what);
    }

    fn note(&mut self, what: String) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(what);
        }
    }

    fn told(mut self) -> Vec<String> {
        if self.count > self.named.len() {
            self.named.push(format!("… and {} more", self.count - self.named.len()));
        }
        self.named
    }
}

/// The units that the segment should have been given: the offers' stock, less what a change has put
/// into the books but not yet into Redis, and the reverse.
pub fn expected(
    stocks: Vec<(SkuId, u64)>,
    pending: &[(String, SkuId, i64, bool)],
    head: &Head,
) -> BTreeMap<SkuId, u64> {
    let mut expected: BTreeMap<SkuId, u64> = stocks.into_iter().collect();
    for (key, sku, delta, booked) in pending {
        let shelved = head.changes.contains(key);
        let missing = match (shelved, *booked) {
            (true, false) => *delta,
            (false, true) => -*delta,
            _ => 0,
        };
        if let Some(units) = expected.get_mut(sku) {
            *units = units.saturating_add_signed(missing);
        }
    }
    expected
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::image::Kind;
    use super::super::mark::Mark;
    use super::super::scan::Field;
    use super::*;
    use sluice_shared::clock::Millis;
    use sluice_shared::ids::UserId;
    use sluice_shared::lines::Lines;
    use sluice_shared::record::Refund;

    fn sku() -> SkuId {
        SkuId::parse("phone").unwrap()
    }

    fn user(n: u8) -> UserId {
        UserId::parse(&format!("u{n}")).unwrap()
    }

    fn row(n: u8, live: bool) -> OrderFact {
        OrderFact {
            state: if live { OrderState::PendingPayment } else { OrderState::Expired },
            live,
            lines: Lines::parse("phone=1").unwrap(),
            user: user(n),
            epoch: 3,
            seq: u64::from(n),
            amount: 100,
            currency: *b"EUR",
            refund: Refund::None,
            created: Millis(0),
            updated: Millis(0),
            pay_before: Millis(0),
            accepted: Millis(0),
        }
    }

    fn entry(n: u8, state: OrderState, released: bool) -> Record {
        Record {
            state,
            released,
            epoch: 3,
            seq: u64::from(n),
            accepted: Millis(0),
            updated: Millis(0),
            pay_before: None,
            refund: Refund::None,
            lines: Lines::parse("phone=1").unwrap(),
            user: user(n),
        }
    }

    /// Everything of a segment, and of its books.
    #[derive(Clone)]
    struct Whole {
        image: Image,
        orders: BTreeMap<[u8; 16], Record>,
        marks: BTreeMap<UserId, Mark>,
        torn: Vec<String>,
        books: Ledgered,
        rows: BTreeMap<[u8; 16], OrderFact>,
    }

    impl Whole {
        fn shelved(&self) -> Shelved {
            let orders = self.orders.iter().map(|(uuid, record)| Field::Order(*uuid, record.clone()));
            let marks = self.marks.iter().map(|(user, mark)| Field::Mark(user.clone(), mark.clone()));
            let torn = self.torn.iter().map(|field| Field::Torn(field.clone()));
            let mut shelved = Shelved::default();
            shelved.take(&self.image, orders.chain(marks).chain(torn).collect());
            shelved
        }

        fn compare(&self) -> Verdict {
            let shelved = self.shelved();
            let mut comparison = Comparison::new(&self.image, &shelved, &self.books);
            for (uuid, row) in &self.rows {
                comparison.row(uuid, row, self.orders.get(uuid));
            }
            if comparison.has_strays() {
                for (uuid, record) in self.orders.iter().filter(|(uuid, _)| !self.rows.contains_key(*uuid)) {
                    comparison.stray(uuid, record);
                }
            }
            comparison.verdict()
        }
    }

    /// Ten units; order 1 is paid for, order 2 was released, order 3 expired and not yet released.
    fn sound() -> Whole {
        let head = Head {
            fence: Some("demo:0:3".to_owned()),
            epoch: 3,
            seq: 3,
            init: BTreeMap::from([(sku(), 10)]),
            limits: BTreeMap::from([(sku(), 1)]),
            stock: BTreeMap::from([(sku(), Some(8))]),
            ..Head::default()
        };
        let orders = BTreeMap::from([
            ([1; 16], entry(1, OrderState::PendingPayment, false)),
            ([2; 16], entry(2, OrderState::Expired, true)),
            ([3; 16], entry(3, OrderState::PendingPayment, false)),
        ]);
        let mark = Mark::parse("phone=1").unwrap();
        let marks = BTreeMap::from([(user(1), mark.clone()), (user(3), mark)]);
        let image = Image { head, at: Millis(1), kinds: [Kind::Right; 4], ..Image::default() };
        let rows =
            BTreeMap::from([([1; 16], row(1, true)), ([2; 16], row(2, false)), ([3; 16], row(3, false))]);
        let init = Some(BTreeMap::from([(sku(), 10)]));
        let books = Ledgered { epoch: 3, init, skus: BTreeSet::from([sku()]), ..Ledgered::default() };
        Whole { image, orders, marks, torn: Vec::new(), books, rows }
    }

    #[test]
    fn what_fits_is_equal_and_a_release_under_way_fits() {
        assert_eq!(sound().compare(), Verdict::Equal);
        // And one that came after the head was read.
        let mut whole = sound();
        let order = whole.orders.get_mut(&[3; 16]).unwrap();
        (order.released, order.updated) = (true, Millis(1));
        whole.marks.remove(&user(3));
        assert_eq!(whole.compare(), Verdict::Equal);
    }

    #[test]
    fn an_accepted_order_without_a_row_is_drained_again() {
        let mut whole = sound();
        whole.rows.remove(&[3; 16]);
        whole.orders.get_mut(&[3; 16]).unwrap().state = OrderState::Accepted;
        assert_eq!(whole.compare(), Verdict::Unwritten(1));
        // Also where something is lost besides: what is restored from the books would lack it.
        let mut torn = whole.clone();
        torn.image.head.stock.clear();
        assert!(matches!(torn.compare(), Verdict::Lost(_, 1)));
        // Of an epoch that is over it cannot be written any more.
        whole.orders.get_mut(&[3; 16]).unwrap().epoch = 2;
        assert!(matches!(whole.compare(), Verdict::Lost(..)));
    }

    #[test]
    fn every_loss_is_a_difference() {
        type Loss = fn(&mut Whole);
        let losses: [(&str, Loss); 14] = [
            ("record", |whole| drop(whole.orders.remove(&[2; 16]))),
            ("live record", |whole| drop(whole.orders.remove(&[1; 16]))),
            ("mark", |whole| drop(whole.marks.remove(&user(1)))),
            ("mark too many", |whole| drop(whole.marks.insert(user(9), Mark::parse("phone=1").unwrap()))),
            ("another's mark", |whole| {
                let mark = whole.marks.remove(&user(1)).unwrap();
                whole.marks.insert(user(7), mark);
            }),
            ("mark of another thing", |whole| {
                whole.marks.insert(user(1), Mark::parse("case=1").unwrap());
            }),
            ("unit", |whole| whole.image.head.stock.extend([(sku(), Some(9))])),
            ("stock", |whole| whole.image.head.stock.clear()),
            ("meta", |whole| whole.image.head.fence = None),
            ("journal", |whole| whole.image.kinds[3] = Kind::Missing),
            ("torn", |whole| whole.torn.push("x".to_owned())),
            ("torn mark", |whole| whole.torn.push("@ann".to_owned())),
            ("released", |whole| whole.orders.get_mut(&[1; 16]).unwrap().released = true),
            ("books' stock", |whole| whole.books.init.as_mut().unwrap().extend([(sku(), 11)])),
        ];
        for (name, lose) in losses {
            let mut whole = sound();
            lose(&mut whole);
            let Verdict::Lost(what, _) = whole.compare() else { panic!("{name}") };
            assert!(what.iter().all(|what| !what.contains("u1") && !what.contains('@')), "{what:?}");
        }
    }

    #[test]
    fn a_mark_is_wrong_only_if_it_was_so_before() {
        let mut early = sound();
        early.marks.remove(&user(1));
        let mut late = sound();
        late.marks.remove(&user(3));
        let earlier = early.shelved();
        assert!(earlier.is_doubtful() && late.shelved().is_doubtful());
        let mut again = earlier.again();
        again.take(&late.image, late.orders.iter().map(|(u, r)| Field::Order(*u, r.clone())).collect());
        again.take(&late.image, late.marks.iter().map(|(u, m)| Field::Mark(u.clone(), m.clone())).collect());
        again.confirm(&earlier);
        assert!(!again.is_doubtful());
    }

    #[test]
    fn a_segment_without_trace_is_lost() {
        let mut whole = sound();
        (whole.image, whole.orders, whole.marks) = (Image::default(), BTreeMap::new(), BTreeMap::new());
        assert_eq!(whole.compare(), Verdict::Lost(vec!["everything; the books have 3 orders".to_owned()], 0));
        whole.rows.clear();
        assert!(matches!(whole.compare(), Verdict::Lost(..)));
    }

    #[test]
    fn books_that_know_less_than_redis_mend_nothing() {
        let mut whole = sound();
        whole.rows.remove(&[1; 16]);
        assert!(matches!(whole.compare(), Verdict::BooksBehind(_)));
        let mut whole = sound();
        whole.image.head.epoch = 4;
        assert!(matches!(whole.compare(), Verdict::BooksBehind(_)));
    }
}
