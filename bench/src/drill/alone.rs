//! The gate and Redis alone: what only the rest of the system costs is not measured with them.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Scene, sells_again, wait_for};
use crate::servers::Servers;

/// Starts the edge without keys for receipts: what is measured is taking units, and the peer signs nothing.
pub fn stop_signing(servers: &mut Servers, scene: &Scene) -> Result<()> {
    servers.stop("edge")?;
    servers.start_with("edge", "SLUICE__RECEIPT__KEYS", "")?;
    until_sells(scene)
}

/// Starts it again as it was.
pub fn start_signing(servers: &mut Servers, scene: &Scene) -> Result<()> {
    servers.stop("edge")?;
    servers.start("edge")?;
    until_sells(scene)
}

fn until_sells(scene: &Scene) -> Result<()> {
    wait_for("the edge", Duration::from_secs(60), || sells_again(&scene.setting.environment))
}

/// Stops RabbitMQ and the worker: what is accepted stays in the journal.
pub fn stop_writing(servers: &mut Servers) -> Result<()> {
    servers.stop("worker")?;
    servers.stop("rabbitmq")
}

/// Starts them again.
pub fn start_writing(servers: &mut Servers, scene: &Scene) -> Result<()> {
    servers.start("rabbitmq")?;
    let amqp = scene.setting.environment.amqp;
    wait_for("RabbitMQ", Duration::from_secs(60), || Ok(TcpStream::connect(amqp).map(drop)?))?;
    servers.start("worker")?;
    wait_for("the back office", Duration::from_secs(60), || {
        if scene.admin.answers() { Ok(()) } else { bail!("it does not answer") }
    })
}
