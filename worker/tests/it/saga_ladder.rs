//! The retry ladder: what failed comes back to its own queue, and what used it up is parked.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluice_shared::amqp::{Delivery, Outgoing};
use sluice_shared::topology::{EVENTS, LADDER, PARKED, RELEASE, RETRY, SAGA, WAITING};
use sluice_testkit::eventually;
use sluice_worker::consumer::{self, Handler, Outcome};
use tokio::sync::watch;

use crate::harness::World;

/// The metric that counts messages which were put off.
const LATER: &str = "sluice_jobs_total{job=\"saga\",outcome=\"later\"}";

/// Fails as often as told, then succeeds.
struct Clumsy {
    failures: u32,
    seen: AtomicU32,
    /// Attempts as the messages told them, four bits each.
    attempts: AtomicU32,
}

impl Clumsy {
    fn new(failures: u32) -> Self {
        Self { failures, seen: AtomicU32::new(0), attempts: AtomicU32::new(0) }
    }

    fn fails(&self, delivery: &Delivery) -> Outcome {
        let seen = self.seen.fetch_add(1, Ordering::SeqCst);
        self.attempts.fetch_or(delivery.attempt << (4 * seen), Ordering::SeqCst);
        if seen < self.failures { Outcome::Retry("clumsy".to_owned()) } else { Outcome::Done }
    }
}

struct Mortal(Clumsy);

impl Handler for Mortal {
    const QUEUE: &'static str = SAGA;
    const TAG: &'static str = "saga";
    const NEVER_GIVES_UP: bool = false;

    async fn handle(&self, group: &[Delivery]) -> Vec<Outcome> {
        group.iter().map(|delivery| self.0.fails(delivery)).collect()
    }
}

struct Immortal(Clumsy);

impl Handler for Immortal {
    const QUEUE: &'static str = RELEASE;
    const TAG: &'static str = "release";
    const NEVER_GIVES_UP: bool = true;

    async fn handle(&self, group: &[Delivery]) -> Vec<Outcome> {
        group.iter().map(|delivery| self.0.fails(delivery)).collect()
    }
}

#[tokio::test]
async fn a_message_that_fails_comes_back_to_its_own_queue_after_ten_seconds() {
    let world = World::new(&[("phone", 10)]).await;
    let messages = [("order.created".to_owned(), b"1".to_vec()), ("stock.release".to_owned(), b"2".to_vec())];
    world.broker.publish(EVENTS, &messages).await;
    let (mortal, immortal) = (Mortal(Clumsy::new(1)), Immortal(Clumsy::new(1)));
    let (stop, stopped) = watch::channel(false);
    let began = Instant::now();
    let both = async {
        let both =
            async || (mortal.0.seen.load(Ordering::SeqCst), immortal.0.seen.load(Ordering::SeqCst)) == (2, 2);
        eventually("both come again", Duration::from_secs(20), both).await;
        stop.send_replace(true);
    };
    let (first, second, ()) = tokio::join!(
        consumer::run(&world.context, &mortal, stopped.clone()),
        consumer::run(&world.context, &immortal, stopped.clone()),
        both
    );
    first.unwrap();
    second.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(mortal.0.attempts.load(Ordering::SeqCst), 0x10);
    assert_eq!(immortal.0.attempts.load(Ordering::SeqCst), 0x10);
}

/// Lets every message wait until it is told otherwise.
#[derive(Default)]
struct Patient {
    ready: AtomicBool,
    done: AtomicU32,
}

impl Handler for Patient {
    const QUEUE: &'static str = SAGA;
    const TAG: &'static str = "saga";
    const NEVER_GIVES_UP: bool = false;

    async fn handle(&self, group: &[Delivery]) -> Vec<Outcome> {
        let ready = self.ready.load(Ordering::SeqCst);
        let outcome = |delivery: &Delivery| match ready {
            true if delivery.attempt == 0 => {
                self.done.fetch_add(1, Ordering::SeqCst);
                Outcome::Done
            }
            true => Outcome::Dead("it had not failed".to_owned()),
            false => Outcome::later("patient"),
        };
        group.iter().map(outcome).collect()
    }
}

