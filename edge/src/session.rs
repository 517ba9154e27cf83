//! The long way of a request: the gate as pingora's application. Our calls are answered before anything
//! is proxied.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::{StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use sluice_shared::verdict::{Code, Rejection};

use crate::calls;
use crate::chain::Next;
use crate::conn::Conn;
use crate::exchange::{Context, Exchange, Stop, Target};
use crate::gate::{Gate, WRITE_TIMEOUT};
use crate::hops;
use crate::phase::Stage;
use crate::respond;

/// The gate as the proxy's application: the long way of a request.
#[derive(Debug)]
pub struct Proxied(pub Arc<Gate>);

impl std::ops::Deref for Proxied {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.0
    }
}

impl Proxied {
    /// Puts the connection's next request under its own time limits.
    fn begin(&self, session: &mut Session, context: &mut Context) {
        context.identify(&session.req_header().headers);
        let peer = session.downstream_session.client_addr().and_then(|address| address.as_inet());
        context.peer = peer.map_or(context.peer, |peer| peer.ip().to_canonical());
        let session = &mut session.downstream_session;
        context.upgrade = hops::asks_for_websocket(session.req_header()) && session.is_body_empty();
        if !context.upgrade {
            session.req_header_mut().remove_header(&UPGRADE);
        }
        // HTTP/1.0 knows one answer to a request.
        let old = session.req_header().version == Version::HTTP_10;
        session.set_ignore_info_resp(old);
        // The parser left "for ever"; `None` stays: the client, or HTTP/1.0, wants no more.
        if session.get_keepalive().is_some() {
            let idle = (!self.phase.is(Stage::Draining)).then_some(self.limits.idle_timeout.as_secs());
            session.set_keepalive(idle);
        }
        session.set_read_timeout(Some(self.limits.body_timeout));
        session.set_write_timeout(Some(WRITE_TIMEOUT));
    }

    async fn refuse(&self, exchange: &mut Exchange<'_>, rejection: &Rejection) -> pingora::Result<bool> {
        exchange.settle();
        respond::refuse(exchange, rejection).await?;
        Ok(true)
    }

    /// The refusal that a failure behind or before us amounts to; `None` when nobody listens.
    fn failure(&self, error: &Error, exchange: &Exchange<'_>) -> Option<Rejection> {
        let target = exchange.context.target;
        let overdue = exchange.context.conn.as_ref().is_some_and(|conn| conn.is_overdue());
        let late = matches!(
            error.etype(),
            ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout
        );
        let behind = *error.esource() == ErrorSource::Upstream;
        match error.etype() {
            ErrorType::HTTPStatus(413) => {
                let detail = format!("the body may have {} bytes", self.body_limit(target));
                return Some(Rejection::new(Code::BodyTooLarge, detail));
            }
            _ if *error.esource() == ErrorSource::Downstream && !overdue => {
                if *error.etype() == ErrorType::ReadTimedout {
                    return Some(Rejection::new(Code::RequestTimeout, "the body did not come in time"));
                }
                let malformed = || Rejection::field("body", "the body or a field is malformed");
                return exchange.is_malformed(error).then(malformed);
            }
            _ => {}
        }
        Some(match target {
            Target::Order(_) | Target::Callback => {
                Rejection::new(Code::Unavailable, "the books cannot be asked at the moment; try again")
            }
            Target::Upstream if overdue || late && behind => {
                Rejection::new(Code::GatewayTimeout, "the upstream took too long")
            }
            Target::Upstream | Target::Here => {
                Rejection::new(Code::BadGateway, "the upstream did not answer properly")
            }
        })
    }

    fn body_limit(&self, target: Target) -> usize {
        match target {
            Target::Upstream => self.limits.upstream_body_bytes,
            Target::Here | Target::Order(_) | Target::Callback => self.limits.body_bytes,
        }
    }
}

