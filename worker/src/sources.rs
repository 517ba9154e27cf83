//! Where one-shot commands find the servers.

use std::path::Path;

use sluice_shared::config::{Problems, Secret, Settings};

use crate::config::{self, Config};
use crate::store::DatabaseConfig;

/// Where a one-shot command finds the servers: from a configuration file or the environment. RabbitMQ's
/// addresses are empty where nobody gives them, the others are the defaults then.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Redis.
    pub redis_url: Secret,
    /// PostgreSQL, with the default pool and timeouts when it comes from the environment.
    pub database: DatabaseConfig,
    /// RabbitMQ.
    pub amqp_url: Secret,
    /// RabbitMQ's management plugin.
    pub management_url: Secret,
    /// Write queues.
    pub shards: u16,
}

impl Sources {
    fn of(config: Config) -> Self {
        Self {
            redis_url: config.redis.url,
            database: config.database,
            amqp_url: config.amqp.url,
            management_url: config.amqp.management_url,
            shards: config.orders.shards,
        }
    }

    /// From a configuration file, or from the environment where there is none.
    pub fn read(file: Option<&Path>) -> Result<Self, Problems> {
        if file.is_some() {
            return Config::load(file, &[]).map(Self::of);
        }
        let mut sources = Config::read(Settings::load(config::DEFAULTS, None), &[]).map(Self::of)?;
        let said = |name: &str| std::env::var(name).ok().filter(|url| !url.is_empty());
        // What is in no environment is not known: RabbitMQ is not guessed at.
        for (url, long) in [
            (&mut sources.amqp_url, "SLUICE__AMQP__URL"),
            (&mut sources.management_url, "SLUICE__AMQP__MANAGEMENT_URL"),
        ] {
            if said(long).is_none() {
                *url = Secret::default();
            }
        }
        for (url, short) in [
            (&mut sources.redis_url, "SLUICE_REDIS_URL"),
            (&mut sources.database.url, "SLUICE_DATABASE_URL"),
            (&mut sources.amqp_url, "SLUICE_AMQP_URL"),
            (&mut sources.management_url, "SLUICE_AMQP_MANAGEMENT_URL"),
        ] {
            if let Some(said) = said(short) {
                *url = Secret::new(said);
            }
        }
        Ok(sources)
    }
}
