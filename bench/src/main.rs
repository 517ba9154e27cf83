//! `sluice-bench`: load and drills; see [`sluice_bench::cli`].

use clap::Parser;

fn main() -> std::process::ExitCode {
    sluice_bench::cli::Cli::parse().run()
}
