//! `sluice-edge`: the gate.

use std::process::ExitCode;

use clap::Parser;
use sluice_edge::command::Arguments;
use sluice_edge::config::Config;
use sluice_shared::config::EXIT_USAGE;
use sluice_shared::{failpoint, telemetry};

/// A third of what a refusal costs is memory taken and given back: this one is quicker at it.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let usage = || ExitCode::from(u8::try_from(EXIT_USAGE).unwrap_or(64));
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where even this cannot be printed, the status still says it.
            let _ = error.print();
            return if error.use_stderr() { usage() } else { ExitCode::SUCCESS };
        }
    };
    let config = match Config::load(arguments.config.as_deref(), arguments.name.as_deref()) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return usage();
        }
    };
    if arguments.take_over.as_deref() == Some(config.engine.name.as_str()) {
        eprintln!("--take-over {}: the successor needs another name (--name)", config.engine.name);
        return usage();
    }
    if arguments.check {
        println!("configuration is good");
        return ExitCode::SUCCESS;
    }
    telemetry::start();
    if let Err(why) = failpoint::arm() {
        eprintln!("{why}");
        return usage();
    }
    match sluice_edge::server::run(config, arguments.take_over.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
