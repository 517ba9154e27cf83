//! The keys that requests are judged with. A reload replaces them as a whole, under load.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use sluice_shared::config::Problems;

use crate::config::{Config, Keys};

/// The keys in use, and where newer ones are read.
#[derive(Debug)]
pub struct Keyring {
    keys: ArcSwap<Keys>,
    file: Option<PathBuf>,
}

impl Keyring {
    /// With the keys that were read from this file.
    pub fn new(keys: Keys, file: Option<PathBuf>) -> Self {
        Self { keys: ArcSwap::from_pointee(keys), file }
    }

    /// The keys now. A request that has begun may end with the former ones.
    pub fn now(&self) -> Guard<Arc<Keys>> {
        self.keys.load()
    }

    /// Reads the configuration again and takes `[identity]` and `[token]` from it; a file with any
    /// problem changes nothing. Everything else stays as it was at the start.
    pub fn reload(&self) -> Result<(), Problems> {
        let reread = Config::load(self.file.as_deref(), None)?;
        self.keys.store(Arc::new(reread.keys));
        tracing::info!("reloaded: keys and times of [identity] and [token]");
        Ok(())
    }
}
