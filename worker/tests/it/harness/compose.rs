//! `compose.yaml` without Docker: what a container would be started with, with this machine's addresses in
//! the place of the services' names, and directories in the place of volumes. Nothing else is changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sluice_testkit::required;

/// The services, and what stands for their names.
pub struct Compose {
    pub directory: PathBuf,
    whole: Value,
    /// Text and what it is replaced by, in this order.
    replacements: Vec<(String, String)>,
    addresses: BTreeMap<String, String>,
}

pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The variables of the file that `./dev up --docker` makes.
pub fn variables() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(required("SLUICE_TEST_COMPOSE_ENV")).unwrap();
    let of = |line: &str| {
        let (name, value) = line.split_once('=').unwrap();
        (name.to_owned(), value.trim_matches('\'').to_owned())
    };
    text.lines().map(of).collect()
}

/// `${NAME:?why}` and `${NAME:-default}`, as compose reads them; one that is missing is told.
fn interpolated(text: &str, variables: &BTreeMap<String, String>) -> String {
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once("${") {
        let (inside, behind) = behind.split_once('}').unwrap();
        let (name, otherwise) = inside.split_once(':').unwrap();
        let default = otherwise.strip_prefix('-').map(str::to_owned);
        let value = variables.get(name).cloned().or(default);
        done.push_str(before);
        done.push_str(&value.unwrap_or_else(|| panic!("{name} is not in compose.env: {inside}")));
        rest = behind;
    }
    done + rest
}

/// Puts an address in the place of a host's name, before a port.
fn renamed(text: &str, name: &str, ip: &str) -> String {
    let (mut done, mut at) = (String::new(), 0);
    for (found, _) in text.match_indices(&format!("{name}:")) {
        let before = text[..found].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '-');
        let behind = text[found + name.len() + 1..].starts_with(|c: char| c.is_ascii_digit());
        if before && behind {
            done.push_str(&text[at..found]);
            done.push_str(ip);
            at = found + name.len();
        }
    }
    done + &text[at..]
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Compose {
    /// `others`: `name:port` of what runs outside, and its address here.
    pub fn read(others: &[(&str, String)]) -> Self {
        let text = std::fs::read_to_string(root().join("compose.yaml")).unwrap();
        let whole: Value = serde_saphyr::from_str(&interpolated(&text, &variables())).unwrap();
        let name = format!("sluice-test-compose-{}", uuid::Uuid::now_v7().simple());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        // Each service has an address of its own, as in its network; the ports stay. Everything in
        // 127.0.0.0/8 is this machine.
        let [a, b, ..] = *uuid::Uuid::now_v7().as_bytes().last_chunk::<4>().unwrap();
        let names = whole["services"].as_object().unwrap().keys().cloned();
        let address = |(n, name): (usize, String)| (name, format!("127.{}.{b}.{}", a.max(1), n + 1));
        let addresses: BTreeMap<_, _> = names.enumerate().map(address).collect();
        let mut replacements: Vec<_> =
            others.iter().map(|(name, here)| ((*name).to_owned(), here.clone())).collect();
        for (name, ip) in &addresses {
            if let Some(fixed) = whole["services"][name]["networks"]["default"]["ipv4_address"].as_str() {
                replacements.push((fixed.to_owned(), ip.clone()));
            }
        }
        Self { directory, whole, replacements, addresses }
    }

    pub fn address(&self, service: &str) -> &str {
        &self.addresses[service]
    }

    /// Services by the first word of their command.
    pub fn services_of(&self, program: &str) -> Vec<String> {
        let services = self.whole["services"].as_object().unwrap();
        let runs = |service: &Value| words(&service["command"]).first().is_some_and(|word| word == program);
        services.iter().filter(|(_, service)| runs(service)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether it ends by itself.
    pub fn is_once(&self, service: &str) -> bool {
        self.whole["services"][service]["restart"] == "no"
    }

    /// A text of the file as it is on this machine, for one service.
    pub fn here(&self, service: &str, text: &str) -> String {
        let mut text = text.replace("0.0.0.0", self.address(service));
        for (there, here) in &self.replacements {
            text = text.replace(there, here);
        }
        for (name, ip) in &self.addresses {
            text = renamed(&text, name, ip);
        }
        for volume in words(&self.whole["services"][service]["volumes"]) {
            let mut parts = volume.split(':');
            let (source, target) = (parts.next().unwrap(), parts.next().unwrap());
            if !source.starts_with('.') {
                text = text.replace(target, &self.volume(source).display().to_string());
            }
        }
        text
    }

    /// Where a volume is.
    pub fn volume(&self, name: &str) -> PathBuf {
        let directory = self.directory.join("volumes").join(name);
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    /// A service's `sh -c` with its environment, where these texts are others here.
    pub fn shell(&self, service: &str, others: &[(&str, &str)]) -> Command {
        let described = &self.whole["services"][service];
        let words = words(&described["command"]);
        assert_eq!(words[..2], ["sh", "-c"], "{service}");
        let script = others.iter().fold(words[2].clone(), |text, (there, here)| text.replace(there, here));
        let environment = described["environment"].as_object().unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &script])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(environment.iter().map(|(name, value)| (name, value.as_str().unwrap())))
            .current_dir(&self.directory);
        command
    }

    /// The service's command with its environment, and nothing else.
    pub fn command(&self, service: &str) -> Command {
        let described = &self.whole["services"][service];
        let words = words(&described["command"]);
        let mut command = Command::new(Path::new(&required("SLUICE_TEST_BIN")).join(&words[0]));
        let environment = described["environment"].as_object().unwrap();
        command
            .args(words[1..].iter().map(|word| self.here(service, word)))
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, self.here(service, value.as_str().unwrap()))))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.directory.join(format!("{service}.log"))).unwrap());
        command
    }

    pub fn start(&self, service: &str) -> Started {
        Started(self.command(service).spawn().unwrap_or_else(|error| panic!("{service}: {error}")))
    }

    /// What its health check asks for: a URL.
    pub fn health(&self, service: &str) -> String {
        let test = words(&self.whole["services"][service]["healthcheck"]["test"]);
        assert_eq!(test[..3], ["CMD", "curl", "-fsS"], "{service}");
        test[3].replace("127.0.0.1", self.address(service))
    }

    pub fn log(&self, service: &str) -> String {
        std::fs::read_to_string(self.directory.join(format!("{service}.log"))).unwrap_or_default()
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        // What stays is a directory in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A process, killed when dropped.
pub struct Started(pub Child);

impl Started {
    pub fn terminate(&self) {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Status and body of a call, GET or POST.
pub fn call(method: &str, url: &str, fields: &[(&str, &str)], body: Option<&Value>) -> Option<(u16, Value)> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        .http_status_as_error(false)
        .build();
    let agent = ureq::Agent::from(config);
    let answer = match method {
        "GET" => fields.iter().fold(agent.get(url), |call, (name, value)| call.header(*name, *value)).call(),
        _ => fields
            .iter()
            .fold(agent.post(url), |call, (name, value)| call.header(*name, *value))
            .header("content-type", "application/json")
            .send(body.map(Value::to_string).unwrap_or_default()),
    };
    let mut answer = answer.ok()?;
    let body = answer.body_mut().read_to_string().unwrap_or_default();
    Some((answer.status().as_u16(), serde_json::from_str(&body).unwrap_or(Value::Null)))
}
