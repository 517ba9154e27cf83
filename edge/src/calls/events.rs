//! `GET /v1/orders/{order}/events`: an order's changes, as they come.

use sluice_shared::ids::{OrderId, UserId};
use sluice_shared::verdict::{Code, Rejection};

use super::Asked;
use crate::chain::{self, Next};
use crate::events::{self, Shown};
use crate::exchange::{Exchange, Stop};
use crate::gate::Gate;
use crate::respond::Reply;
use crate::route::nothing_here;

/// Streams to the buyer, and to the holder of a ticket of the order.
pub(super) async fn run(gate: &Gate, exchange: &mut Exchange<'_>, asked: Asked<'_>) -> Result<Next, Stop> {
    let id = OrderId::parse(asked.id).ok_or_else(nothing_here)?;
    chain::from(gate, exchange)?;
    let ticket = asked.query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("ticket=")));
    let user = match ticket {
        Some(ticket) if gate.admits(ticket, &id) => None,
        Some(_) => {
            let detail = "the ticket is not one of this order, or has expired";
            return Err(Rejection::new(Code::Unauthenticated, detail).into());
        }
        None => {
            let user = chain::identity(gate, &exchange.head().headers)?;
            gate.rates.user(&user, None, &mut exchange.context.rate)?;
            Some(user)
        }
    };
    // Followed before it is read: no change between the two is missed.
    let mut follower = gate.engine.follow(&id);
    let record = gate.record(&id).await?;
    if record.as_ref().is_some_and(|(record, _)| user.as_ref().is_some_and(|user| *user != record.user)) {
        return Err(nothing_here().into());
    }
    let (shown, owner) = match record {
        Some((record, sale)) => {
            let follower = follower.as_mut().ok_or_else(crowded)?;
            follower.knows(&record);
            (Shown::record(&id, &record, &sale.view), Some(record.user))
        }
        None if gate.engine.lacks(&id).await => return Err(nothing_here().into()),
        None => {
            exchange.context.user.clone_from(&user);
            (events::ask(gate, exchange.context, &id).await?, user)
        }
    };
    if shown.last && shown.is_known(&exchange.head().headers) {
        // A browser that is told so does not come back.
        return Ok(Next::Reply(Reply::json(204, Vec::new())));
    }
    let Some(place) = gate.streams.open(owner.as_ref().map_or(id.to_string().as_str(), UserId::as_str))
    else {
        gate.rates.tell(&mut exchange.context.rate);
        let detail = "too many event streams of this user are open; close one";
        return Err(Rejection::new(Code::RateLimited, detail).into());
    };
    events::stream(gate, exchange, &id, shown, follower).await?;
    drop(place);
    Ok(Next::Done)
}

fn crowded() -> Rejection {
    Rejection::new(Code::Overloaded, "too many event streams are open; poll the order instead")
}
