//! Carries out what the [`register`](sluice_protocol::warden::register) decides.

use std::sync::Arc;
use std::time::Duration;

use sluice_protocol::warden::register::{Command, Reason, Register};
use sluice_shared::ids::InstanceId;
use sluice_shared::keys::{EDGES, REGISTER};
use sluice_shared::redis::{Fault, cmd};

use super::image::{run_id, scripts};
use super::striking::Striking;
use super::{Trouble, Warden, reopen};

/// Between two looks: a new edge sells this soon after its first heartbeat.
const TICK: Duration = Duration::from_millis(250);

/// Works until it is dropped.
pub async fn run(warden: Arc<Warden>) {
    let mut roll = Roll::default();
    let mut held_up = false;
    loop {
        let round = warden.context.store.bounded(round(&warden, &mut roll)).await;

        if let Err(trouble) = &round
            && !held_up
        {
            tracing::warn!(%trouble, "the register of edges waits");
        }
        held_up = round.is_err();
        if !held_up {
            warden.metrics().round("edges");
        }
        tokio::time::sleep(TICK).await;
    }
}

/// What is remembered from round to round.
#[derive(Debug, Default)]
struct Roll {
    register: Option<Register>,
    /// Which start of Redis it was shown to.
    redis: String,
    /// Instances that stand there and that the books do not know.
    strangers: usize,
    striking: Striking,
}

async fn round(warden: &Warden, roll: &mut Roll) -> Result<(), Trouble> {
    let Roll { register, redis, strangers, striking } = roll;
    let now = run_id(warden.redis()).await?;
    let register = match register {
        Some(register) => register,
        None => register.insert(Register::of(warden.context.store.registered_edges().await?)),
    };
    let shown: usize = warden.redis().run("counting the register", cmd("HLEN").arg(REGISTER)).await?;
    if *redis != now || shown != register.instances().len() + *strangers {
        // Another Redis, or one that somebody emptied.
        register.forget_heartbeats();
        striking.forget();
        *strangers = show_all(warden, &register.instances()).await?;
        *redis = now;
    }
    let [scripts, bytes] = scripts(warden.redis()).await?;
    warden.metrics().scripts.set(scripts);
    warden.metrics().script_bytes.set(bytes);
    let beats = reopen::heartbeats(warden).await?;
    let commands = register.look(&beats);
    carry_out_all(warden, roll, commands).await?;
    let Some(register) = &mut roll.register else { return Ok(()) };
    let now = warden.redis().time().await?;
    let (fell, back) = register.silence(now);
    for (name, instance) in fell {
        tracing::warn!(name, %instance, "an edge is silent; a re-opening would wait for it");
    }
    for (name, instance) in back {
        tracing::info!(name, %instance, "an edge is heard again");
    }
    warden.metrics().silent_edges.set(i64::try_from(register.silent()).unwrap_or(i64::MAX));
    if register.silent() > 0 {
        let commands = register.condemned(&warden.context.store.condemned_edges().await?);
        carry_out_all(warden, roll, commands).await?;
    }
    let Some(register) = &roll.register else { return Ok(()) };
    let commands = roll.striking.look(warden, register, now).await?;
    carry_out_all(warden, roll, commands).await
}

/// One after the other. What failed half-way is in PostgreSQL or not: the next round reads it there again.
async fn carry_out_all(warden: &Warden, roll: &mut Roll, commands: Vec<Command>) -> Result<(), Trouble> {
    let Some(register) = &mut roll.register else { return Ok(()) };
    for command in commands {
        if let Err(trouble) = carry_out(warden, register, command).await {
            roll.register = None;
            return Err(trouble);
        }
    }
    Ok(())
}

async fn carry_out(warden: &Warden, register: &mut Register, command: Command) -> Result<(), Trouble> {
    match command {
        Command::Register(beat) => {
            let stands = warden.context.store.register_edge(&beat).await?;
            register.registered(&beat, stands);
            if stands {
                tracing::info!(name = beat.name, instance = %beat.instance, "an edge is registered");
                warden.floor(|floor| floor.admitted.insert(beat.instance.clone()));
                warden.admit(std::slice::from_ref(&beat.instance), &[]).await?;
                show(warden, &beat.instance).await?;
            }
        }
        Command::Strike(instance, why) => {
            let returns = matches!(why, Reason::Silent(_));
            warden.context.store.strike_edge(&instance, why.text(), returns).await?;
            warden.metrics().struck.inc();
            tracing::info!(%instance, why = why.text(), "an edge is struck off");
            warden.floor(|floor| floor.admitted.remove(&instance));
            // A renewal that is under way would admit it again.
            drop(warden.renewing.lock().await);
            warden.admit(&[], std::slice::from_ref(&instance)).await?;
            bury(warden, &instance).await?;
            register.struck(&instance);
        }
        Command::Bury(instance) => bury(warden, &instance).await?,
    }
    Ok(())
}

/// Writes into Redis who is registered, for edges to see; PostgreSQL has it already.
async fn show(warden: &Warden, instance: &InstanceId) -> Result<(), Fault> {
    let mut write = cmd("HSET");
    write.arg(REGISTER).arg(instance.as_str()).arg(1);
    warden.redis().run::<u64>("showing the register", &write).await.map(|_| ())
}

/// Brings the list in Redis to the register; answers how many stand there that the books do not know. Only
/// those leave it that the books call struck off: they may be older than Redis, or another Redis' books.
async fn show_all(warden: &Warden, instances: &[InstanceId]) -> Result<usize, Trouble> {
    warden.floor(|floor| floor.admitted = instances.iter().cloned().collect());
    let shown: Vec<String> = warden.redis().run("reading", cmd("HKEYS").arg(REGISTER)).await?;
    let registered = |name: &String| instances.iter().any(|instance| instance.as_str() == name);
    let others: Vec<String> = shown.into_iter().filter(|name| !registered(name)).collect();
    let struck =
        if others.is_empty() { Vec::new() } else { warden.context.store.struck_edges(&others).await? };
    for name in &struck {
        let mut remove = cmd("HDEL");
        remove.arg(REGISTER).arg(name);
        warden.redis().run::<u64>("showing the register", &remove).await?;
    }
    for instance in instances {
        show(warden, instance).await?;
    }
    warden.admit(instances, &[]).await?;
    let strangers = others.len() - struck.len();
    if strangers > 0 {
        tracing::warn!(strangers, "instances stand in redis' register that postgresql does not know");
    }
    Ok(strangers)
}

async fn bury(warden: &Warden, instance: &InstanceId) -> Result<(), Fault> {
    for hash in [REGISTER, EDGES] {
        let mut remove = cmd("HDEL");
        remove.arg(hash).arg(instance.as_str());
        warden.redis().run::<u64>("striking an edge off", &remove).await?;
    }
    Ok(())
}
