//! An order whose money went back may be paid again: what is owed is shown at once, whatever came before.

use std::time::Duration;

use sluice_shared::message::Accepted;
use sluice_shared::record::OrderState;
use sluice_testkit::eventually;
use sluice_worker::config::Role;
use sluice_worker::store::payments::{NoticeStatus, PaymentNotice};

use crate::harness::world::refund;
use crate::harness::{Running, World};

const PATIENCE: Duration = Duration::from_secs(5);

/// A world with one order in it, and the roles that bring Redis behind the books.
struct Scene {
    world: World,
    order: Accepted,
    roles: [Running; 2],
}

impl Scene {
    async fn new() -> Self {
        let world = World::new(&[("phone", 10)]).await;
        let roles = [world.run(Role::Outbox), world.run(Role::Saga)];
        let order = world.bought("alice", "phone=1").await;
        Self { world, order, roles }
    }

    async fn notice(&self, payment: &str, status: NoticeStatus) {
        let notice = PaymentNotice {
            payment_id: payment.to_owned(),
            order: self.order.order,
            amount: 1500,
            currency: "EUR".to_owned(),
            status,
        };
        self.world.db.store.notice(&notice).await.unwrap();
    }

    async fn becomes(&self, state: OrderState, refund: &str) {
        let row = self.world.db.store.order(&self.order.order).await.unwrap().unwrap();
        assert_eq!((row.state, row.refund.as_str()), (state, refund), "in the books");
        eventually(&format!("redis says {state:?}, {refund}"), PATIENCE, async || {
            let record = self.world.record(&self.order.order).await;
            record.is_some_and(|record| (record.state, record.refund.as_str()) == (state, refund))
        })
        .await;
    }

    async fn end(self) {
        let report =
            sluice_worker::audit::judge(&self.world.db.store, &self.world.redis, None).await.unwrap();
        // The offers of this world were never preloaded by the books; payments, and what Redis says of them, are whole.
        for name in ["R0", "P4", "X6", "X7"] {
            let equations: Vec<_> = report.sales[0].equations.iter().filter(|one| one.name == name).collect();
            assert!(!equations.is_empty() && equations.iter().all(|one| one.holds), "{name}: {equations:#?}");
        }
        for role in self.roles {
            role.stop().await;
        }
    }

    /// Paid twice, and the second payment given back.
    async fn paid_twice() -> Self {
        let scene = Self::new().await;
        scene.notice("p1", NoticeStatus::Succeeded).await;
        scene.notice("p2", NoticeStatus::Succeeded).await;
        scene.becomes(OrderState::Paid, "due").await;
        scene.notice("p2", NoticeStatus::Refunded).await;
        scene.becomes(OrderState::Paid, "done").await;
        scene
    }
}

#[tokio::test]
async fn an_operators_refund_is_due_although_another_payment_went_back() {
    for restock in [true, false] {
        let scene = Scene::paid_twice().await;
        refund(&scene.world.db, &scene.order.order, restock).await;
        scene.becomes(OrderState::Refunded, "due").await;
        scene.notice("p1", NoticeStatus::Refunded).await;
        scene.becomes(OrderState::Refunded, "done").await;
        scene.end().await;
    }
}

#[tokio::test]
async fn a_third_payment_is_due_although_the_second_one_went_back() {
    let scene = Scene::paid_twice().await;
    for payment in ["p3", "p4", "p5"] {
        scene.notice(payment, NoticeStatus::Succeeded).await;
        scene.becomes(OrderState::Paid, "due").await;
        scene.notice(payment, NoticeStatus::Refunded).await;
        scene.becomes(OrderState::Paid, "done").await;
    }
    scene.notice("p6", NoticeStatus::Succeeded).await;
    scene.becomes(OrderState::Paid, "due").await;
    scene.end().await;
}

#[tokio::test]
async fn a_cancelled_order_that_is_paid_again_is_due_again() {
    let scene = Scene::new().await;
    scene.world.db.store.cancel(&scene.order.order, &scene.order.user).await.unwrap();
    for payment in ["p1", "p2"] {
        scene.notice(payment, NoticeStatus::Succeeded).await;
        scene.becomes(OrderState::Cancelled, "due").await;
        scene.notice(payment, NoticeStatus::Refunded).await;
        scene.becomes(OrderState::Cancelled, "done").await;
    }
    scene.notice("p3", NoticeStatus::Succeeded).await;
    scene.becomes(OrderState::Cancelled, "due").await;
    scene.end().await;
}
