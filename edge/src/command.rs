//! The command line of `sluice-edge`.

use std::path::PathBuf;

use clap::Parser;

const MORE: &str = "\
A first run:
  sluice-edge --config edge.toml --check    tells every problem in the file
  sluice-edge --config edge.toml            serves until SIGTERM
  sluice-edge --config edge.toml --name edge-b --take-over edge
                                            replaces the running `edge`: no connection is lost

Keys that the file leaves out have the defaults of edge.default.toml; SLUICE__SECTION__KEY in the
environment goes over both. SLUICE_LOG=debug says more. SIGTERM and SIGQUIT drain, serve what is
under way and stop; a second one ends the drain, a third one cuts off; SIGINT stops at once. SIGHUP
and `POST /-/reload` read the keys of [identity] and [token] again.

Exit status: 0 stopped or good configuration, 64 bad command line or configuration, 1 anything else.";

/// The gate of a flash sale: a reverse proxy that decides at the edge who gets one of the few units.
#[derive(Debug, Parser)]
#[command(name = "sluice-edge", version, after_help = MORE)]
pub struct Arguments {
    /// The configuration (TOML); without one, the defaults and the environment
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only check the configuration: every problem on stderr
    #[arg(long)]
    pub check: bool,
    /// Run under this name instead of the file's: each running edge needs its own
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Start beside the running edge of this name, take its listeners over once ready, and let it stop
    #[arg(long, value_name = "NAME")]
    pub take_over: Option<String>,
}