#[tokio::test]
async fn messages_that_only_wait_come_back_within_seconds_however_many_they_are() {
    let world = World::new(&[("phone", 10)]).await;
    const ALL: u32 = 600;
    let message = ("order.created".to_owned(), b"x".to_vec());
    world.broker.publish(EVENTS, &vec![message; ALL as usize]).await;
    let patient = Patient::default();
    let (stop, stopped) = watch::channel(false);
    let waited = async || {
        let text = world.context.metrics.render(world.db.store.connections());
        let later = text.lines().find_map(|line| line.strip_prefix(LATER)).unwrap_or("0");
        later.trim().parse::<f64>().unwrap() >= f64::from(ALL)
    };
    let judge = async {
        eventually("all were put off", Duration::from_secs(20), waited).await;
        patient.ready.store(true, Ordering::SeqCst);
        let done = async || patient.done.load(Ordering::SeqCst) == ALL;
        eventually("all are done", Duration::from_secs(6), done).await;
        stop.send_replace(true);
    };
    let (ran, ()) = tokio::join!(consumer::run(&world.context, &patient, stopped), judge);
    ran.unwrap();
}

#[tokio::test]
async fn every_step_of_the_ladder_has_a_queue_for_every_reader() {
    let world = World::new(&[("phone", 10)]).await;
    for (step, _) in [WAITING].iter().chain(&LADDER) {
        for queue in [SAGA, RELEASE] {
            world.broker.publish(RETRY, &[(format!("{step}.{queue}"), b"x".to_vec())]).await;
        }
        assert_eq!(world.broker.drain(&format!("sluice.retry.{step}"), 2).await.len(), 2);
    }
}

#[tokio::test]
async fn a_message_that_used_the_ladder_up_is_parked_but_a_release_never_is() {
    let world = World::new(&[("phone", 10)]).await;
    let link = world.broker.link().await;
    let publisher = link.publisher().await.unwrap();
    let (id, sent, sale) = ("t", Some(1_700_000_000), Some("demo"));
    for key in ["order.created", "stock.release"] {
        let message = Outgoing {
            exchange: EVENTS,
            key,
            id,
            kind: key,
            sent,
            sale,
            body: b"x",
            attempt: 3,
            ..Outgoing::default()
        };
        publisher.publish(message).await.unwrap().await.unwrap();
    }
    let (mortal, immortal) = (Mortal(Clumsy::new(9)), Immortal(Clumsy::new(9)));
    let (stop, stopped) = watch::channel(false);
    let judge = async {
        let parked = &world.broker.drain(PARKED, 1).await[0];
        let again = &world.broker.drain("sluice.retry.60s", 1).await[0];
        // What an operator tells them apart by stays, wherever they go.
        for (message, kind, attempt) in [(parked, "order.created", 3), (again, "stock.release", 4)] {
            assert_eq!((message.kind.as_str(), message.id.as_str(), message.sent), (kind, id, sent));
            assert_eq!((message.sale.as_deref(), message.attempt), (sale, attempt));
            assert_eq!(message.body, b"x");
        }
        assert_eq!(parked.reason.as_deref(), Some("failed 4 times, at last: clumsy"));
        assert_eq!(parked.queue.as_deref(), Some(SAGA));
        assert_eq!((again.reason.as_deref(), again.queue.as_deref()), (Some("clumsy"), None));
        let kept = async || world.db.count("SELECT count(*) FROM parked").await == 1;
        eventually("the books keep it", Duration::from_secs(5), kept).await;
        stop.send_replace(true);
    };
    let (first, second, ()) = tokio::join!(
        consumer::run(&world.context, &mortal, stopped.clone()),
        consumer::run(&world.context, &immortal, stopped.clone()),
        judge
    );
    first.unwrap();
    second.unwrap();
    let kept = world.db.texts("SELECT queue || ': ' || reason FROM parked").await;
    assert_eq!(kept, ["sluice.saga: failed 4 times, at last: clumsy"]);
    link.close().await;
}
