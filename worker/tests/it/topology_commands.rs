//! RabbitMQ is brought to the description, and told apart from it.

use sluice_shared::testing::required;
use sluice_shared::topology::Topology;
use sluice_worker::topology_command::management::Management;
use sluice_worker::topology_command::{Difference, apply, differences};

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
