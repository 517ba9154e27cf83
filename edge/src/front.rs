//! One listener's connections: each is read for plain requests first, and handed to a session for
//! whatever is not plain.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use crate::config::Limits;
use crate::connections::Connections;
use crate::express::{Express, Onward};
use crate::guarded::{Conn, Guarded};

/// Serves the connections of one listener by an HTTP application, each one guarded.
#[derive(Debug)]
pub struct Front<A> {
    app: Arc<A>,
    express: Option<Express>,
    limits: Limits,
    connections: Arc<Connections>,
}

impl<A> Front<A> {
    /// Puts an application behind the guard, with room for its connections.
    pub fn new(app: Arc<A>, limits: Limits, connections: Arc<Connections>) -> Self {
        Self { app, express: None, limits, connections }
    }

    /// With a short way for requests that need no session.
    pub fn with_express(self, express: Express) -> Self {
        Self { express: Some(express), ..self }
    }

    /// A session for the next request of a connection.
    fn session(&self, stream: Stream, settings: Option<HttpPersistentSettings>) -> ServerSession {
        let mut session = ServerSession::new_http1(stream);
        match settings {
            Some(settings) => settings.apply_to_session(&mut session),
            None => {
                session.set_keepalive(Some(self.limits.idle_timeout.as_secs()));
                session.set_pipelining_enabled(true);
            }
        }
        session
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ServerApp for Front<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let peer = stream.get_socket_digest().and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ip| ip.to_canonical());
        let conn = Arc::new(Conn::new(self.connections.enter(peer)?));
        let mut stream: Stream = Box::new(Guarded::new(stream, conn.clone(), self.limits));
        let (mut bytes, mut settings, mut fresh) = (BytesMut::new(), None, true);
        loop {
            let (mut length, mut begun) = (None, None);
            if let (Some(express), None) = (&self.express, &settings) {
                conn.take_over();
                match express.serve(&mut stream, &mut bytes, peer, fresh, &conn.place).await {
                    Onward::Session(known) => length = known,
                    Onward::Closed => return None,
                    Onward::Last => {
                        conn.linger();
                        return None;
                    }
                }
                (fresh, begun) = (false, Some(express.begun()));
            }
            conn.hand_over(std::mem::take(&mut bytes));
            let mut session = self.session(stream, settings.take());
            session.set_connection_user_context(Some(Box::new(conn.clone())));
            let served = tokio::select! {
                biased;
                () = conn.place.told_to_go() => return None,
                served = self.app.process_new_http(session, shutdown) => served,
            };
            let (back, kept) = served?.consume();
            conn.place.rest(Instant::now());
            drop(begun);
            stream = back;
            // What the session may have read of the next request is in its settings, and cannot be
            // taken out: then a session goes on.
            let whole = length.is_some_and(|length| conn.read() == length);
            settings = kept.filter(|_| !whole);
        }
    }

    async fn cleanup(&self) {
        self.app.http_cleanup().await;
    }
}
