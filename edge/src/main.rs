//! `sluice-edge`: the gate.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sluice_edge::config::Config;
use sluice_shared::config::EXIT_USAGE;
use sluice_shared::telemetry;

const MORE: &str = "\
A first run:
  sluice-edge --config edge.toml --check    tells every problem in the file
  sluice-edge --config edge.toml            serves until SIGTERM

Keys that the file leaves out have the defaults of edge.default.toml; SLUICE__SECTION__KEY in the
environment goes over both. SLUICE_LOG=debug says more. SIGTERM and SIGQUIT serve what is under way
and stop, SIGINT stops at once.

Exit status: 0 stopped or good configuration, 64 bad command line or configuration, 1 anything else.";

/// The gate of a flash sale: a reverse proxy that decides at the edge who gets one of the few units.
#[derive(Parser)]
#[command(name = "sluice-edge", version, after_help = MORE)]
struct Arguments {
    /// The configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration: every problem on stderr
    #[arg(long)]
    check: bool,
    /// Run under this name instead of the file's: each running edge needs its own
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

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
    let config = match Config::load(&arguments.config, arguments.name.as_deref()) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return usage();
        }
    };
    if arguments.check {
        println!("configuration is good");
        return ExitCode::SUCCESS;
    }
    telemetry::start();
    match sluice_edge::server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
