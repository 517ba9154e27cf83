//! The `saga` role: reads what the books tell and takes the purchase's next steps.

use sluice_shared::amqp::Delivery;
use sluice_shared::message::{OrderEvents, VERSION};
use sluice_shared::topology::{RELEASE, SAGA};

use std::sync::Arc;

use crate::consumer::{self, Handler, Outcome};
use crate::role::{Context, Stop, keep};
use crate::saga::purchase::{Purchase, StepError};

/// Orders that were written or moved on.
struct Forward(Arc<Purchase>);

/// Orders whose units go back.
struct Back(Arc<Purchase>);

impl Handler for Forward {
    const QUEUE: &'static str = SAGA;
    const TAG: &'static str = "saga";
    const NEVER_GIVES_UP: bool = false;

    async fn handle(&self, delivery: &Delivery) -> Outcome {
        step(&self.0, delivery).await
    }
}

impl Handler for Back {
    const QUEUE: &'static str = RELEASE;
    const TAG: &'static str = "release";
    // A unit that does not go back is lost to the sale.
    const NEVER_GIVES_UP: bool = true;

    async fn handle(&self, delivery: &Delivery) -> Outcome {
        step(&self.0, delivery).await
    }
}

async fn step(purchase: &Purchase, delivery: &Delivery) -> Outcome {
    let message: OrderEvents = match serde_json::from_slice(&delivery.body) {
        Ok(message) => message,
        Err(error) => return Outcome::Dead(format!("not a message of ours: {error}")),
    };
    if !(1..=VERSION).contains(&message.v) {
        return Outcome::Dead(format!("schema {} is not known here, {VERSION} is", message.v));
    }
    match purchase.step(&message).await {
        Ok(()) => Outcome::Done,
        Err(StepError::NotNow(why)) => Outcome::Later(why),
        Err(StepError::Failed { why, orders }) => {
            if consumer::is_last(delivery) && purchase.stuck(&orders).await.is_err() {
                return Outcome::Later(why);
            }
            Outcome::Retry(why)
        }
    }
}

/// Runs until told to stop; each queue on its own.
pub async fn run(context: Context, stop: Stop) -> anyhow::Result<()> {
    let purchase = Arc::new(Purchase::new(context.redis.clone(), context.store.clone()));
    let forward = {
        let (context, stop, purchase) = (context.clone(), stop.clone(), purchase.clone());
        move || {
            let (context, stop, handler) = (context.clone(), stop.clone(), Forward(purchase.clone()));
            async move { consumer::run(&context, &handler, stop).await }
        }
    };
    let back = {
        let (context, stop) = (context.clone(), stop.clone());
        move || {
            let (context, stop, handler) = (context.clone(), stop.clone(), Back(purchase.clone()));
            async move { consumer::run(&context, &handler, stop).await }
        }
    };
    tokio::join!(
        keep("saga", context.metrics.clone(), stop.clone(), forward),
        keep("release", context.metrics.clone(), stop.clone(), back)
    );
    Ok(())
}
