//! Developer commands of the workspace: `cargo xtask --help`.

use clap::{Parser, Subcommand};
use nodenet_e2e::xtask::guest;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    Guest(guest::GuestArguments),
    GuestTest(guest::GuestTestArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Guest(arguments) => guest::run(&arguments),
        Task::GuestTest(arguments) => guest::test(&arguments),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
