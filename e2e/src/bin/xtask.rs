//! Developer commands of the workspace: `cargo xtask --help`.

use clap::{Parser, Subcommand};
use nodenet_e2e::xtask::{cluster, guest, setup};
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
    Cluster(cluster::ClusterArguments),
    /// Installs packages and builds the control plane, as the other commands do on their first run.
    Setup,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Guest(arguments) => guest::run(&arguments),
        Task::GuestTest(arguments) => guest::test(&arguments),
        Task::Cluster(arguments) => cluster::run(&arguments),
        Task::Setup => setup::run(),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
