//! Who calls: the admin token, a JWT with a role, or the edge with its secret. Whatever is not
//! clearly allowed is refused.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use ring::digest::{SHA256, digest};
use sluice_shared::clock::Millis;
use sluice_shared::config::Secret;
use sluice_shared::ids::UserId;
use sluice_shared::jwt::Verifier;
use sluice_shared::verdict::{Code, Rejection};
use subtle::ConstantTimeEq;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Staff with at least this role.
    Role(Role),
    /// An edge.
    Edge,
    /// An edge, for a buyer that it names, or for the holder of an order's ticket, whom it does not.
    Watcher,
    /// An edge, for a buyer that it names.
    Buyer,
}

/// Who a JWT for the back office must be meant for.
const AUDIENCE: &str = "sluice-admin";
/// Letters of a name in the audit log, at the most.
const NAME_MAX: usize = 128;

/// What somebody may do in the back office; each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Steps sales, changes stock, retries.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// All of them, the weakest first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The word in a JWT and in the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Reads [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A person or a program of the back office.
    Staff {
        /// The `sub` of the JWT, or `admin-token`.
        who: String,
        /// What they may do.
        role: Role,
    },
    /// An edge, with the buyer whose JWT it has verified, if the call is a buyer's.
    Edge(Option<UserId>),
}

/// What callers are compared with.
#[derive(Debug)]
pub struct Keys {
    admin_token: [u8; 32],
    edge_secret: [u8; 32],
    verifier: Verifier,
}

/// Secrets are compared by their digests, so that the time tells nothing, not even a length.
fn seal(secret: &str) -> [u8; 32] {
    let mut sealed = [0; 32];
    sealed.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    sealed
}

fn same(sealed: &[u8; 32], told: &str) -> bool {
    sealed.ct_eq(&seal(told)).into()
}

impl Keys {
    /// The keys of one back office.
    pub fn new(admin_token: &Secret, edge_secret: &Secret, verifier: Verifier) -> Self {
        Self { admin_token: seal(admin_token.reveal()), edge_secret: seal(edge_secret.reveal()), verifier }
    }

    /// Lets a caller in, or says why not.
    pub fn admit(&self, needs: Needs, headers: &HeaderMap, now: Millis) -> Result<Caller, Rejection> {
        let bearer = bearer(headers)?;
        match needs {
            Needs::Role(least) => {
                let caller = self.staff(bearer, now)?;
                match &caller {
                    Caller::Staff { role, .. } if *role < least => Err(Rejection::new(
                        Code::Forbidden,
                        format!("the role {} may not do this; {} may", role.as_str(), least.as_str()),
                    )),
                    _ => Ok(caller),
                }
            }
            Needs::Edge | Needs::Watcher | Needs::Buyer => {
                if !same(&self.edge_secret, bearer) {
                    return Err(unauthenticated("this is for edges and their secret only"));
                }
                let told = headers.get("x-sluice-user");
                match (needs, told) {
                    (Needs::Edge, _) | (Needs::Watcher, None) => Ok(Caller::Edge(None)),
                    _ => {
                        let user = told.and_then(|user| UserId::parse(user.to_str().ok()?).ok());
                        user.map(|user| Caller::Edge(Some(user))).ok_or_else(|| {
                            let detail = "the edge names the verified buyer in X-Sluice-User";
                            Rejection::field("X-Sluice-User", detail)
                        })
                    }
                }
            }
        }
    }

    fn staff(&self, bearer: &str, now: Millis) -> Result<Caller, Rejection> {
        if same(&self.admin_token, bearer) {
            return Ok(Caller::Staff { who: "admin-token".to_owned(), role: Role::Admin });
        }
        let claims = self
            .verifier
            .verify(bearer, now)
            .map_err(|error| unauthenticated(format!("neither the admin token nor a good JWT: {error}")))?;
        if !claims.aud.iter().any(|aud| aud == AUDIENCE) {
            return Err(unauthenticated("the JWT is not meant for the back office (aud: sluice-admin)"));
        }
        let role = claims.role.as_deref().and_then(Role::parse).ok_or_else(|| {
            Rejection::new(Code::Forbidden, "the JWT's role must be viewer, operator or admin")
        })?;
        Ok(Caller::Staff { who: name(claims.sub.as_deref().unwrap_or("nameless")), role })
    }
}

