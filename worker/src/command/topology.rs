//! `sluice-worker topology plan|apply|verify|definitions|users`: RabbitMQ against the one description of it.

pub mod management;
pub mod users;

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use sluice_shared::amqp::Link;
use sluice_shared::config::EXIT_USAGE;
use sluice_shared::topology::{Policy, Queue, Topology};

use crate::sources::Sources;
use management::{Management, ManagementError};

/// Names with this prefix are ours: one that the topology does not have is told.
const OURS: &str = "sluice.";

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[arg(value_enum)]
    action: Action,
    /// Where `definitions` and `users` write to, instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What to do with the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Tell what `apply` would change; changes nothing
    Plan,
    /// Declare what is missing and set the policies
    Apply,
    /// Exit 0 when RabbitMQ is as described, else 1 with every difference named
    Verify,
    /// Print it as RabbitMQ imports it (definitions.json)
    Definitions,
    /// Print RabbitMQ's users and their rights as it imports them, with the hashes of the passwords in
    /// SLUICE_AMQP_EDGE_PASSWORD, SLUICE_AMQP_WORKER_PASSWORD and SLUICE_AMQP_OPERATOR_PASSWORD
    Users,
}

/// One thing that is not as described.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// `apply` makes it.
    Missing(String),
    /// `apply` sets it.
    Changed {
        /// What.
        what: String,
        /// As it is.
        is: Value,
        /// As described.
        should: Value,
    },
    /// It cannot be changed in place: an operator has to drain and delete it first.
    Stuck {
        /// What.
        what: String,
        /// As it is.
        is: Value,
        /// As described.
        should: Value,
    },
    /// Ours by name, but not described.
    Unknown(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "+ {what}"),
            Self::Changed { what, is, should } => write!(f, "~ {what}: {is} → {should}"),
            Self::Stuck { what, is, should } => {
                write!(f, "! {what}: {is}, should be {should}; drain and delete it, then apply")
            }
            Self::Unknown(what) => write!(f, "? {what}: not in the topology; left alone"),
        }
    }
}

/// Does it; answers the exit code: 0 done or nothing differs, 1 it differs, 2 no answer.
pub async fn run(sources: &Sources, args: &Args) -> u8 {
    if args.output.is_some() && !matches!(args.action, Action::Definitions | Action::Users) {
        eprintln!("sluice-worker topology: --output is for definitions and users");
        return u8::try_from(EXIT_USAGE).unwrap_or(64);
    }
    let done = match args.action {
        Action::Users => users::definitions(|name| std::env::var(name).ok())
            .map_err(anyhow::Error::from)
            .and_then(|users| print(&users, args.output.as_deref())),
        Action::Definitions => print(&Topology::new(sources.shards).definitions(), args.output.as_deref()),
        action => command(sources, action).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice-worker topology: {error:#}");
            let usage = error.downcast_ref::<users::UsersError>().and(u8::try_from(EXIT_USAGE).ok());
            usage.unwrap_or(2)
        }
    }
}

/// Prints a file for RabbitMQ to import, or puts it in another's place: whole or not at all.
fn print(definitions: &Value, output: Option<&Path>) -> anyhow::Result<u8> {
    let text = format!("{}\n", serde_json::to_string_pretty(definitions)?);
    match output {
        None => std::io::stdout().write_all(text.as_bytes())?,
        Some(file) => {
            let new = file.with_extension("new");
            let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file));
            written.with_context(|| file.display().to_string())?;
        }
    }
    Ok(0)
}

