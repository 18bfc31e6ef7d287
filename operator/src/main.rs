//! The command `nodenet-operator`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use nodenet_client::ApiServers;
use nodenet_operator::cli::{Cleanup, Cli, Command, Render};
use nodenet_operator::{cleanup, publish, render, run};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(options) => {
            log(&options.log).and_then(|()| block_on(async { Ok(run::run(options).await?) })).map(|()| true)
        }
        Command::Cleanup(options) => block_on(clean(options)).map(|()| true),
        Command::Render(options) => print(options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nodenet-operator: {}", publish::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(future)
}

/// One line a change, on standard error.
fn log(filter: &str) -> anyhow::Result<()> {
    let mut filter: EnvFilter = filter.parse().with_context(|| format!("--log {filter:?}"))?;
    // The client's own words for each failed request: ours say what it means, and say it once.
    for quiet in ["kube_client=off", "kube_runtime=off"] {
        if !filter.to_string().contains("kube_") {
            filter = filter.add_directive(quiet.parse::<Directive>()?);
        }
    }
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
    Ok(())
}

async fn clean(options: Cleanup) -> anyhow::Result<()> {
    let client = ApiServers::new(&options.connection.access()).await?.client();
    let removed = cleanup::cleanup(&client, cleanup::AGENTS_SEE).await?;
    println!("removed {} NodeNetSlices and {} NodeNetStates", removed.slices, removed.states);
    Ok(())
}

fn print(options: Render) -> anyhow::Result<bool> {
    let settings = options.planning.settings();
    settings.check()?;
    let output = render::render(&options.paths, settings, jiff::Timestamp::now())?;
    for problem in &output.problems {
        eprintln!("{problem}");
    }
    match std::io::stdout().write_all(output.documents.as_bytes()) {
        // `render | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.context("standard output")?,
    }
    Ok(!output.undecodable)
}
