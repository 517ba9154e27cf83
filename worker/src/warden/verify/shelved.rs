//! Redis' side of the comparison: sums over the order map.

use std::collections::BTreeMap;

use ahash::RandomState;
use sluice_shared::ids::{SkuId, UserId};
use sluice_shared::record::Record;

use super::Findings;
use crate::warden::image::Image;
use crate::warden::scan::Field;

/// Buyers are added up in so many groups.
const GROUPS: usize = 1 << 16;

/// What buyers hold by their orders, less what their marks say: nothing in every group, if each mark is
/// the sum of its buyer's orders.
#[derive(Debug, Clone)]
struct Marks(Vec<u64>);

impl Marks {
    fn add(&mut self, hashes: &RandomState, user: &UserId, sku: &SkuId, units: u64) {
        let group = usize::try_from(hashes.hash_one(user)).unwrap_or(usize::MAX) % GROUPS;
        let sum = &mut self.0[group];
        *sum = sum.wrapping_add(hashes.hash_one((user, sku)).wrapping_mul(units));
    }

    /// The groups in which somebody's mark is not right.
    fn wrong(&self) -> impl Iterator<Item = &u64> {
        self.0.iter().filter(|sum| **sum != 0)
    }
}

/// The order map, as it is read.
#[derive(Debug, Clone)]
pub struct Shelved {
    hashes: RandomState,
    marks: Marks,
    /// The sum of the orders' hashes.
    orders: u64,
    /// Units that orders held when the head was read, and that they hold now: what went back in the same
    /// millisecond is in the head or is not.
    held: BTreeMap<SkuId, [u64; 2]>,
    torn: Findings,
}

impl Default for Shelved {
    fn default() -> Self {
        Self {
            hashes: RandomState::new(),
            marks: Marks(vec![0; GROUPS]),
            orders: 0,
            held: BTreeMap::new(),
            torn: Findings::default(),
        }
    }
}

impl Shelved {
    /// Takes a page in.
    pub fn take(&mut self, image: &Image, page: Vec<Field>) {
        for field in page {
            match field {
                Field::Order(uuid, record) => self.order(image, &uuid, &record),
                Field::Mark(user, mark) => {
                    for (sku, n) in mark.iter() {
                        self.marks.add(&self.hashes, &user, sku, n.wrapping_neg());
                    }
                }
                Field::Torn(field) if field.starts_with('@') => {
                    self.torn.note("the mark of a buyer cannot be read".to_owned());
                }
                Field::Torn(field) => self.torn.note(format!("{field} cannot be read")),
            }
        }
    }

    fn order(&mut self, image: &Image, uuid: &[u8; 16], record: &Record) {
        self.orders = self.orders.wrapping_add(self.hash(uuid));
        let held = [image.held(record), !record.released];
        for (sku, n) in record.lines.iter() {
            if !record.released {
                self.marks.add(&self.hashes, &record.user, sku, u64::from(n));
            }
            let sums = self.held.entry(sku.clone()).or_default();
            for (sum, held) in sums.iter_mut().zip(held) {
                *sum += if held { u64::from(n) } else { 0 };
            }
        }
    }

    /// What an order adds to the sum.
    pub(super) fn hash(&self, uuid: &[u8; 16]) -> u64 {
        self.hashes.hash_one(uuid)
    }

    /// The sum of all orders.
    pub(super) fn orders(&self) -> u64 {
        self.orders
    }

    /// Units of a SKU that orders held when the head was read, and that they hold now.
    pub(super) fn held(&self, sku: &SkuId) -> [u64; 2] {
        self.held.get(sku).copied().unwrap_or_default()
    }

    pub(super) fn torn(&self) -> &Findings {
        &self.torn
    }

    /// At least so many marks are not right.
    pub(super) fn wrong_marks(&self) -> usize {
        self.marks.wrong().count()
    }

    /// Another look at the same map.
    pub fn again(&self) -> Self {
        Self { hashes: self.hashes.clone(), ..Self::default() }
    }

    /// Whether some mark is not right, or was read before something was released that its buyer's order was
    /// read after: then it is right at another look.
    pub fn is_doubtful(&self) -> bool {
        self.marks.wrong().next().is_some()
    }

    /// What was not right at an earlier look too.
    pub fn confirm(&mut self, earlier: &Self) {
        for (sum, before) in self.marks.0.iter_mut().zip(&earlier.marks.0) {
            if *before == 0 {
                *sum = 0;
            }
        }
    }
}
