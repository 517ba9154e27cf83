//! One request after its head and body were judged.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, Uri};
use futures_util::StreamExt;
use sluice_shared::ids::{OrderId, SaleId, UserId};
use sluice_shared::verdict::{Code, Rejection};

use super::auth::Caller;
use super::json::Members;
use super::reply::not_found;
use crate::store::audit_log::Actor;

/// Bytes of a body at the most.
pub const BODY_MAX: usize = 64 * 1024;
/// A body is complete within this time.
const BODY_TIME: Duration = Duration::from_secs(10);

/// What a handler gets.
#[derive(Debug)]
pub struct Call {
    /// Who calls; allowed already.
    pub caller: Caller,
    /// The path's parameter, decoded; empty without one.
    pub id: String,
    /// The request target, for its query.
    pub uri: Uri,
    /// The head.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// What the answer and the audit log call this request.
    pub request_id: String,
}

impl Call {
    /// The sale in the path.
    pub fn sale(&self) -> Result<SaleId, Rejection> {
        SaleId::parse(&self.id).map_err(|_| not_found("there is no such sale"))
    }

    /// The order in the path.
    pub fn order(&self) -> Result<OrderId, Rejection> {
        OrderId::parse(&self.id).ok_or_else(|| not_found("there is no such order"))
    }

    /// The buyer for whom an edge calls.
    pub fn buyer(&self) -> Result<UserId, Rejection> {
        match &self.caller {
            Caller::Edge(Some(user)) => Ok(user.clone()),
            _ => Err(Rejection::new(Code::Forbidden, "this is a buyer's call")),
        }
    }

    /// Whose order an edge may show: this buyer's, or, where the edge has verified the ticket of an
    /// order instead of a buyer, whoever's it is.
    pub fn watcher(&self) -> Result<Option<UserId>, Rejection> {
        match &self.caller {
            Caller::Edge(user) => Ok(user.clone()),
            Caller::Staff { .. } => Err(Rejection::new(Code::Forbidden, "this is a buyer's call")),
        }
    }

    /// The body's members.
    pub fn members(&self) -> Result<Members, Rejection> {
        Members::of_body(&self.body)
    }

    /// Refuses a body that says anything; none, or `{}`, will do.
    pub fn no_members(&self) -> Result<(), Rejection> {
        if self.body.is_empty() { Ok(()) } else { self.members()?.finish() }
    }

    /// Who of the staff does it, for the audit log.
    pub fn actor(&self) -> Result<Actor, Rejection> {
        match &self.caller {
            Caller::Staff { who, role } => {
                Ok(Actor { who: who.clone(), role: role.as_str(), request_id: self.request_id.clone() })
            }
            Caller::Edge(_) => Err(Rejection::new(Code::Forbidden, "this is a call of the back office")),
        }
    }
}

/// Judges what the head says about the body.
pub fn judge_head(headers: &HeaderMap, body: &Body) -> Result<(), Rejection> {
    if headers.get_all("authorization").iter().count() > 1 {
        return Err(Rejection::field("Authorization", "send one Authorization field"));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_MAX as u64) {
        return Err(too_large());
    }
    if body.is_end_stream() {
        return Ok(());
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Rejection::new(Code::UnsupportedMediaType, "send the body without Content-Encoding"));
    }
    let json =
        |kind: &str| kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json");
    match headers.get(CONTENT_TYPE).map(|kind| kind.to_str().is_ok_and(json)) {
        None | Some(true) => Ok(()),
        Some(false) => {
            Err(Rejection::new(Code::UnsupportedMediaType, "send the body as Content-Type: application/json"))
        }
    }
}

/// Reads the body, within its limits of size and time.
pub async fn read_body(body: Body) -> Result<Bytes, Rejection> {
    let read = async {
        let mut chunks = body.into_data_stream();
        let mut whole = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk =
                chunk.map_err(|error| Rejection::field("body", format!("the body broke off: {error}")))?;
            if whole.len() + chunk.len() > BODY_MAX {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(whole))
    };
    tokio::time::timeout(BODY_TIME, read).await.unwrap_or_else(|_| {
        Err(Rejection::new(Code::RequestTimeout, "the body was not complete within 10 seconds"))
    })
}

fn too_large() -> Rejection {
    Rejection::new(Code::BodyTooLarge, "a body may have 64 KiB")
}
