//! `compose.yaml` against the compose specification, and against what the programs really have.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

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
    let validator = jsonschema::draft7::new(&schema).unwrap();
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
    let roles = read("worker/src/config.rs");
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
fn only_the_balancer_listens_on_public_addresses() {
    for (name, service) in services() {
        for port in published(&service) {
            let public = !port.starts_with("127.0.0.1:");
            assert_eq!(public, name == "balancer", "{name} publishes {port}");
        }
    }
}

#[test]
fn edges_believe_the_balancer_and_nobody_else() {
    let services = services();
    let address = &services["balancer"]["networks"]["default"]["ipv4_address"];
    assert!(address.is_string());
    for edge in ["edge-1", "edge-2"] {
        assert_eq!(services[edge]["environment"]["SLUICE__TRUSTED_PROXIES__ADDRESSES"], *address);
        let server = format!("server {edge} {edge}:8080");
        assert!(read("ops/haproxy/haproxy.cfg").contains(&server), "{server}");
    }
}

#[test]
fn what_keeps_state_has_a_volume_and_whatever_runs_has_a_limit_and_a_health_check() {
    let services = services();
    for name in ["redis", "rabbitmq", "postgres", "edge-1", "edge-2"] {
        assert!(services[name]["volumes"].is_array(), "{name}: volumes");
    }
    for (name, service) in &services {
        assert!(service["mem_limit"].is_string(), "{name}: mem_limit");
        let check = &service["healthcheck"];
        let runs = service["restart"] != "no" && name != "balancer";
        assert!(!runs || (check["test"].is_array() && check["start_period"].is_string()), "{name}: {check}");
    }
}

#[test]
fn no_secret_is_on_a_command_line() {
    for (name, service) in services() {
        let words = command(&service).join(" ") + &service["healthcheck"]["test"].to_string();
        assert!(!words.contains("PASSWORD") && !words.contains("SECRET"), "{name}: {words}");
    }
}

/// While each worker is replaced there are two of it, an audit beside them, and PostgreSQL keeps three for
/// its superuser.
#[test]
fn postgresql_has_a_connection_for_everybody_who_may_want_one() {
    let services = services();
    let defaults: toml::Table = read("worker/worker.default.toml").parse().unwrap();
    let each = defaults["database"]["max_connections"].as_integer().unwrap();
    let workers = services
        .values()
        .filter(|service| command(service).first() == Some(&"sluice-worker") && service["restart"] != "no");
    let wanted = i64::try_from(workers.count()).unwrap() * each * 2 + each;
    let has =
        command(&services["postgres"]).into_iter().find_map(|word| word.strip_prefix("max_connections="));
    let has: i64 = has.unwrap().parse().unwrap();
    assert!(wanted + 3 <= has, "{wanted} and three are wanted of {has}");
}

/// Names of the variables behind which `mark` stands.
fn variables(text: &str, mark: &str) -> BTreeSet<String> {
    let inside = text.split("${").skip(1).filter_map(|part| part.split_once('}'));
    inside.filter_map(|(inside, _)| inside.split_once(mark)).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_template_of_env_has_every_variable() {
    let (compose, template) = (read("compose.yaml"), read("ops/compose.env.example"));
    let named = |start: &str| -> BTreeSet<String> {
        let names = template.lines().filter_map(|line| line.strip_prefix(start)?.split_once('='));
        names.map(|(name, _)| format!("SLUICE_{name}")).collect()
    };
    assert_eq!(named("SLUICE_"), variables(&compose, ":?"));
    assert_eq!(named("# SLUICE_"), variables(&compose, ":-"));
}

/// Runs a line of `./dev`'s own with only these programs to be found.
fn dev(state: &Path, programs: &[(&str, &str)], line: &str) -> bool {
    let bin = state.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for (name, text) in programs {
        std::fs::write(bin.join(name), text).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let parts = "for part in lib install secrets config up; do . ops/dev/$part.sh; done; SERVER_NEEDS=(a:no-such-server)";
    let whole = format!("set -euo pipefail; {parts}; id() {{ echo \"$UID_OF\"; }}; {line}");
    Command::new("/bin/bash")
        .args(["-c", &whole])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .env_clear()
        .envs([("PATH", bin.as_os_str()), ("STATE", state.as_os_str())])
        .envs([("UID_OF", "0"), ("ROOT", ".")])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

#[test]
fn containers_are_used_where_asked_for_or_where_nothing_can_be_installed() {
    let engine = ("docker", "#!/bin/sh\n[ \"$1\" = info ]\n");
    let broken = ("docker", "#!/bin/sh\nexit 1\n");
    let apt = ("apt-get", "#!/bin/sh\n");
    for (programs, line, wanted) in [
        // As root, but there is no apt: Docker it is.
        (vec![engine], "wants_docker", true),
        (vec![engine, apt], "wants_docker", false),
        (vec![engine, apt], "wants_docker --docker", true),
        (vec![broken, apt], "wants_docker --docker", false),
        (vec![broken], "wants_docker", false),
        // What ran in containers does so again.
        (vec![engine, apt], ": >$STATE/compose; wants_docker", true),
    ] {
        let state = std::env::temp_dir().join(format!("sluice-test-dev-{}", uuid::Uuid::now_v7().simple()));
        assert_eq!(dev(&state, &programs, line), wanted, "{programs:?}: {line}");
        std::fs::remove_dir_all(state).unwrap();
    }
}

#[test]
fn compose_finds_its_variables_and_a_file_of_somebody_else_stays() {
    let state = std::env::temp_dir().join(format!("sluice-test-dev-{}", uuid::Uuid::now_v7().simple()));
    let line = r#"
        PATH=/usr/bin:/bin ROOT=$STATE/root
        mkdir -p "$ROOT" && cp compose.yaml "$ROOT"
        load_secrets
        write_compose_env
        link_compose_env
        [ "$(stat -c %a "$STATE/compose.env")" = 600 ]
        grep -q "^SLUICE_JWT_SECRET='$JWT_SECRET'$" "$ROOT/.env"
        unlink_compose_env
        [ ! -L "$ROOT/.env" ]
        echo mine >"$ROOT/.env"
        link_compose_env
        [ "$(cat "$ROOT/.env")" = mine ]"#;
    assert!(dev(&state, &[], line));
    std::fs::remove_dir_all(state).unwrap();
}
