//! RabbitMQ's users with their rights, as it imports them: the file of `ops/rabbitmq`, with the hash of each
//! password in its place. A node that imports it never has a user of its own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../../../../ops/rabbitmq/users.json");
/// Bytes of a salt, as RabbitMQ has it.
const SALT: usize = 4;

/// Why there is no file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UsersError {
    /// Passwords that nobody gave.
    #[error("set {}", .0.join(", "))]
    Missing(Vec<String>),
    /// The template is no description of users.
    #[error("ops/rabbitmq/users.json: {0}")]
    Template(String),
}

/// Users and rights; `password` looks a variable up, `SLUICE_AMQP_<USER>_PASSWORD`.
pub fn definitions(password: impl Fn(&str) -> Option<String>) -> Result<Value, UsersError> {
    let mut whole: Value =
        serde_json::from_str(TEMPLATE).map_err(|error| UsersError::Template(error.to_string()))?;
    let users = whole["users"].as_array_mut().ok_or_else(|| UsersError::Template("no users".to_owned()))?;
    let mut missing = Vec::new();
    for user in users {
        let name = user["name"].as_str().unwrap_or_default();
        let variable = format!("SLUICE_AMQP_{}_PASSWORD", name.to_uppercase());
        match password(&variable).filter(|password| !password.is_empty()) {
            Some(password) => user["password_hash"] = json!(hash(rand::random(), &password)),
            None => missing.push(variable),
        }
    }
    if missing.is_empty() { Ok(whole) } else { Err(UsersError::Missing(missing)) }
}

/// A password as RabbitMQ stores it: base64(salt ‖ sha256(salt ‖ password)).
fn hash(salt: [u8; SALT], password: &str) -> String {
    let salted = [&salt[..], password.as_bytes()].concat();
    STANDARD.encode([&salt[..], digest(&SHA256, &salted).as_ref()].concat())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example of RabbitMQ's own guide (Passwords, "Computing a Password Hash").
    #[test]
    fn a_password_is_stored_as_rabbitmq_stores_it() {
        assert_eq!(
            hash([0x90, 0x8d, 0xc6, 0x0a], "test12"),
            "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
        );
    }

    #[test]
    fn every_user_has_a_password_of_his_own_and_one_that_is_missing_is_named() {
        let whole = definitions(|name| Some(format!("password of {name}"))).unwrap();
        let hashes: std::collections::HashSet<&str> = whole["users"]
            .as_array()
            .unwrap()
            .iter()
            .map(|user| user["password_hash"].as_str().unwrap())
            .collect();
        assert_eq!(hashes.len(), 3);
        assert!(!whole.to_string().contains("HASH_OF"), "{whole}");
        let one = |name: &str| (name == "SLUICE_AMQP_EDGE_PASSWORD").then(|| "p".to_owned());
        let missing = ["SLUICE_AMQP_WORKER_PASSWORD", "SLUICE_AMQP_OPERATOR_PASSWORD"].map(str::to_owned);
        assert_eq!(definitions(one), Err(UsersError::Missing(missing.to_vec())));
        assert!(definitions(|_| Some(String::new())).is_err());
    }
}
