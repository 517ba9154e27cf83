//! `sluice-worker edges`: who may hold accepted orders, and the operator's word that one of them is dead.

use std::fmt::Write as _;
use std::time::Duration;

use sluice_shared::ids::InstanceId;
use sluice_shared::keys::EDGES;
use sluice_shared::redis::{Redis, cmd};
use sluice_shared::sale::Heartbeat;
use tokio::time::{Instant, sleep};

use crate::sources::Sources;
use crate::store::Store;
use crate::store::audit_log::Actor;

/// An edge that was heard within this time lives.
const ALIVE_MS: i64 = 5_000;
/// How long a leading warden may take to strike an edge off.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(5);

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Say that an edge is dead for good, so that no re-opening waits for it
    ///
    /// Only for one that is silent and will never run again: what it had accepted and handed to nobody
    /// is lost with it. One that is only stopped is proven dead by starting it again under its name.
    /// Needs a user who may write: --config of a worker.
    Strike {
        /// The instance, as `sluice-worker edges` lists it
        instance: String,
        /// Why, for the audit log
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
}

/// Lists, or strikes off; answers the exit code: 0 done, 1 not done.
pub async fn run(sources: &Sources, args: &Args) -> u8 {
    match command(sources, args).await {
        Ok(text) => {
            print!("{text}");
            0
        }
        Err(error) => {
            eprintln!("sluice-worker edges: {error:#}");
            1
        }
    }
}

async fn command(sources: &Sources, args: &Args) -> anyhow::Result<String> {
    let redis = Redis::lazy(sources.redis_url.reveal(), DEADLINE)?;
    let store = Store::connect(&sources.database).await?;
    match &args.what {
        None => list(&store, &redis).await,
        Some(What::Strike { instance, why }) => {
            let instance = InstanceId::parse(instance)?;
            let who = std::env::var("USER").unwrap_or_else(|_| "operator".to_owned());
            let actor = Actor { who, role: "operator", request_id: "command line".to_owned() };
            strike(&store, &redis, &instance, &actor, why).await
        }
    }
}

/// Milliseconds since an edge was heard, and the orders that it held then.
async fn heard(redis: &Redis, instance: &InstanceId) -> anyhow::Result<Option<(i64, u64)>> {
    let get = cmd("HGET").arg(EDGES).arg(instance.as_str()).to_owned();
    let text: Option<String> = redis.run("reading a heartbeat", &get).await?;
    let now = redis.time().await?;
    let beat = text.and_then(|text| serde_json::from_str::<Heartbeat>(&text).ok());
    Ok(beat.map(|beat| (now.0 - beat.at.0, beat.held)))
}

/// Fails when an edge is heard. One that Redis knows nothing of is listened for: Redis may just have
/// lost what it said.
async fn listen(redis: &Redis, instance: &InstanceId) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_millis(ALIVE_MS.unsigned_abs());
    loop {
        if let Some((age, _)) = heard(redis, instance).await? {
            // One from the future was heard before Redis' clock went back.
            anyhow::ensure!(
                age.abs() > ALIVE_MS,
                "{instance} was heard {age} ms ago: it lives; stop it first"
            );
            return Ok(());
        }
        if Instant::now() >= end {
            return Ok(());
        }
        sleep(LOOK).await;
    }
}

/// The register, a line an edge.
pub async fn list(store: &Store, redis: &Redis) -> anyhow::Result<String> {
    let edges = store.registered_edges().await?;
    if edges.is_empty() {
        return Ok("no edge is registered\n".to_owned());
    }
    let mut text = String::new();
    for edge in edges {
        let word = match heard(redis, &edge.instance).await? {
            Some((age, held)) if age.abs() <= ALIVE_MS => format!("heard {age} ms ago, holds {held}"),
            Some((age, held)) => format!("SILENT for {} s, held {held}", age / 1000),
            None => "SILENT, never heard by this redis".to_owned(),
        };
        let _ = writeln!(text, "{}  {}  since {}  {word}", edge.instance, edge.name, edge.since.to_text());
    }
    Ok(text)
}

/// Notes that an edge is dead, and waits until a warden has struck it off.
pub async fn strike(
    store: &Store,
    redis: &Redis,
    instance: &InstanceId,
    actor: &Actor,
    why: &str,
) -> anyhow::Result<String> {
    anyhow::ensure!(!why.trim().is_empty(), "--why must say why");
    listen(redis, instance).await?;
    let noted = store.condemn_edge(instance, actor, why).await?;
    anyhow::ensure!(noted, "{instance} is not in the register; `sluice-worker edges` lists who is");
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if store.registered_edges().await?.iter().all(|edge| edge.instance != *instance) {
            return Ok(format!("{instance} is struck off\n"));
        }
        sleep(LOOK).await;
    }
    anyhow::bail!("noted, but no warden has struck {instance} off: is a `reconcile` process leading?")
}