async fn command(sources: &Sources, action: Action) -> anyhow::Result<u8> {
    let topology = Topology::new(sources.shards);
    let management = Management::of(sources.management_url.reveal(), sources.amqp_url.reveal())?;
    if action == Action::Apply {
        apply(&management, sources.amqp_url.reveal(), &topology).await?;
    }
    let differences = differences(&management, &topology).await?;
    for difference in &differences {
        println!("{difference}");
    }
    let stuck = differences.iter().any(|one| !matches!(one, Difference::Unknown(_)));
    match action {
        Action::Plan if differences.is_empty() => println!("rabbitmq is as described"),
        Action::Plan => println!("{} differences; nothing was changed", differences.len()),
        _ if differences.is_empty() => println!("rabbitmq is as described"),
        _ => println!("{} differences", differences.len()),
    }
    Ok(match action {
        Action::Plan => 0,
        // What apply leaves alone is no failure of it.
        Action::Apply => u8::from(stuck),
        Action::Verify | Action::Definitions | Action::Users => u8::from(!differences.is_empty()),
    })
}

/// Declares what is missing, and sets every policy. Repeating it changes nothing.
pub async fn apply(management: &Management, amqp: &str, topology: &Topology) -> anyhow::Result<()> {
    let link = Link::connect(amqp, "sluice-worker topology").await?;
    let declared = link.declare(topology).await;
    link.close().await;
    declared?;
    put_policies(management, topology).await
}

/// Sets every policy; the same again changes nothing.
pub async fn put_policies(management: &Management, topology: &Topology) -> anyhow::Result<()> {
    let (management, policies) = (management.clone(), topology.policies.clone());
    tokio::task::spawn_blocking(move || {
        policies.iter().try_for_each(|policy| management.put_policy(policy.name, &wanted(policy)))
    })
    .await??;
    Ok(())
}

/// Everything that is not as described.
pub async fn differences(management: &Management, topology: &Topology) -> anyhow::Result<Vec<Difference>> {
    let (management, topology) = (management.clone(), topology.clone());
    Ok(tokio::task::spawn_blocking(move || Broker::read(&management).map(|broker| broker.compare(&topology)))
        .await??)
}

/// What RabbitMQ has.
struct Broker {
    exchanges: Vec<Value>,
    queues: Vec<Value>,
    bindings: Vec<Value>,
    policies: Vec<Value>,
}

impl Broker {
    fn read(management: &Management) -> Result<Self, ManagementError> {
        Ok(Self {
            exchanges: management.exchanges()?,
            queues: management.queues()?,
            bindings: management.bindings()?,
            policies: management.policies()?,
        })
    }

    fn compare(&self, topology: &Topology) -> Vec<Difference> {
        let mut differences = Vec::new();
        for exchange in &topology.exchanges {
            let what = format!("exchange {}", exchange.name);
            let should = json!({"type": exchange.kind, "durable": true});
            self.object(&self.exchanges, exchange.name, what, &should, &mut differences);
        }
        for queue in &topology.queues {
            let what = format!("queue {}", queue.name);
            let should = json!({"durable": true, "arguments": queue.all_arguments()});
            self.object(&self.queues, &queue.name, what, &should, &mut differences);
            self.bindings_of(queue, &mut differences);
        }
        self.policies_of(&topology.policies, &mut differences);
        self.unknown(topology, &mut differences);
        differences
    }

    fn object(
        &self,
        list: &[Value],
        name: &str,
        what: String,
        should: &Value,
        differences: &mut Vec<Difference>,
    ) {
        match list.iter().find(|object| object["name"] == name) {
            None => differences.push(Difference::Missing(what)),
            Some(there) => {
                let is = part(there, should);
                if is != *should {
                    differences.push(Difference::Stuck { what, is, should: should.clone() });
                }
            }
        }
    }

    fn bindings_of(&self, queue: &Queue, differences: &mut Vec<Difference>) {
        for (source, key) in &queue.bindings {
            let there = self.bindings.iter().any(|binding| {
                binding["source"] == *source
                    && binding["destination"] == queue.name
                    && binding["routing_key"] == *key
            });
            if !there {
                differences.push(Difference::Missing(format!("binding {source} —{key}→ {}", queue.name)));
            }
        }
    }

