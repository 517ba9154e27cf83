//! RabbitMQ's management interface over HTTP, as far as the topology needs it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Objects of one kind, at the most, that an answer may describe: far more than a topology has.
const ANSWER_MAX: u64 = 32 * 1024 * 1024;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// Nobody said where it is.
    #[error("the management address is not known: set SLUICE_AMQP_MANAGEMENT_URL or amqp.management_url")]
    NoAddress,
    /// It did not answer, or not well.
    #[error("{what}: {why}")]
    Answer {
        /// What was asked.
        what: String,
        /// What came of it.
        why: String,
    },
}

/// Where it is, and which virtual host is meant.
#[derive(Clone)]
pub struct Management {
    base: String,
    authorization: String,
    vhost: String,
    agent: ureq::Agent,
}

impl std::fmt::Debug for Management {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Management({}, {})", self.base, self.vhost)
    }
}

impl Management {
    /// By two URLs: user and password are those of the management URL, or else of the AMQP URL, whose
    /// path is the virtual host.
    pub fn of(management: &str, amqp: &str) -> Result<Self, ManagementError> {
        let (scheme, rest) = management.split_once("://").ok_or(ManagementError::NoAddress)?;
        let rest = rest.trim_end_matches('/');
        let (login, host) = rest.rsplit_once('@').map_or((None, rest), |(login, host)| (Some(login), host));
        if host.is_empty() {
            return Err(ManagementError::NoAddress);
        }
        let (amqp_login, vhost) = amqp_parts(amqp);
        let login = login.or(amqp_login).unwrap_or("guest:guest");
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let login = format!("{}:{}", decode(user), decode(password));
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        Ok(Self {
            base: format!("{scheme}://{host}/api"),
            authorization: format!("Basic {}", STANDARD.encode(login)),
            vhost: encode(&vhost),
            agent: config.into(),
        })
    }

    /// Exchanges of the virtual host.
    pub fn exchanges(&self) -> Result<Vec<Value>, ManagementError> {
        self.list("exchanges")
    }

    /// Its queues.
    pub fn queues(&self) -> Result<Vec<Value>, ManagementError> {
        self.list("queues")
    }

    /// Its bindings.
    pub fn bindings(&self) -> Result<Vec<Value>, ManagementError> {
        self.list("bindings")
    }

    /// Its policies.
    pub fn policies(&self) -> Result<Vec<Value>, ManagementError> {
        self.list("policies")
    }

    /// Sets a policy.
    pub fn put_policy(&self, name: &str, policy: &Value) -> Result<(), ManagementError> {
        let what = format!("setting policy {name}");
        let url = format!("{}/policies/{}/{}", self.base, self.vhost, encode(name));
        let answer = self.agent.put(&url).header("authorization", &self.authorization).send_json(policy);
        let answer = answer.map_err(|error| failed(&what, &error))?;
        if answer.status().is_success() { Ok(()) } else { Err(refused(&what, answer)) }
    }

    fn list(&self, kind: &str) -> Result<Vec<Value>, ManagementError> {
        let what = format!("listing {kind}");
        let url = format!("{}/{kind}/{}", self.base, self.vhost);
        let answer = self.agent.get(&url).header("authorization", &self.authorization).call();
        let mut answer = answer.map_err(|error| failed(&what, &error))?;
        if !answer.status().is_success() {
            return Err(refused(&what, answer));
        }
        let body = answer.body_mut().with_config().limit(ANSWER_MAX).read_json();
        body.map_err(|error| failed(&what, &error))
    }
}

fn failed(what: &str, error: &ureq::Error) -> ManagementError {
    ManagementError::Answer { what: what.to_owned(), why: error.to_string() }
}

fn refused(what: &str, mut answer: ureq::http::Response<ureq::Body>) -> ManagementError {
    let status = answer.status().as_u16();
    let body = answer.body_mut().read_to_string().unwrap_or_default();
    ManagementError::Answer { what: what.to_owned(), why: format!("status {status} {body}") }
}

/// Login and virtual host of an AMQP URL; a path that is missing or empty means `/`.
fn amqp_parts(amqp: &str) -> (Option<&str>, String) {
    let rest = amqp.split_once("://").map_or("", |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let login = authority.rsplit_once('@').map(|(login, _)| login);
    let vhost = if path.is_empty() { "/".to_owned() } else { decode(path) };
    (login, vhost)
}

/// Percent-encodes everything that is not unreserved (RFC 3986).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Decodes percent signs; what is not an escape stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn login_and_virtual_host_come_from_the_urls() {
        let both = Management::of("http://127.0.0.1:15680/", "amqp://op:p%40ss@127.0.0.1/sluice").unwrap();
        assert_eq!(both.base, "http://127.0.0.1:15680/api");
        assert_eq!(both.authorization, format!("Basic {}", STANDARD.encode("op:p@ss")));
        assert_eq!(both.vhost, "sluice");
        let own = Management::of("http://a:b@host:1", "amqp://x:y@host/%2f").unwrap();
        assert_eq!(own.authorization, format!("Basic {}", STANDARD.encode("a:b")));
        assert_eq!(own.vhost, "%2F");
        assert_eq!(Management::of("http://host:1", "amqp://host").unwrap().vhost, "%2F");
        assert!(Management::of("", "amqp://host").is_err());
    }
}
