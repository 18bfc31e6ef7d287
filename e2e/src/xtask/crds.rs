//! `cargo xtask crds`: the chart's copies of the kinds' schemas.

use super::cargo;
use crate::lab::nodenet::workspace;
use std::process::Command;

/// Writes the chart's CustomResourceDefinitions from the kinds.
#[derive(Debug, clap::Args)]
pub struct CrdsArguments {
    /// Changes nothing; fails where a file differs.
    #[arg(long)]
    check: bool,
}

/// Runs the generator.
///
/// # Errors
/// When it does not build.
pub fn run(arguments: &CrdsArguments) -> anyhow::Result<i32> {
    cargo::build("nodenet-crds", &["crdgen"])?;
    let mut command = Command::new(crate::lab::process::lab_tool()?.with_file_name("crdgen"));
    if arguments.check {
        command.arg("--check");
    }
    let status = command.arg("charts/nodenet/crds").current_dir(workspace()).status()?;
    Ok(status.code().unwrap_or(1))
}
