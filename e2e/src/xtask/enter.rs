//! `cargo xtask enter`: a command in a node, pod or client of a lab that another process keeps up.

use super::guest::print_event;
use crate::lab::guest::Channel;
use crate::lab::protocol::Exec;
use crate::lab::site::Site;
use anyhow::bail;

/// Runs a command in a node, pod or client of the running lab (see `demo --keep`).
#[derive(Debug, clap::Args)]
pub struct EnterArguments {
    /// A node, pod or `client`.
    place: String,
    /// Which lab, when several run: its network namespace.
    #[arg(long)]
    lab: Option<String>,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

/// Runs it; returns its exit code.
///
/// # Errors
/// When no lab runs, or several do and none is named.
pub fn run(arguments: &EnterArguments) -> anyhow::Result<i32> {
    let labs = match &arguments.lab {
        Some(lab) => vec![lab.clone()],
        None => Site::running(),
    };
    let [lab] = labs.as_slice() else {
        bail!(
            "{} labs run here{}; start one with `cargo xtask demo --keep`, name one with --lab",
            labs.len(),
            list(&labs)
        );
    };
    let exec = Exec::new(arguments.argv.clone()).within(&arguments.place);
    Ok(Channel::attach(lab).stream(exec, print_event)?)
}

fn list(labs: &[String]) -> String {
    if labs.is_empty() { String::new() } else { format!(" ({})", labs.join(", ")) }
}
