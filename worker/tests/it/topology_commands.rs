//! RabbitMQ is brought to the description, and told apart from it.

use sluice_shared::amqp::{AmqpError, Outgoing};
use sluice_shared::topology::{DEAD, PARKED, Topology};
use sluice_testkit::required;
use sluice_worker::command::topology::management::Management;
use sluice_worker::command::topology::{Difference, apply, differences, put_policies};

use crate::harness::Vhost;
use crate::harness::broker::SHARDS;

#[tokio::test]
async fn apply_makes_it_as_described_and_again_changes_nothing() {
    let vhost = Vhost::new().await;
    let management = Management::of(&required("SLUICE_TEST_AMQP_MANAGEMENT_URL"), &vhost.url).unwrap();
    let topology = Topology::new(SHARDS);
    // The harness declares queues, but sets no policies.
    let before = differences(&management, &topology).await.unwrap();
    assert_eq!(before.len(), topology.policies.len(), "{before:?}");
    for _ in 0..2 {
        apply(&management, &vhost.url, &topology).await.unwrap();
        assert_eq!(differences(&management, &topology).await.unwrap(), []);
    }
    let more = Topology::new(SHARDS + 1);
    let missing = differences(&management, &more).await.unwrap();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing.iter().all(|one| matches!(one, Difference::Missing(_))), "{missing:?}");
    let fewer = differences(&management, &Topology::new(SHARDS - 1)).await.unwrap();
    assert!(fewer.iter().all(|one| matches!(one, Difference::Unknown(_))), "{fewer:?}");
    let mut other = topology.clone();
    other.policies[0].definition["max-length"] = 7.into();
    other.queues[0].arguments["x-message-ttl"] = 1000.into();
    let changed = differences(&management, &other).await.unwrap();
    assert!(matches!(changed[..], [Difference::Stuck { .. }, Difference::Changed { .. }]), "{changed:?}");
}

#[tokio::test]
async fn a_full_queue_of_parked_messages_refuses_and_keeps_what_it_has() {
    let vhost = Vhost::new().await;
    let management = Management::of(&required("SLUICE_TEST_AMQP_MANAGEMENT_URL"), &vhost.url).unwrap();
    let mut topology = Topology::new(SHARDS);
    let rest = topology.policies.iter_mut().find(|policy| policy.pattern.contains("parked")).unwrap();
    rest.definition["max-length"] = 3.into();
    put_policies(&management, &topology).await.unwrap();
    let link = vhost.link().await;
    let publisher = link.publisher().await.unwrap();
    let (mut taken, mut refused) = (0_u8, 0);
    // A quorum queue begins to refuse some messages after its limit, and a policy comes to it after a while.
    while refused == 0 && taken < 250 {
        let new = Outgoing { exchange: DEAD, key: "parked", id: "t", kind: "t", ..Outgoing::default() };
        match publisher.publish(Outgoing { body: &[taken], ..new }).await.unwrap().await {
            Ok(()) => taken += 1,
            Err(AmqpError::Refused) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(refused, 1, "{taken} were taken");
    let kept = vhost.drain(PARKED, usize::from(taken)).await;
    assert_eq!(kept[0].body, [0], "the oldest is there");
    link.close().await;
}
