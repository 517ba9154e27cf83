//! The delay queue: a due task is always in exactly one hand.

use std::time::Duration;

use sluice_shared::clock::Millis;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::script::DelayQueue;
use sluice_testkit::PrivateRedis;

const LONG: Duration = Duration::from_secs(60);

async fn queue() -> (PrivateRedis, Redis, DelayQueue) {
    let server = PrivateRedis::start();
    let redis = server.connect();
    let queue = DelayQueue::new(0);
    queue.load(&redis).await.unwrap();
    (server, redis, queue)
}

fn task(due: i64, name: &str) -> (Millis, String) {
    (Millis(due), name.to_owned())
}

#[tokio::test]
async fn only_due_tasks_are_claimed_and_each_by_one_worker() {
    let (_server, redis, queue) = queue().await;
    let tasks = [task(1, "a"), task(2, "b"), task(i64::MAX / 2, "later")];
    queue.schedule(&redis, &tasks).await.unwrap();
    assert_eq!(queue.claim(&redis, "w1", LONG, 1).await.unwrap(), ["a"]);
    assert_eq!(queue.claim(&redis, "w2", LONG, 10).await.unwrap(), ["b"]);
    assert!(queue.claim(&redis, "w3", LONG, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_finished_task_is_removed_only_by_its_owner() {
    let (_server, redis, queue) = queue().await;
    queue.schedule(&redis, &[task(1, "a")]).await.unwrap();
    let claimed = queue.claim(&redis, "w1", LONG, 10).await.unwrap();
    assert_eq!(queue.finish(&redis, "w2", &claimed).await.unwrap(), 0);
    assert_eq!(queue.finish(&redis, "w1", &claimed).await.unwrap(), 1);
    assert_eq!(queue.finish(&redis, "w1", &claimed).await.unwrap(), 0);
    for key in sluice_shared::keys::delay(0) {
        assert_eq!(redis.run::<u64>("test", cmd("EXISTS").arg(key)).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_task_whose_lease_ran_out_is_given_to_another_worker() {
    let (_server, redis, queue) = queue().await;
    queue.schedule(&redis, &[task(1, "a")]).await.unwrap();
    let claimed = queue.claim(&redis, "dead", Duration::ZERO, 10).await.unwrap();
    assert_eq!(queue.recover(&redis, 10).await.unwrap(), 1);
    assert_eq!(queue.claim(&redis, "w2", LONG, 10).await.unwrap(), ["a"]);
    assert_eq!(queue.finish(&redis, "dead", &claimed).await.unwrap(), 0, "its lease was lost");
    assert_eq!(queue.recover(&redis, 10).await.unwrap(), 0);
    assert_eq!(queue.finish(&redis, "w2", &claimed).await.unwrap(), 1);
}

#[tokio::test]
async fn scheduling_again_moves_a_waiting_task_and_leaves_a_claimed_one() {
    let (_server, redis, queue) = queue().await;
    queue.schedule(&redis, &[task(i64::MAX / 2, "a")]).await.unwrap();
    queue.schedule(&redis, &[task(1, "a")]).await.unwrap();
    assert_eq!(queue.claim(&redis, "w1", LONG, 10).await.unwrap(), ["a"]);
    queue.schedule(&redis, &[task(1, "a")]).await.unwrap();
    assert!(queue.claim(&redis, "w2", LONG, 10).await.unwrap().is_empty());
}
