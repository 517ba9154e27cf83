//! The life of a request: each call of the gate as the list of what may stop it, in the order that
//! the outside contract fixes. Read [`buy`] first.

use std::sync::Arc;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, ORIGIN};
use http::{HeaderValue, Method};
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::lines::Lines;
use sluice_shared::receipt::Receipt;
use sluice_shared::sale::SaleStep;
use sluice_shared::token::Claim;
use sluice_shared::verdict::{Code, Rejection};

use crate::engine::{Ask, LiveSale, PublicState};
use crate::events::Shown;
use crate::exchange::{Context, Exchange, Stop, Target};
use crate::fields::Fields;
use crate::filter::reserve::Taken;
use crate::filter::{body, guard, latch, reserve, token};
use crate::gate::Gate;
use crate::metrics::Kind;
use crate::respond::Reply;
use crate::route::{Call, Route, normalise, nothing_here, route};
use crate::{claim, events, view};

const TRUE: HeaderValue = HeaderValue::from_static("true");

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

/// Judges one request.
pub async fn judge(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<Next, Stop> {
    let Some(target) = exchange.head().uri.path_and_query().cloned() else {
        return Err(nothing_here().into());
    };
    let path = normalise(target.path());
    match route(&path) {
        Route::Private => Err(nothing_here().into()),
        Route::Elsewhere => elsewhere(gate, exchange),
        Route::Ours(call) => {
            exchange.context.origin = gate.origin(exchange.head().headers.field(ORIGIN.as_str()));
            if preflight(exchange, call) {
                return Ok(Next::Reply(gate.preflight(call)));
            }
            let has_body = exchange.has_body();
            guard::ours(&exchange.head().headers, has_body)?;
            if !call.allows(&exchange.head().method) {
                exchange.context.allow = call.allow();
                let detail = format!("allowed here: {}", call.allow());
                return Err(Rejection::new(Code::MethodNotAllowed, detail).into());
            }
            guard::length(&exchange.head().headers, gate.limits.body_bytes)?;
            ours(gate, exchange, call, target.query()).await
        }
    }
}

async fn ours(
    gate: &Gate,
    exchange: &mut Exchange<'_>,
    call: Call<'_>,
    query: Option<&str>,
) -> Result<Next, Stop> {
    exchange.context.kind = kind(call);
    match call {
        Call::Sale(id) => {
            let (fields, context) = exchange.split();
            Ok(Next::Reply(show(gate, fields, context, id)?))
        }
        Call::Token(id) => {
            let (fields, context) = exchange.split();
            let (sale, user) = visitor(gate, fields, context, id)?;
            body::nothing(&exchange.body(gate.limits.body_bytes, gate.limits.body_timeout).await?)?;
            Ok(Next::Reply(issue(gate, &sale, &user)?))
        }
        Call::Buy(id) => buy(gate, exchange, id).await,
        Call::Order(id) => order(gate, exchange, id).await,
        Call::Events(id) => follow(gate, exchange, id, query).await,
        Call::Claim => {
            let user = customer(gate, exchange)?;
            let body = exchange.body(gate.limits.body_bytes, gate.limits.body_timeout).await?;
            Ok(Next::Reply(claim::claim(gate, exchange.context, &user, &body).await?))
        }
        Call::Keys => {
            from(gate, exchange)?;
            Ok(Next::Reply(Reply::json(200, gate.receipts.jwks())))
        }
        Call::Callback => {
            let (fields, context) = exchange.split();
            context.client = gate.trusted.client(context.peer, fields);
            gate.rates.notice(context.client, &mut context.rate)?;
            exchange.context.target = Target::Callback;
            Ok(Next::Forward)
        }
        Call::Nothing => Err(nothing_here().into()),
    }
}

/// What is counted.
pub fn kind(call: Call<'_>) -> Kind {
    match call {
        Call::Sale(_) => Kind::Sale,
        Call::Token(_) => Kind::Token,
        Call::Buy(_) => Kind::Buy,
        Call::Order(_) => Kind::Order,
        Call::Events(_) => Kind::Events,
        Call::Claim => Kind::Claim,
        Call::Keys => Kind::Keys,
        Call::Callback => Kind::Callback,
        Call::Nothing => Kind::Other,
    }
}

/// `POST /v1/sales/{sale}/orders`: the purchase.
async fn buy(gate: &Gate, exchange: &mut Exchange<'_>, id: &str) -> Result<Next, Stop> {
    let (fields, context) = exchange.split();
    let buyer = buyer(gate, fields, context, id)?;
    let lines = body::lines(&exchange.body(gate.limits.body_bytes, gate.limits.body_timeout).await?)?;
    Ok(Next::Reply(take(gate, buyer, lines).await?))
}

/// Whom the filters before the body let pass.
#[derive(Debug)]
pub struct Buyer {
    sale: Arc<LiveSale>,
    user: UserId,
    claim: Claim,
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

/// Takes the units, unless it is plain that there are none.
pub async fn take(gate: &Gate, buyer: Buyer, lines: Lines) -> Result<Reply, Rejection> {
    let (Buyer { sale, user, claim }, now) = (buyer, gate.engine.clock().now());
    if sale.turns_away() {
        return Err(reserve::frozen());
    }
    latch::judge(&sale, &claim, &lines, now)?;
    let bought = (!gate.receipts.is_empty()).then(|| (user.clone(), lines.clone()));
    let ask = Ask { uuid: claim.order.uuid, user, lines, expired: now >= claim.expires };
    let taken = reserve::judge(gate.engine.reserve(&sale, ask).await, &sale.view);
    let taken = taken.map_err(|refused| match refused.code {
        // What waits now is gone by then.
        Code::Overloaded => refused.after(gate.engine.estimate()),
        _ => refused,
    })?;
    gate.metrics.accepted(taken.replayed);
    let receipt = bought.and_then(|(user, lines)| {
        let Taken { epoch, seq, at: accepted, .. } = taken;
        let (order, sale) = (claim.order, sale.view.sale.clone());
        gate.receipts.sign(&Receipt { order, sale, user, lines, epoch, seq, accepted })
    });
    let status_url = format!("/v1/orders/{}", claim.order);
    let ticket = gate.ticket(&claim.order);
    let (seconds, receipt) = (gate.engine.estimate(), receipt.as_deref());
    let body = view::accepted(&claim.order, taken.state, &status_url, &ticket, seconds, receipt);
    // An order id is plain ASCII.
    let location = HeaderValue::from_str(&status_url).unwrap_or(HeaderValue::from_static("/v1/orders"));
    let reply = Reply::json(202, body).with("Location", location);
    Ok(if taken.replayed { reply.with("Idempotent-Replayed", TRUE) } else { reply })
}

/// Who comes to a sale, within his buckets; from here on the answer tells what is left in them.
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

/// `POST /v1/sales/{sale}/token`, of a visitor whose body was empty.
pub fn issue(gate: &Gate, sale: &LiveSale, user: &UserId) -> Result<Reply, Rejection> {
    let (view, now, keys) = (&sale.view, gate.engine.clock().now(), gate.keys.now());
    let armed = view.step == SaleStep::Open && now.after(keys.token.lead) >= view.starts_at;
    match sale.state(now) {
        PublicState::Frozen => return Err(reserve::frozen()),
        PublicState::Paused => return Err(reserve::paused()),
        PublicState::Ended => return Err(reserve::ended()),
        PublicState::Scheduled if !armed => return Err(reserve::not_started(view)),
        PublicState::Scheduled | PublicState::Open | PublicState::SoldOut => {}
    }
    let expires = view.ends_at.min(now.after(keys.token.max));
    let issued = keys.token.keys.issue(&view.sale, view.number, view.segments, user, expires);
    let (token, order) = issued.ok_or_else(reserve::unknown)?;
    Ok(Reply::json(200, view::token(&token, &order, expires)))
}

/// `GET /v1/sales/{sale}`.
pub fn show(
    gate: &Gate,
    fields: &(impl Fields + ?Sized),
    context: &mut Context,
    id: &str,
) -> Result<Reply, Rejection> {
    let sale = known(gate, id)?;
    address(gate, fields, context)?;
    Ok(Reply::json(200, view::sale(&sale, gate.engine.clock().now())))
}

/// `GET` and `DELETE /v1/orders/{id}`.
async fn order(gate: &Gate, exchange: &mut Exchange<'_>, id: &str) -> Result<Next, Stop> {
    let id = OrderId::parse(id).ok_or_else(nothing_here)?;
    let user = customer(gate, exchange)?;
    let cancels = exchange.head().method == Method::DELETE;
    match gate.record(&id).await {
        Ok(Some((record, _))) if record.user != user => return Err(nothing_here().into()),
        Ok(Some((record, sale))) if !cancels => {
            return Ok(Next::Reply(Reply::json(200, view::order(&id, &record, &sale.view))));
        }
        Ok(None) if gate.engine.lacks(&id).await => return Err(nothing_here().into()),
        Err(refused) if !cancels => return Err(refused.into()),
        // The workers' word counts: they cancel also while Redis is away.
        Ok(_) | Err(_) => {}
    }
    exchange.context.lookup = Some(gate.lookups.take()?);
    exchange.context.target = Target::Order(id);
    Ok(Next::Forward)
}

/// `GET /v1/orders/{id}/events`.
async fn follow(
    gate: &Gate,
    exchange: &mut Exchange<'_>,
    id: &str,
    query: Option<&str>,
) -> Result<Next, Stop> {
    let id = OrderId::parse(id).ok_or_else(nothing_here)?;
    from(gate, exchange)?;
    let ticket = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("ticket=")));
    let user = match ticket {
        Some(ticket) if gate.admits(ticket, &id) => None,
        Some(_) => {
            let detail = "the ticket is not one of this order, or has expired";
            return Err(Rejection::new(Code::Unauthenticated, detail).into());
        }
        None => {
            let user = identity(gate, &exchange.head().headers)?;
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

/// What is not ours: for the shop, if there is one.
fn elsewhere(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<Next, Stop> {
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
fn known(gate: &Gate, id: &str) -> Result<Arc<LiveSale>, Rejection> {
    let sale = SaleId::parse(id).ok().and_then(|_| gate.engine.sale(id));
    sale.ok_or_else(|| match gate.engine.knows_sales() {
        true => Rejection::new(Code::UnknownSale, "there is no such sale; check its id"),
        false => Rejection::new(Code::Unavailable, "the gate is starting; try again"),
    })
}

/// `rate_limited`, by address.
fn from(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<(), Rejection> {
    let (fields, context) = exchange.split();
    address(gate, fields, context)
}

fn address(gate: &Gate, fields: &(impl Fields + ?Sized), context: &mut Context) -> Result<(), Rejection> {
    context.client = gate.trusted.client(context.peer, fields);
    gate.rates.address(context.client, &mut context.rate)
}

/// `unauthenticated`. By Redis' clock: this machine's may be wrong. Where the two are far apart, nobody
/// knows which is.
fn identity(gate: &Gate, fields: &(impl Fields + ?Sized)) -> Result<UserId, Rejection> {
    if gate.engine.doubts_clocks() {
        return Err(Rejection::new(
            Code::Unavailable,
            "who you are cannot be judged at the moment; try again",
        ));
    }
    gate.keys.now().identity.user(fields, gate.engine.clock().now())
}

/// Who comes to what he has bought, within his buckets.
fn customer(gate: &Gate, exchange: &mut Exchange<'_>) -> Result<UserId, Rejection> {
    from(gate, exchange)?;
    let user = identity(gate, &exchange.head().headers)?;
    gate.rates.user(&user, None, &mut exchange.context.rate)?;
    exchange.context.user = Some(user.clone());
    Ok(user)
}

fn preflight(exchange: &Exchange<'_>, call: Call<'_>) -> bool {
    exchange.context.origin.is_some()
        && exchange.head().method == Method::OPTIONS
        && exchange.head().headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        && call != Call::Nothing
}