    fn policies_of(&self, policies: &[Policy], differences: &mut Vec<Difference>) {
        for policy in policies {
            let (what, should) = (format!("policy {}", policy.name), wanted(policy));
            match self.policies.iter().find(|there| there["name"] == policy.name) {
                None => differences.push(Difference::Missing(what)),
                Some(there) => {
                    let is = part(there, &should);
                    if is != should {
                        differences.push(Difference::Changed { what, is, should });
                    }
                }
            }
        }
    }

    /// Names of ours that nobody described: left over from another number of shards, or a mistake.
    fn unknown(&self, topology: &Topology, differences: &mut Vec<Difference>) {
        let name = |object: &Value| object["name"].as_str().unwrap_or_default().to_owned();
        for exchange in self.exchanges.iter().map(name).filter(|name| name.starts_with(OURS)) {
            if !topology.exchanges.iter().any(|known| known.name == exchange) {
                differences.push(Difference::Unknown(format!("exchange {exchange}")));
            }
        }
        for queue in self.queues.iter().map(name).filter(|name| name.starts_with(OURS)) {
            if !topology.queues.iter().any(|known| known.name == queue) {
                differences.push(Difference::Unknown(format!("queue {queue}")));
            }
        }
        for binding in &self.bindings {
            let of = |field: &str| binding[field].as_str().unwrap_or_default();
            let (source, queue, key) = (of("source"), of("destination"), of("routing_key"));
            let known = topology.queues.iter().any(|known| {
                known.name == queue && known.bindings.iter().any(|(from, by)| *from == source && by == key)
            });
            if source.starts_with(OURS) && !known {
                differences.push(Difference::Unknown(format!("binding {source} —{key}→ {queue}")));
            }
        }
    }
}

/// A policy as the management interface takes and tells it.
fn wanted(policy: &Policy) -> Value {
    json!({"pattern": policy.pattern, "apply-to": "queues", "priority": policy.priority,
        "definition": policy.definition})
}

/// Of what is there, the members that are described.
fn part(there: &Value, should: &Value) -> Value {
    let members = should.as_object().into_iter().flatten();
    members.map(|(key, _)| (key.clone(), there.get(key).cloned().unwrap_or(Value::Null))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// As the management interface would list a broker that is as described.
    fn as_described(topology: &Topology) -> Broker {
        let definitions = topology.definitions();
        let list = |kind: &str| definitions[kind].as_array().unwrap().clone();
        Broker {
            exchanges: list("exchanges"),
            queues: list("queues"),
            bindings: list("bindings"),
            policies: list("policies"),
        }
    }

    #[test]
    fn a_broker_as_described_has_no_differences() {
        let topology = Topology::new(4);
        assert_eq!(as_described(&topology).compare(&topology), []);
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let topology = Topology::new(4);
        let mut broker = as_described(&topology);
        broker.exchanges.remove(0);
        broker.queues[0]["arguments"]["x-queue-type"] = json!("classic");
        broker.bindings.pop();
        broker.policies[0]["definition"]["max-length"] = json!(1);
        broker.queues.push(json!({"name": "sluice.orders.write.99"}));
        let told: Vec<String> = broker.compare(&topology).iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 5, "{told:?}");
        for start in [
            "+ exchange sluice.orders",
            "! queue sluice.orders.write.00",
            "+ binding sluice.dead —parked→ sluice.parked",
            "~ policy sluice-orders",
            "? queue sluice.orders.write.99",
        ] {
            assert!(told.iter().any(|line| line.starts_with(start)), "{start}: {told:?}");
        }
    }

    #[test]
    fn the_file_for_importing_is_the_description() {
        let file = include_str!("../../../ops/rabbitmq/definitions.json");
        let file: Value = serde_json::from_str(file).unwrap();
        let should = Topology::new(4).definitions();
        assert_eq!(file, should, "write it by: sluice-worker topology definitions");
    }
}
