//! The program as a process.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

pub fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_sluice-worker"));
    program.env_clear().stdin(Stdio::null());
    program
}

/// A worker process, killed when dropped.
pub struct Worker(Child);

impl Worker {
    /// Starts roles on PostgreSQL, RabbitMQ and Redis, with these variables besides.
    pub fn start(urls: &[String; 3], roles: &[&str], more: &[(&str, String)]) -> Self {
        let names = ["SLUICE__DATABASE__URL", "SLUICE__AMQP__URL", "SLUICE__REDIS__URL"];
        let mut program = program();
        program
            .envs(names.iter().zip(urls))
            .env("SLUICE__ORDERS__SHARDS", super::broker::SHARDS.to_string())
            .envs(more.iter().map(|(name, value)| (name, value)));
        Self(program.args(roles).stderr(Stdio::null()).spawn().unwrap())
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the process does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
