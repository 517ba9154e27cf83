//! `sluice-worker`: one role a process, several named, or `all`; and the one-shot commands.

use std::process::ExitCode;

use sluice_worker::command;

/// Batches are many small things that are made and thrown away: this one is quicker at it, and gives
/// memory back once an image of a large sale has been compared.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match command::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    sluice_shared::telemetry::start();
    if let Err(why) = sluice_shared::failpoint::arm() {
        eprintln!("{why}");
        return ExitCode::from(u8::try_from(sluice_shared::config::EXIT_USAGE).unwrap_or(64));
    }
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(command::run(cli));
            // What is still running after the grace period does not hold the process up.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("sluice-worker: no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
