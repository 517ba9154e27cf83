//! Every ten seconds, and when the broker has lost its messages: whatever fell between two stores is
//! picked up, and drift is measured.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_shared::ids::{OrderId, SkuId};
use sluice_shared::keys::Shelf;
use sluice_shared::sale::SaleView;

use super::image::Image;
use super::outlet::Outlet;
use super::{Trouble, Warden, reopen};

/// An accepted order without a row is published again at this age: relay and sweep have had their time.
const UNWRITTEN_MS: i64 = 5_000;
/// How soon a look for lost orders that failed is repeated.
const AGAIN: Duration = Duration::from_millis(500);
/// A dead order whose units are still held is released again after this time.
const UNRELEASED: Duration = Duration::from_secs(30);
/// Reading the maps takes at most one part in so many of Redis' time.
const SHARE: u32 = 10;
/// Orders asked for at once.
const PAGE: usize = 5_000;

/// Works until it is dropped.
pub async fn run(warden: Arc<Warden>) {
    let every = warden.context.config.reconcile.reconcile;
    let mut reconciler =
        Reconciler { outlet: Outlet::new(&warden, "reconcile"), asked: HashMap::new(), warden };
    let mut took = Duration::ZERO;
    loop {
        let lost = tokio::time::timeout(every.max(took * SHARE), reconciler.warden.orders_lost.notified());
        // What was lost may be of any age: relay and sweep do not know of it.
        let age = if lost.await.is_ok() { 0 } else { UNWRITTEN_MS };
        let began = Instant::now();
        if let Err(trouble) = reconciler.round(age).await {
            if age == 0 {
                tokio::time::sleep(AGAIN).await;
                reconciler.warden.orders_lost.notify_one();
            }
            tracing::warn!(%trouble, "reconciling is held up");
        }
        took = began.elapsed();
    }
}

struct Reconciler {
    warden: Arc<Warden>,
    outlet: Outlet,
    /// Orders whose release was asked for again, and when.
    asked: HashMap<OrderId, Instant>,
}

/// What one sale's segments hold together.
#[derive(Default)]
struct Tally {
    held: BTreeMap<SkuId, i64>,
    unwritten: BTreeMap<SkuId, i64>,
    off_shelf: i64,
    orders: Vec<OrderId>,
}

impl Reconciler {
    async fn round(&mut self, age: i64) -> Result<(), Trouble> {
        let serving = self.warden.floor(|floor| floor.serving.clone());
        for view in self.warden.views().await? {
            let mut tally = Tally::default();
            let mut whole = true;
            for segment in 0..view.segments {
                let shelf = Shelf::new(view.sale.clone(), segment);
                match serving.get(&shelf) {
                    Some(epoch) => self.segment(&view, &shelf, *epoch, age, &mut tally).await?,
                    None => whole = false,
                }
            }
            if whole {
                self.sale(&view, &tally).await?;
            }
        }
        self.asked.retain(|_, at| at.elapsed() < UNRELEASED * 2);
        let (store, redis) = (&self.warden.context.store, self.warden.redis());
        if let Err(trouble) = crate::api::stock::complete_pending(store, redis).await {
            tracing::warn!(%trouble, "stock changes wait");
        }
        Ok(store.forget_old_barriers().await?)
    }

    /// Publishes what has no row at that age, in milliseconds.
    async fn segment(
        &mut self,
        view: &SaleView,
        shelf: &Shelf,
        epoch: u64,
        age: i64,
        tally: &mut Tally,
    ) -> Result<(), Trouble> {
        let image = Image::read(self.warden.redis(), shelf).await?;
        let all = reopen::unwritten(&self.warden, shelf, view.number, &image, |_| true).await?;
        let old = |order: &sluice_shared::message::Accepted| image.at.0 - order.at.0 >= age;
        let (due, lost): (Vec<_>, Vec<_>) =
            all.iter().filter(|order| old(order)).cloned().partition(|order| order.epoch == epoch);
        if !due.is_empty() {
            tracing::warn!(shelf = shelf.name(), orders = due.len(), "published again: no rows");
            self.outlet.orders(&due).await?;
            self.warden.metrics().republished.inc_by(due.len() as u64);
        }
        for order in lost.iter().take(10) {
            let order = &order.order;
            tracing::error!(%order, "accepted in an epoch that has ended, and not in the books");
        }
        for order in &all {
            for (sku, n) in order.lines.iter() {
                *tally.unwritten.entry(sku.clone()).or_default() += i64::from(n);
            }
        }
        let held = image.held();
        for (sku, init) in &image.head.init {
            let left = image.head.stock.get(sku).copied().flatten().unwrap_or(0);
            let held = held.get(sku).map_or(0, |n| signed(*n));
            tally.off_shelf += (left + held - signed(*init)).abs();
            *tally.held.entry(sku.clone()).or_default() += held;
        }
        let name = |uuid: &[u8; 16]| OrderId { uuid: *uuid, sale: view.number, segment: shelf.segment };
        tally.orders.extend(image.orders.iter().filter(|(_, r)| !r.released).map(|(uuid, _)| name(uuid)));
        Ok(())
    }

    /// Compares what Redis holds with what the books have taken, and releases what is dead.
    async fn sale(&mut self, view: &SaleView, tally: &Tally) -> Result<(), Trouble> {
        let taken = self.warden.context.store.taken(&view.sale).await?;
        let mut surplus = 0;
        for (sku, taken) in taken {
            let of = |units: &BTreeMap<SkuId, i64>| units.get(&sku).copied().unwrap_or(0);
            surplus += (of(&tally.held) - of(&tally.unwritten) - signed(taken)).max(0);
        }
        self.drift(view, "R1", tally.off_shelf);
        self.drift(view, "X2", surplus);
        self.drift(view, "unwritten", tally.unwritten.values().sum());
        if surplus > 0 { self.release(view, &tally.orders).await } else { Ok(()) }
    }

    /// Asks again for releases that got lost on their way.
    async fn release(&mut self, view: &SaleView, held: &[OrderId]) -> Result<(), Trouble> {
        for page in held.chunks(PAGE) {
            let mut dead = self.warden.context.store.dead_since(page, UNRELEASED).await?;
            dead.retain(|(order, _)| self.asked.get(order).is_none_or(|at| at.elapsed() > UNRELEASED));
            if dead.is_empty() {
                continue;
            }
            tracing::warn!(sale = %view.sale, orders = dead.len(), "releases are asked for again");
            self.warden.context.store.release_again(&view.sale, &dead).await?;
            self.warden.metrics().released_again.inc_by(dead.len() as u64);
            self.asked.extend(dead.into_iter().map(|(order, _)| (order, Instant::now())));
        }
        Ok(())
    }

    fn drift(&self, view: &SaleView, equation: &str, units: i64) {
        let labels = [("sale", view.sale.to_string()), ("equation", equation.to_owned())];
        #[allow(clippy::cast_precision_loss)]
        self.warden.metrics().drift.get_or_create(&labels).set(units as f64);
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
