//! Calls of cargo by the developer commands.

use anyhow::{Context, bail};
use std::process::{Command, Stdio};

/// Builds binaries of a package in the same profile as this one, silently unless it fails.
///
/// # Errors
/// When they do not build.
pub fn build(package: &str, binaries: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command.args(["build", "--quiet", "--package", package]);
    for binary in binaries {
        command.args(["--bin", binary]);
    }
    let status = command.stdin(Stdio::null()).status().context("start cargo")?;
    if !status.success() {
        bail!("{package} does not build");
    }
    Ok(())
}

/// Builds packages for measuring, into `target/release`.
///
/// # Errors
/// When they do not build.
pub fn build_release(packages: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command.args(["build", "--quiet", "--release"]);
    for package in packages {
        command.args(["--package", package]);
    }
    let status = command.stdin(Stdio::null()).status().context("start cargo")?;
    if !status.success() {
        bail!("{} do not build", packages.join(" and "));
    }
    Ok(())
}

/// Builds the program that runs inside of the lab. Nothing to do for an xtask that was not started by
/// cargo: it finds the one beside itself.
///
/// # Errors
/// When it does not build.
pub fn build_lab_tool() -> anyhow::Result<()> {
    if std::env::var_os("CARGO").is_some() { build("nodenet-e2e", &["lab-tool"]) } else { Ok(()) }
}
