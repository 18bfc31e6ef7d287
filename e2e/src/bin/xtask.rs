//! Developer commands of the workspace: `cargo xtask --help`.

use clap::{Parser, Subcommand};
use nodenet_e2e::xtask::{bench, cluster, crds, demo, enter, guest, operator_bench, setup, test};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer commands of the workspace; those that start a lab need root"
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    Demo(demo::DemoArguments),
    Test(test::TestArguments),
    Bench(bench::BenchArguments),
    OperatorBench(operator_bench::OperatorBenchArguments),
    Crds(crds::CrdsArguments),
    Cluster(cluster::ClusterArguments),
    Guest(guest::GuestArguments),
    GuestTest(guest::GuestTestArguments),
    Enter(enter::EnterArguments),
    /// Installs packages and builds the control plane, as the other commands do on their first run.
    Setup,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::OperatorBench(arguments) => operator_bench::run(&arguments),
        Task::Crds(arguments) => crds::run(&arguments),
        Task::Cluster(arguments) => cluster::run(&arguments),
        Task::Guest(arguments) => guest::run(&arguments),
        Task::GuestTest(arguments) => guest::test(&arguments),
        Task::Enter(arguments) => enter::run(&arguments),
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
