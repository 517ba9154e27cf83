//! `compose.yaml` against the compose specification, and against what the programs really have.

use std::path::Path;

use serde_json::Value;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(path)).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("compose.yaml")).unwrap()
}

fn services() -> serde_json::Map<String, Value> {
    compose()["services"].as_object().unwrap().clone()
}

fn command(service: &Value) -> Vec<&str> {
    service["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn published(service: &Value) -> Vec<&str> {
    service["ports"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn the_compose_file_keeps_to_the_specification() {
    let schema: Value = serde_json::from_str(include_str!("../schemas/compose-spec.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let wrong: Vec<String> = validator
        .iter_errors(&compose())
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut broken = compose();
    broken["services"]["redis"]["imagge"] = Value::from("x");
    assert!(!validator.is_valid(&broken), "the schema refuses what it does not know");
}

#[test]
fn every_role_runs_and_two_edges_and_two_wardens() {
    let services = services();
    let running = |words: &[&str]| services.values().filter(|service| command(service) == words).count();
    for role in ["orders", "outbox", "saga", "timeout", "api"] {
        assert_eq!(running(&["sluice-worker", role]), 1, "{role}");
    }
    assert_eq!(running(&["sluice-edge"]), 2);
    assert_eq!(running(&["sluice-worker", "reconcile"]), 2);
    let roles = read("worker/src/role.rs");
    for service in services.values().map(command).filter(|words| words.first() == Some(&"sluice-worker")) {
        let known =
            ["migrate", "topology"].contains(&service[1]) || roles.contains(&format!("\"{}\"", service[1]));
        assert!(known, "{service:?}");
    }
}

#[test]
fn every_setting_of_a_service_is_a_key_of_its_program() {
    for (name, service) in services() {
        let defaults = match command(&service).first() {
            Some(&"sluice-edge") => read("edge/edge.default.toml"),
            Some(&"sluice-worker") => read("worker/worker.default.toml"),
            _ => continue,
        };
        let defaults: toml::Table = defaults.parse().unwrap();
        let settings = service["environment"].as_object().unwrap();
        for key in settings.keys().filter_map(|key| key.strip_prefix("SLUICE__")) {
            let mut parts = key.split("__").map(str::to_lowercase);
            let first = defaults.get(&parts.next().unwrap());
            let found = parts.fold(first, |value, part| value.and_then(|value| value.get(&part)));
            assert!(found.is_some(), "{name}: {key}");
        }
    }
}

#[test]
fn only_edges_listen_on_public_addresses() {
    for (name, service) in services() {
        for port in published(&service) {
            let public = !port.starts_with("127.0.0.1:");
            assert!(!public || name.starts_with("edge-"), "{name} publishes {port}");
            assert!(!(public && port.ends_with(":8090")), "{name} publishes its private listener: {port}");
        }
    }
}

#[test]
fn what_keeps_state_has_a_volume_and_what_serves_a_health_check() {
    let services = services();
    for name in ["redis", "rabbitmq", "postgres", "edge-1", "edge-2"] {
        assert!(services[name]["volumes"].is_array(), "{name}: volumes");
        assert!(services[name]["healthcheck"].is_object(), "{name}: healthcheck");
    }
}
