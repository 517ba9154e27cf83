//! One listener's connections: each is read for plain requests first, and handed to a session for
//! whatever is not plain.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use crate::config::Limits;
use crate::conn::Conn;
use crate::connections::Connections;
use crate::express::{Express, Onward};
use crate::guarded::Guarded;

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
    fn session(&self, stream: Stream, conn: &Arc<Conn>) -> ServerSession {
        let mut session = ServerSession::new_http1(stream);
        // It gets the whole head at once.
        let wait = self.limits.idle_timeout + self.limits.head_timeout;
        session.set_keepalive(Some(wait.as_secs()));
        session.set_connection_user_context(Some(Box::new(conn.clone())));
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
        let (mut bytes, mut fresh) = (BytesMut::new(), true);
        loop {
            let mut begun = None;
            if let Some(express) = &self.express {
                conn.plain();
                match express.serve(&mut stream, &mut bytes, peer, fresh, &conn.place).await {
                    Onward::Session => {}
                    Onward::Closed => return None,
                    Onward::Last => {
                        conn.linger();
                        return None;
                    }
                }
                (fresh, begun) = (false, Some(express.begun()));
            }
            conn.hand_over(std::mem::take(&mut bytes));
            let session = self.session(stream, &conn);
            let kept = tokio::select! {
                biased;
                () = conn.place.told_to_go() => return None,
                kept = self.app.process_new_http(session, shutdown) => kept,
            };
            conn.place.rest(Instant::now());
            drop(begun);
            if let Some(express) = &self.express {
                express.refused(&conn);
            }
            (stream, _) = kept?.consume();
            // Behind a request that was not read to its end nothing is served, whatever the session
            // makes of it.
            bytes = conn.next()?;
        }
    }

    async fn cleanup(&self) {
        self.app.http_cleanup().await;
    }
}