#[async_trait]
impl ProxyHttp for Proxied {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::new(&self.metrics.busy)
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn on_connection_reuse(&self, _: &mut Session, context: &mut Context, conn: Box<dyn Any + Send + Sync>) {
        if let Ok(conn) = conn.downcast::<Arc<Conn>>() {
            conn.take_over();
            context.conn = Some(*conn);
        }
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
        // Told to go before the head was whole: as if it had come too late.
        if context.conn.as_ref().is_some_and(|conn| !conn.place.begin()) {
            return Err(Error::new_down(ErrorType::ConnectionClosed));
        }
        self.begin(session, context);
        let mut exchange = Exchange { session, context };
        match calls::judge(&self.0, &mut exchange).await {
            Ok(Next::Reply(reply)) => {
                exchange.settle();
                respond::reply(&mut exchange, reply).await?;
                Ok(true)
            }
            Ok(Next::Done) => Ok(true),
            Ok(Next::Forward) => {
                if exchange.context.target != Target::Upstream {
                    exchange.proceed().await?;
                }
                Ok(false)
            }
            Err(Stop::Refused(rejection)) => self.refuse(&mut exchange, &rejection).await,
            Err(Stop::Gone(error)) => Err(error),
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> pingora::Result<Box<HttpPeer>> {
        let mut peer = self.peers.peer(context.target).await?;
        if context.target != Target::Upstream && !session.downstream_session.is_body_done() {
            // The workers answer when they have the whole body, and the client has its own time for that.
            let read = &mut peer.options.read_timeout;
            *read = read.map(|read| read + self.limits.body_timeout);
        }
        if context.upgrade {
            // Both directions count, which only the client's side sees.
            let read = peer.options.read_timeout.take();
            if let (Some(conn), Some(read)) = (&context.conn, read) {
                conn.watch(read);
            }
        }
        Ok(peer)
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if context.target != Target::Upstream {
            request.remove_header(&EXPECT);
        }
        self.peers.rewrite(request, context, &self.trusted)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if session.was_upgraded() {
            return Ok(());
        }
        context.forwarded += body.as_ref().map_or(0, Bytes::len);
        if context.forwarded > self.body_limit(context.target) {
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the body is too large"));
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        context.status = head.status.as_u16();
        let tunnel = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if context.target == Target::Upstream {
            hops::strip(head, tunnel);
        }
        if tunnel && let Some(conn) = &context.conn {
            session.downstream_session.set_read_timeout(None);
            conn.tunnel(self.peers.tunnel_idle());
        }
        // HTTP/1.0 knows no chunks: there the end of the connection ends the answer.
        if session.req_header().version == Version::HTTP_10
            && head.remove_header(&TRANSFER_ENCODING).is_some()
        {
            session.set_keepalive(None);
        }
        match context.target {
            Target::Order(_) => {
                respond::ours(context, head)?;
                respond::allow_origin(context.origin.as_ref(), head)
            }
            Target::Callback => respond::ours(context, head),
            Target::Upstream | Target::Here => Ok(()),
        }
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Context,
    ) -> FailToProxy {
        let nothing = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let begun = |head: &ResponseHeader| {
            !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
        };
        if session.response_written().is_some_and(begun) {
            return nothing;
        }
        let mut exchange = Exchange { session, context };
        let Some(rejection) = self.failure(error, &exchange) else { return nothing };
        // pingora gives the connection up after a failure.
        exchange.close();
        match respond::refuse(&mut exchange, &rejection).await {
            Ok(()) => FailToProxy { error_code: rejection.code.status(), can_reuse_downstream: false },
            Err(_) => nothing,
        }
    }

    async fn logging(&self, _: &mut Session, _: Option<&Error>, context: &mut Context) {
        self.metrics.answered(context.kind, context.verdict, context.started.elapsed());
    }

    fn suppress_error_log(&self, _: &Session, context: &Context, error: &Error) -> bool {
        // Clients that leave or send nonsense are no errors of ours; servers behind us that fail are.
        *error.esource() != ErrorSource::Upstream || context.target == Target::Here
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Context, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    fn request_summary(&self, session: &Session, context: &Context) -> String {
        // Without the query: it may hold a ticket.
        let head = session.req_header();
        let id = context.request_id();
        format!("{} {} request {}", head.method, head.uri.path(), id.to_str().unwrap_or_default())
    }
}
