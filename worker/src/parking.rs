//! Where messages go that no retry can mend: to a queue and a table that operators look at.

use sluice_shared::amqp::{AmqpError, Delivery, Outgoing, Sender};
use sluice_shared::topology::DEAD;

use crate::store::Store;

/// Puts a message of a queue there. The books keep it even when the broker has no room for it.
///
/// # Errors
/// When the connection to the broker is broken, or the books are away: the message comes again.
pub async fn park(
    sender: &mut Sender,
    store: &Store,
    queue: &str,
    delivery: &Delivery,
    reason: &str,
) -> anyhow::Result<()> {
    tracing::error!(queue, id = delivery.id, reason, "a message is parked");
    let message =
        Outgoing { reason: Some(reason), queue: Some(queue), ..Outgoing::again(delivery, DEAD, "parked") };
    match sender.send(message).await {
        Err(error @ AmqpError::Broken(_)) => return Err(error.into()),
        Err(error) => tracing::warn!(%error, "a parked message is in the books only"),
        Ok(()) => {}
    }
    store.bounded(store.park(queue, reason, &delivery.body)).await?;
    Ok(())
}
