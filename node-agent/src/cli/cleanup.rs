//! `nodenet-agent cleanup`.

use std::io::Write;

use clap::Args;

use super::CliError;
use super::apply::{failures, machine};
use super::options::KernelOptions;
use super::output::{ChangeForm, Changes};
use crate::agent::journal::JournalFile;
use crate::agent::lock::Lock;
use crate::diff::{Look, Others, Prune};
use crate::filter::InsideMarks;
use crate::state::{NodeState, Scope};

/// Removes addresses, local routes, virtual servers, sets and rules that are ours, of both families. What others made
/// is not touched: virtual servers at addresses that kube-proxy has bound, or at its node ports, are its own again.
/// Kernel settings and modules stay as they are.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Show what would go, do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: ChangeForm,
    #[command(flatten)]
    kernel: KernelOptions,
}

/// Runs it. `false`: something could not be removed.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<bool, CliError> {
    let run_dir = arguments.kernel.run_dir();
    let _lock = if arguments.dry_run { None } else { Some(Lock::take(&run_dir)?) };
    let mut machine =
        machine(arguments.kernel.open()?, JournalFile::open_both(&run_dir)?, InsideMarks::default());
    // Where it runs again, it has adopted what we had.
    let kube_proxy = machine.kube_proxy(true)?;
    let back = kube_proxy.in_force();
    machine.beside(Others { kube_proxy: back.then_some(kube_proxy), ..Others::default() });
    let nothing = NodeState::default();
    let scope = Scope::all(&nothing);
    let mut changes = Changes { dry_run: arguments.dry_run, ..Changes::default() };
    if arguments.dry_run {
        let (outcome, _) = machine.preview(&nothing, &scope, Prune::ALL);
        changes.operations = outcome.transaction.operations().to_vec();
        changes.converged = changes.operations.is_empty();
    } else {
        let synced = machine.sync(&nothing, scope, true, Prune::ALL, &|| {});
        // A kernel without IPVS or sets has none of ours.
        changes.failures = failures(&synced);
        changes.failures.retain(|f| !synced.unreadable.iter().any(|u| u.missing && u.failure == *f));
        changes.converged = synced.left.is_empty();
        changes.messages = synced.messages;
        changes.operations = synced.done;
        if changes.converged {
            for look in [Look::Addresses, Look::Services] {
                machine.tidy(&nothing, look)?;
            }
            if back {
                machine.disown()?;
            }
        }
    }
    changes.print(arguments.output, out)?;
    Ok(changes.failures.is_empty() && (changes.converged || arguments.dry_run))
}
