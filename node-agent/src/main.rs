//! `nodenet-agent`: see `nodenet-agent --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    nodenet_agent::cli::main()
}
