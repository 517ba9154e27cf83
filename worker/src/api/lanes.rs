//! What is seen to in groups: payment notices, cancellations and look-ups of buyers, each at a desk of its
//! own. So buyers, however many ask, take no connection from the notices, and no more than a few in all.

use std::sync::Arc;

use sluice_shared::ids::OrderId;
use sluice_shared::keys::Segment;
use sluice_shared::message::Accepted;
use sluice_shared::verdict::{Code, Rejection};

use super::desk::{Seen, Work};
use super::locate::{Located, Locator};
use super::reply::{self, no_such_order};
use crate::store::orders::{Cancelled, Wish};
use crate::store::payments::{NoticeOutcome, PaymentNotice};
use crate::store::{Store, StoreError};

/// What came of a group: each outcome, or what is to be seen to alone.
fn seen<T>(outcomes: Result<Vec<Option<T>>, StoreError>, of: usize) -> Vec<Seen<T>> {
    match outcomes {
        Ok(outcomes) => {
            outcomes.into_iter().map(|one| one.map_or(Seen::Aside, |one| Seen::To(Ok(one)))).collect()
        }
        // One that the books cannot take, or that waits for a lock, does not spoil the others.
        Err(error) if of > 1 && (error.is_of_data() || error.is_locked()) => {
            std::iter::repeat_with(|| Seen::Aside).take(of).collect()
        }
        Err(error) => {
            let why = reply::store(error);
            std::iter::repeat_with(|| Seen::To(Err(why.clone()))).take(of).collect()
        }
    }
}

/// Books payment notices.
#[derive(Debug)]
pub struct Notices {
    store: Store,
}

impl Notices {
    /// Into these books.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Work for Notices {
    type Request = PaymentNotice;
    type Outcome = NoticeOutcome;

    async fn group(&self, notices: &[PaymentNotice]) -> Vec<Seen<NoticeOutcome>> {
        seen(self.store.bounded(self.store.notices(notices)).await, notices.len())
    }

    async fn alone(&self, notice: &PaymentNotice) -> Result<NoticeOutcome, Rejection> {
        self.store.bounded(self.store.notice(notice)).await.map_err(reply::store)
    }
}

/// Looks for orders.
#[derive(Debug)]
pub struct LookUps(pub Arc<Locator>);

impl Work for LookUps {
    type Request = OrderId;
    type Outcome = Located;

    async fn group(&self, orders: &[OrderId]) -> Vec<Seen<Located>> {
        self.0.find_all(orders).await.into_iter().map(Seen::To).collect()
    }

    async fn alone(&self, order: &OrderId) -> Result<Located, Rejection> {
        self.0.find(order).await
    }
}

/// Cancels orders for their buyers.
#[derive(Debug)]
pub struct Cancels {
    store: Store,
    locator: Arc<Locator>,
}

impl Cancels {
    /// In these books; orders that are not written yet are looked for.
    pub fn new(store: Store, locator: Arc<Locator>) -> Self {
        Self { store, locator }
    }

    /// The order as its record tells it, where it is this buyer's.
    fn accepted(wish: &Wish, found: Located) -> Option<Accepted> {
        let Located::Record(sale, record) = found else { return None };
        let Wish { order, user } = wish;
        let segment = Segment::new(sale, order.segment);
        (record.user == *user).then(|| Accepted::of(&segment, order.sale, order.uuid, &record))
    }

    /// Those that the books do not have: cancelled before they are written, or nobody's.
    async fn unwritten(&self, wishes: &[Wish]) -> Vec<Seen<Cancelled>> {
        let orders: Vec<OrderId> = wishes.iter().map(|wish| wish.order).collect();
        let found = self.locator.find_all(&orders).await;
        let (mut all, mut here, mut on_shelf) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (wish, found)) in wishes.iter().zip(found).enumerate() {
            all.push(match found {
                Err(why) => Seen::To(Err(why)),
                // Written between the two looks.
                Ok(Located::Row(row)) if row.user == wish.user => Seen::Aside,
                Ok(found) => match Self::accepted(wish, found) {
                    Some(accepted) => {
                        here.push(at);
                        on_shelf.push(accepted);
                        Seen::Aside
                    }
                    None => Seen::To(Err(no_such_order())),
                },
            });
        }
        let cancelled = self.store.bounded(self.store.cancel_some_unwritten(&on_shelf)).await;
        for (at, one) in here.into_iter().zip(seen(cancelled, on_shelf.len())) {
            all[at] = one;
        }
        all
    }
}

impl Work for Cancels {
    type Request = Wish;
    type Outcome = Cancelled;

    async fn group(&self, wishes: &[Wish]) -> Vec<Seen<Cancelled>> {
        let mut all = seen(self.store.bounded(self.store.cancel_some(wishes)).await, wishes.len());
        let unknown = |(at, seen): (usize, &Seen<Cancelled>)| {
            matches!(seen, Seen::To(Ok(Cancelled::Unknown))).then_some(at)
        };
        let places: Vec<usize> = all.iter().enumerate().filter_map(unknown).collect();
        if !places.is_empty() {
            let wishes: Vec<Wish> = places.iter().filter_map(|at| wishes.get(*at)).cloned().collect();
            for (at, one) in places.into_iter().zip(self.unwritten(&wishes).await) {
                all[at] = one;
            }
        }
        all
    }

    async fn alone(&self, wish: &Wish) -> Result<Cancelled, Rejection> {
        let Wish { order, user } = wish;
        let cancel = async || self.store.bounded(self.store.cancel(order, user)).await.map_err(reply::store);
        let known = cancel().await?;
        if known != Cancelled::Unknown {
            return Ok(known);
        }
        let found = self.locator.find(order).await?;
        let cancelled = match found {
            Located::Row(ref row) if row.user == *user => cancel().await?,
            found => {
                let accepted = Self::accepted(wish, found).ok_or_else(no_such_order)?;
                self.store.bounded(self.store.cancel_unwritten(&accepted)).await.map_err(reply::store)?
            }
        };
        match cancelled {
            // On the shelf, and yet nothing for the books: the sale is being re-opened.
            Cancelled::Unknown => {
                Err(Rejection::new(Code::Unavailable, "the order cannot be cancelled at this moment"))
            }
            cancelled => Ok(cancelled),
        }
    }
}