/// A name as the audit log keeps it: whatever a JWT says, it is one short line.
fn name(sub: &str) -> String {
    sub.chars().filter(|letter| !letter.is_control()).take(NAME_MAX).collect()
}

fn unauthenticated(detail: impl Into<std::borrow::Cow<'static, str>>) -> Rejection {
    Rejection::new(Code::Unauthenticated, detail)
}

/// The bearer token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, Rejection> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let first = fields.next().ok_or_else(|| unauthenticated("send Authorization: Bearer …"))?;
    let malformed = || unauthenticated("Authorization must be: Bearer, a blank, and the token");
    let (scheme, token) = first.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(malformed()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;
    use sluice_shared::jwt::sign_hs256;

    const SECRET: &str = "the secret of the back office";

    fn keys() -> Keys {
        let verifier = Verifier::new(Some(SECRET), None).unwrap();
        Keys::new(&Secret::new("the admin token"), &Secret::new("the edge's secret"), verifier)
    }

    fn admit(needs: Needs, authorization: &str) -> Result<Caller, Code> {
        admit_for(needs, authorization, Some("alice"))
    }

    fn admit_for(needs: Needs, authorization: &str, user: Option<&str>) -> Result<Caller, Code> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        if let Some(user) = user {
            headers.insert("x-sluice-user", user.parse().unwrap());
        }
        keys().admit(needs, &headers, Millis(1_000_000)).map_err(|rejection| rejection.code)
    }

    fn jwt(claims: &serde_json::Value) -> String {
        format!("Bearer {}", sign_hs256(SECRET, claims))
    }

    #[test]
    fn the_admin_token_may_do_everything_but_be_an_edge() {
        for role in Role::ALL {
            assert!(admit(Needs::Role(role), "bearer the admin token").is_ok());
        }
        assert_eq!(admit(Needs::Edge, "Bearer the admin token"), Err(Code::Unauthenticated));
        assert_eq!(admit(Needs::Role(Role::Viewer), "Bearer the edge's secret"), Err(Code::Unauthenticated));
    }

    #[test]
    fn a_jwt_is_judged_by_audience_then_role() {
        let viewer = Needs::Role(Role::Viewer);
        let good = json!({"sub": "eve", "aud": "sluice-admin", "role": "operator", "exp": 2000});
        let with = |name: &str, value: serde_json::Value| {
            let mut claims = good.clone();
            claims[name] = value;
            admit(viewer, &jwt(&claims))
        };
        let eve = Caller::Staff { who: "eve".to_owned(), role: Role::Operator };
        assert_eq!(admit(viewer, &jwt(&good)), Ok(eve));
        assert_eq!(admit(Needs::Role(Role::Admin), &jwt(&good)), Err(Code::Forbidden));
        assert_eq!(with("role", json!("root")), Err(Code::Forbidden));
        assert_eq!(with("role", json!(null)), Err(Code::Forbidden));
        assert_eq!(with("aud", json!("shop")), Err(Code::Unauthenticated));
        assert_eq!(with("aud", json!(null)), Err(Code::Unauthenticated));
        assert_eq!(with("exp", json!(900)), Err(Code::Unauthenticated));
        assert!(with("aud", json!(["shop", "sluice-admin"])).is_ok());
    }

    #[test]
    fn an_edge_speaks_for_the_buyer_that_it_names() {
        let alice = UserId::parse("alice").unwrap();
        let edge = |needs, user| admit_for(needs, "Bearer the edge's secret", user);
        assert_eq!(edge(Needs::Buyer, Some("alice")), Ok(Caller::Edge(Some(alice.clone()))));
        assert_eq!(edge(Needs::Watcher, Some("alice")), Ok(Caller::Edge(Some(alice))));
        // Only who merely looks may come with an order's ticket instead of a name.
        assert_eq!(edge(Needs::Watcher, None), Ok(Caller::Edge(None)));
        assert_eq!(edge(Needs::Buyer, None), Err(Code::BadRequest));
        for needs in [Needs::Watcher, Needs::Buyer] {
            assert_eq!(edge(needs, Some("")), Err(Code::BadRequest));
        }
        assert_eq!(admit(Needs::Edge, "Bearer the edge's secret"), Ok(Caller::Edge(None)));
        assert_eq!(admit(Needs::Buyer, "Basic dTpw"), Err(Code::Unauthenticated));
    }
}
