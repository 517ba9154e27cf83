//! The thread of RabbitMQ's client library dies: whoever waits for it would wait for ever.

use std::net::TcpListener;
use std::time::Duration;

use sluice_shared::amqp::{AmqpError, Link};
use sluice_testkit::eventually;
use sluice_worker::config::Role;

use crate::harness::World;

const PATIENCE: Duration = Duration::from_secs(20);

/// What the library does when its broker says something unforeseen; its connections stay as they are.
fn break_down() {
    let thread = std::thread::Builder::new().name("lapin-io-loop".to_owned());
    assert!(thread.spawn(|| panic!("as it was asked to")).unwrap().join().is_err());
}

#[tokio::test]
async fn consumers_whose_client_has_broken_down_begin_anew() {
    let world = World::new(&[("phone", 100)]).await;
    let context = world.process();
    let _roles = [Role::Orders, Role::Outbox, Role::Saga].map(|role| world.run_in(context.clone(), role));
    let told = async |who: &str| {
        let order = world.reserve(who, "phone=1").await;
        world.broker.publish_orders(std::slice::from_ref(&order)).await;
        eventually("the buyer is told", PATIENCE, async || {
            world.record(&order.order).await.is_some_and(|record| record.state.as_str() == "pending_payment")
        })
        .await;
    };
    told("bob").await;
    break_down();
    for job in ["orders", "saga", "release"] {
        let restarted = format!("sluice_role_restarts_total{{job=\"{job}\"}}");
        eventually(&restarted, PATIENCE, async || {
            context.metrics.render(context.store.connections()).contains(&restarted)
        })
        .await;
    }
    told("eve").await;
}

#[tokio::test]
async fn a_broker_that_takes_the_connection_and_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://{}/sluice", silent.local_addr().unwrap());
    let connected = tokio::time::timeout(PATIENCE, Link::connect(&url, "test")).await;
    assert!(matches!(connected, Ok(Err(AmqpError::Silent(_)))), "{connected:?}");
}
