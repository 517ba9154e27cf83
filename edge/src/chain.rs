//! The filters that a request passes, in the order that the outside contract fixes, cheapest first. Read
//! [`buyer`] first, then `calls/buy.rs`.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use sluice_shared::ids::{SaleId, UserId};
use sluice_shared::token::Claim;
use sluice_shared::verdict::{Code, Rejection};

use crate::engine::LiveSale;
use crate::exchange::{Context, Exchange, Stop, Target};
use crate::fields::Fields;
use crate::filter::{guard, token};
use crate::gate::Gate;
use crate::respond::Reply;
use crate::route::nothing_here;

/// What happens to a request that nothing stopped.
#[derive(Debug)]
pub enum Next {
    /// It is answered.
    Reply(Reply),
    /// It goes to the context's target.
    Forward,
    /// Its answer was a stream, which has ended.
    Done,
}

/// A buyer who has passed every filter that needs only the head.
#[derive(Debug)]
pub struct Buyer {
    /// The sale that he comes to.
    pub sale: Arc<LiveSale>,
    /// Who he is.
    pub user: UserId,
    /// His sale token.
    pub claim: Claim,
}

/// A purchase as its head shows it.
pub fn buyer(
    gate: &Gate,
    fields: &(impl Fields + ?Sized),
    context: &mut Context,
    id: &str,
) -> Result<Buyer, Rejection> {
    let (sale, user) = visitor(gate, fields, context, id)?;
    let claim = token::claim(&gate.keys.now().token.keys, fields, &sale.view, &user)?;
    Ok(Buyer { sale, user, claim })
}

/// Authenticates a visitor of a sale and takes from the buckets of the address, the user, the sale and the
/// gate; from here on the answer tells what is left in them.
pub fn visitor(
    gate: &Gate,
    fields: &(impl Fields + ?Sized),
    context: &mut Context,
    id: &str,
) -> Result<(Arc<LiveSale>, UserId), Rejection> {
    let sale = known(gate, id)?;
    address(gate, fields, context)?;
    let user = identity(gate, fields)?;
    gate.rates.tell(&mut context.rate);
    gate.rates.user(&user, Some(sale.view.number), &mut context.rate)?;
    Ok((sale, user))
}

/// What is not ours: for the shop, if there is one.
pub fn elsewhere(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<Next, Stop> {
    if !gate.has_upstream() {
        return Err(nothing_here().into());
    }
    let (fields, context) = exchange.split();
    context.client = gate.trusted.client(context.peer, fields);
    if gate.limit_proxied {
        gate.rates.address(context.client, &mut context.rate)?;
    }
    guard::length(&exchange.head().headers, gate.limits.upstream_body_bytes)?;
    let headers = &exchange.head().headers;
    // Two of them might mean one user to us and another to the shop.
    if headers.get_all(AUTHORIZATION).iter().nth(1).is_none() && headers.contains_key(AUTHORIZATION) {
        exchange.context.user = identity(gate, headers).ok();
    }
    exchange.context.target = Target::Upstream;
    Ok(Next::Forward)
}

/// `unknown_sale`, once the gate knows which sales there are.
pub fn known(gate: &Gate, id: &str) -> Result<Arc<LiveSale>, Rejection> {
    let sale = SaleId::parse(id).ok().and_then(|_| gate.engine.sale(id));
    sale.ok_or_else(|| match gate.engine.knows_sales() {
        true => Rejection::new(Code::UnknownSale, "there is no such sale; check its id"),
        false => Rejection::new(Code::Unavailable, "the gate is starting; try again"),
    })
}

/// `rate_limited`, by address.
pub fn from(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<(), Rejection> {
    let (fields, context) = exchange.split();
    address(gate, fields, context)
}

/// `rate_limited`, by address, which is known from here on.
pub fn address(gate: &Gate, fields: &(impl Fields + ?Sized), context: &mut Context) -> Result<(), Rejection> {
    context.client = gate.trusted.client(context.peer, fields);
    gate.rates.address(context.client, &mut context.rate)
}

/// `unauthenticated`. By Redis' clock: this machine's may be wrong. Where the two are far apart, nobody
/// knows which is.
pub fn identity(gate: &Gate, fields: &(impl Fields + ?Sized)) -> Result<UserId, Rejection> {
    if gate.engine.doubts_clocks() {
        return Err(Rejection::new(
            Code::Unavailable,
            "who you are cannot be judged at the moment; try again",
        ));
    }
    gate.keys.now().identity.user(fields, gate.engine.clock().now())
}

/// Authenticates a customer of an order and takes from the buckets of the address and the user.
pub fn customer(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<UserId, Rejection> {
    from(gate, exchange)?;
    let user = identity(gate, &exchange.head().headers)?;
    gate.rates.user(&user, None, &mut exchange.context.rate)?;
    exchange.context.user = Some(user.clone());
    Ok(user)
}
