//! `cargo xtask guest`: programs and test binaries as root in a throwaway guest kernel.

use super::cargo;
use crate::lab::guest::Guest;
use crate::lab::prerequisites;
use crate::lab::protocol::{Event, Exec};
use crate::lab::site::Site;
use anyhow::{Context, bail};
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

/// Runs one command in a guest that is booted for it, in the current folder and with the caller's
/// variables.
#[derive(Debug, clap::Args)]
pub struct GuestArguments {
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

/// Builds a package's tests on the host and runs them in a guest.
#[derive(Debug, clap::Args)]
pub struct GuestTestArguments {
    /// The package.
    #[arg(short, long)]
    package: String,
    /// Only this integration test (as `cargo test --test`); may be repeated.
    #[arg(long)]
    test: Vec<String>,
    /// Only the library's own tests.
    #[arg(long)]
    lib: bool,
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Arguments of the test binaries (a filter, `--nocapture`, ...).
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the command; returns its exit code.
///
/// # Errors
/// When the guest does not come up.
pub fn run(arguments: &GuestArguments) -> anyhow::Result<i32> {
    cargo::build_lab_tool()?;
    prerequisites::guest()?;
    let site = Site::create()?;
    let guest = Guest::boot(&site, arguments.memory)?;
    execute(&guest, arguments.argv.clone())
}

/// Builds and runs the tests; returns the first exit code that is not 0.
///
/// # Errors
/// When they do not build, or the guest does not come up.
pub fn test(arguments: &GuestTestArguments) -> anyhow::Result<i32> {
    cargo::build_lab_tool()?;
    let mut command = crate::xtask::cargo::command();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics", "-p", &arguments.package]);
    if arguments.lib {
        command.arg("--lib");
    }
    for test in &arguments.test {
        command.args(["--test", test]);
    }
    let built = command.stderr(Stdio::inherit()).output().context("start cargo")?;
    if !built.status.success() {
        bail!("the tests of {} do not build", arguments.package);
    }
    let executables = executables(&String::from_utf8_lossy(&built.stdout));
    prerequisites::guest()?;
    let site = Site::create()?;
    let guest = Guest::boot(&site, arguments.memory)?;
    let mut result = 0;
    for executable in executables {
        let mut argv = vec![executable.display().to_string()];
        argv.extend(arguments.arguments.iter().cloned());
        let code = execute(&guest, argv)?;
        if result == 0 {
            result = code;
        }
    }
    Ok(result)
}

/// The test binaries among cargo's messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

fn execute(guest: &Guest, argv: Vec<String>) -> anyhow::Result<i32> {
    let mut exec = Exec::new(argv);
    exec.cwd = Some(std::env::current_dir()?.display().to_string());
    let ours = ["RUST_", "NODENET_", "PROPTEST_", "CARGO_"];
    exec.env =
        std::env::vars().filter(|(name, _)| ours.iter().any(|start| name.starts_with(start))).collect();
    Ok(guest.channel().stream(exec, print_event)?)
}

/// Passes a program's output on.
pub(super) fn print_event(event: &Event) {
    match event {
        Event::Out { text } => {
            print!("{text}");
            let _ = std::io::stdout().flush();
        }
        Event::Err { text } => eprint!("{text}"),
        _ => {}
    }
}
