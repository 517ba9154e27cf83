//! Is what Redis holds exactly what the books say? Asked while a segment is frozen, drained, and
//! every message of its epoch handled: then nothing may be under way, and any difference is a loss.

use std::collections::{BTreeMap, BTreeSet};

use ahash::AHashMap;
use sluice_shared::ids::SkuId;
use sluice_shared::record::OrderState;

use super::image::{Head, Image};
use super::mark::Mark;
use crate::store::books::OrderFact;

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

/// The books' side.
#[derive(Debug, Clone, Default)]
pub struct Ledgered {
    /// The epoch that PostgreSQL has ended, or is about to.
    pub epoch: u64,
    /// Every order of the segment.
    pub orders: AHashMap<[u8; 16], OrderFact>,
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

/// Compares.
pub fn compare(image: &Image, books: &Ledgered) -> Verdict {
    if image.keys == 0 {
        return Verdict::Lost(vec![format!("everything; the books have {} orders", books.orders.len())], 0);
    }
    let mut found = Findings::default();
    if image.head.fence.is_none() {
        found.note("meta is missing".to_owned());
    }
    if image.head.epoch > books.epoch {
        found.behind(format!("redis is in epoch {}, the books in {}", image.head.epoch, books.epoch));
    }
    for field in &image.torn {
        found.note(format!("{field} cannot be read"));
    }
    if image.head.seq > 0 && !image.has_journal {
        found.note("the journal is missing".to_owned());
    }
    let unwritten = orders(image, books, &mut found);
    units(image, books, &mut found);
    marks(image, &mut found);
    match (found.behind, found.count, unwritten) {
        (true, ..) => Verdict::BooksBehind(found.told()),
        (false, 0, 0) => Verdict::Equal,
        (false, 0, n) => Verdict::Unwritten(n),
        (false, _, n) => Verdict::Lost(found.told(), n),
    }
}

#[derive(Default)]
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

/// Every row has its record and every record its row; answers how many accepted orders have none but
/// can still be written.
fn orders(image: &Image, books: &Ledgered, found: &mut Findings) -> usize {
    for (uuid, row) in &books.orders {
        let name = || hex::encode(uuid);
        match image.orders.get(uuid) {
            None => found.note(format!("order {} has a row but no record", name())),
            Some(record) if row.live && record.released => {
                found.note(format!("order {} is live but its units were released", name()));
            }
            Some(record) if record.lines != row.lines || record.user != row.user => {
                found.note(format!("order {} has other lines or another user in redis", name()));
            }
            Some(_) => {}
        }
    }
    let mut unwritten = 0;
    for (uuid, record) in image.orders.iter().filter(|(uuid, _)| !books.orders.contains_key(*uuid)) {
        let fresh = record.state == OrderState::Accepted && !record.released;
        if fresh && record.epoch == books.epoch {
            unwritten += 1;
            continue;
        }
        let (name, word) = (hex::encode(uuid), record.state.as_str());
        let what = format!("order {name} ({word}, epoch {}) has no row", record.epoch);
        // Only a row moves a record on from accepted.
        if fresh { found.note(what) } else { found.behind(what) }
    }
    unwritten
}

/// Stock left + units held = units put on the shelf.
fn units(image: &Image, books: &Ledgered, found: &mut Findings) {
    let (head, held) = (&image.head, image.held());
    for sku in &books.skus {
        let Some(init) = head.init.get(sku) else {
            found.note(format!("{sku}: nothing says how many units were put on the shelf"));
            continue;
        };
        let Some(Some(left)) = head.stock.get(sku) else {
            found.note(format!("{sku}: the units left are missing"));
            continue;
        };
        let held = held.get(sku).copied().unwrap_or(0);
        if i128::from(*left) + i128::from(held) != i128::from(*init) {
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

/// Every mark is the sum of its buyer's orders.
fn marks(image: &Image, found: &mut Findings) {
    let (due, none) = (image.held_by_user(), Mark::default());
    for (user, mark) in &due {
        if image.marks.get(user) != Some(mark) {
            let there = image.marks.get(user).unwrap_or(&none);
            found.note(format!("the mark of {user} is \"{there}\", his orders hold \"{mark}\""));
        }
    }
    for user in image.marks.keys().filter(|user| !due.contains_key(*user)) {
        found.note(format!("the mark of {user} has no orders"));
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
    use super::super::image::Entry;
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

    fn entry(n: u8, state: OrderState, released: bool) -> Entry {
        Entry {
            state,
            released,
            epoch: 3,
            seq: u64::from(n),
            accepted: Millis(0),
            updated: Millis(0),
            refund: Refund::None,
            lines: Lines::parse("phone=1").unwrap(),
            user: user(n),
        }
    }

    /// Ten units; order 1 is paid for, order 2 was released, order 3 expired and not yet released.
    fn sound() -> (Image, Ledgered) {
        let head = Head {
            fence: Some("demo:0:3".to_owned()),
            epoch: 3,
            seq: 3,
            init: BTreeMap::from([(sku(), 10)]),
            limits: BTreeMap::from([(sku(), 1)]),
            stock: BTreeMap::from([(sku(), Some(8))]),
            ..Head::default()
        };
        let orders = AHashMap::from([
            ([1; 16], entry(1, OrderState::PendingPayment, false)),
            ([2; 16], entry(2, OrderState::Expired, true)),
            ([3; 16], entry(3, OrderState::PendingPayment, false)),
        ]);
        let mark = Mark::parse("phone=1").unwrap();
        let marks = AHashMap::from([(user(1), mark.clone()), (user(3), mark)]);
        let image = Image { head, orders, marks, keys: 4, has_journal: true, ..Image::default() };
        let rows =
            AHashMap::from([([1; 16], row(1, true)), ([2; 16], row(2, false)), ([3; 16], row(3, false))]);
        let init = Some(BTreeMap::from([(sku(), 10)]));
        (
            image,
            Ledgered { epoch: 3, orders: rows, init, skus: BTreeSet::from([sku()]), ..Ledgered::default() },
        )
    }

    #[test]
    fn what_fits_is_equal_and_a_release_under_way_fits() {
        let (image, books) = sound();
        assert_eq!(compare(&image, &books), Verdict::Equal);
    }

    #[test]
    fn an_accepted_order_without_a_row_is_drained_again() {
        let (image, mut books) = sound();
        let mut image = image;
        books.orders.remove(&[3; 16]);
        image.orders.get_mut(&[3; 16]).unwrap().state = OrderState::Accepted;
        assert_eq!(compare(&image, &books), Verdict::Unwritten(1));
        // Also where something is lost besides: what is restored from the books would lack it.
        let mut torn = image.clone();
        torn.head.stock.clear();
        assert!(matches!(compare(&torn, &books), Verdict::Lost(_, 1)));
        // Of an epoch that is over it cannot be written any more.
        image.orders.get_mut(&[3; 16]).unwrap().epoch = 2;
        assert!(matches!(compare(&image, &books), Verdict::Lost(..)));
    }

    #[test]
    fn every_loss_is_a_difference() {
        type Loss = fn(&mut Image, &mut Ledgered);
        let losses: [(&str, Loss); 11] = [
            ("record", |image, _| drop(image.orders.remove(&[2; 16]))),
            ("live record", |image, _| drop(image.orders.remove(&[1; 16]))),
            ("mark", |image, _| drop(image.marks.remove(&user(1)))),
            ("mark too many", |image, _| drop(image.marks.insert(user(9), Mark::default()))),
            ("unit", |image, _| image.head.stock.extend([(sku(), Some(9))])),
            ("stock", |image, _| image.head.stock.clear()),
            ("meta", |image, _| image.head.fence = None),
            ("journal", |image, _| image.has_journal = false),
            ("torn", |image, _| image.torn.push("x".to_owned())),
            ("released", |image, _| image.orders.get_mut(&[1; 16]).unwrap().released = true),
            ("books' stock", |_, books| books.init.as_mut().unwrap().extend([(sku(), 11)])),
        ];
        for (name, lose) in losses {
            let (mut image, mut books) = sound();
            lose(&mut image, &mut books);
            assert!(matches!(compare(&image, &books), Verdict::Lost(..)), "{name}");
        }
    }

    #[test]
    fn a_segment_without_trace_is_lost() {
        let (_, mut books) = sound();
        assert!(matches!(compare(&Image::default(), &books), Verdict::Lost(..)));
        books.orders.clear();
        assert!(matches!(compare(&Image::default(), &books), Verdict::Lost(..)));
    }

    #[test]
    fn books_that_know_less_than_redis_mend_nothing() {
        let (image, mut books) = sound();
        books.orders.remove(&[1; 16]);
        assert!(matches!(compare(&image, &books), Verdict::BooksBehind(_)));
        let (mut image, books) = sound();
        image.head.epoch = 4;
        assert!(matches!(compare(&image, &books), Verdict::BooksBehind(_)));
    }
}
