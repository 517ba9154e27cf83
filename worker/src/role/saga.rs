//! The `saga` role: reads what the books tell and takes the purchase's next steps.

use sluice_shared::amqp::Delivery;
use sluice_shared::message::{OrderEvents, VERSION};
use sluice_shared::topology::{RELEASE, SAGA};

use std::sync::Arc;

use crate::consumer::{self, Handler, Outcome};
use crate::process::{Context, Stop, keep};
use crate::saga::purchase::{Purchase, StepError};
use crate::store::outbox::EVENTS_MAX;

/// Orders that were written or moved on.
struct Forward(Arc<Purchase>);

/// Orders whose units go back.
struct Back(Arc<Purchase>);

impl Handler for Forward {
    const QUEUE: &'static str = SAGA;
    const TAG: &'static str = "saga";
    const NEVER_GIVES_UP: bool = false;

    async fn handle(&self, group: &[Delivery]) -> Vec<Outcome> {
        steps(&self.0, group).await
    }

    fn join(group: &[Delivery]) -> Vec<Vec<u8>> {
        join(group)
    }
}

impl Handler for Back {
    const QUEUE: &'static str = RELEASE;
    const TAG: &'static str = "release";
    // A unit that does not go back is lost to the sale.
    const NEVER_GIVES_UP: bool = true;

    async fn handle(&self, group: &[Delivery]) -> Vec<Outcome> {
        steps(&self.0, group).await
    }

    fn join(group: &[Delivery]) -> Vec<Vec<u8>> {
        join(group)
    }
}

async fn steps(purchase: &Purchase, group: &[Delivery]) -> Vec<Outcome> {
    let read: Vec<Result<OrderEvents, String>> = group.iter().map(read).collect();
    let good: Vec<&OrderEvents> = read.iter().flatten().collect();
    let mut taken = purchase.step(&good).await.into_iter();
    let mut outcomes = Vec::with_capacity(group.len());
    for (delivery, read) in group.iter().zip(&read) {
        outcomes.push(match read {
            Err(why) => Outcome::Dead(why.clone()),
            Ok(_) => match taken.next() {
                Some(taken) => outcome(purchase, delivery, taken).await,
                None => Outcome::later("no step was taken"),
            },
        });
    }
    outcomes
}

fn read(delivery: &Delivery) -> Result<OrderEvents, String> {
    let message: OrderEvents =
        serde_json::from_slice(&delivery.body).map_err(|error| format!("not a message of ours: {error}"))?;
    if !(1..=VERSION).contains(&message.v) {
        return Err(format!("schema {} is not known here, {VERSION} is", message.v));
    }
    Ok(message)
}

/// The same events in as few messages as may be: a sale that stays frozen has many that wait for it. One
/// that cannot be read, or written anew, stays as it is.
fn join(group: &[Delivery]) -> Vec<Vec<u8>> {
    let (mut events, mut bodies) = (Vec::new(), Vec::new());
    for delivery in group {
        match read(delivery) {
            Ok(message) => events.extend(message.events),
            Err(_) => bodies.push(delivery.body.clone()),
        }
    }
    for events in events.chunks(EVENTS_MAX) {
        let message = OrderEvents { v: VERSION, events: events.to_vec() };
        match serde_json::to_vec(&message) {
            Ok(body) => bodies.push(body),
            Err(_) => return group.iter().map(|delivery| delivery.body.clone()).collect(),
        }
    }
    bodies
}

async fn outcome(purchase: &Purchase, delivery: &Delivery, taken: Result<(), StepError>) -> Outcome {
    match taken {
        Ok(()) => Outcome::Done,
        Err(StepError::NotNow(why) | StepError::Refused(why)) => Outcome::later(why),
        Err(StepError::Frozen { why, pause }) => Outcome::Later { why, pause },
        Err(StepError::Failed { why, orders }) => {
            if consumer::is_last(delivery) && purchase.stuck(&orders).await.is_err() {
                return Outcome::later(why);
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
