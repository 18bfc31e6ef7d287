//! `nodenet-agent`: see `nodenet-agent --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::SUCCESS
}
