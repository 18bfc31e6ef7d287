//! Calls of cargo by the developer commands.

use anyhow::{Context, bail};
use std::process::{Command, Stdio};

/// Cargo, without what the cargo that started this program told it about its own package: build scripts that look at
/// these variables would run again, and all that depends on them be built anew.
pub fn command() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let about_us =
            name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"));
        if about_us {
            command.env_remove(name);
        }
    }
    command
}

/// Builds binaries of a package in the same profile as this one, silently unless it fails.
///
/// # Errors
/// When they do not build.
pub fn build(package: &str, binaries: &[&str]) -> anyhow::Result<()> {
    let mut command = self::command();
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
    let mut command = self::command();
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
