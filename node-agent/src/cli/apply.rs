//! `nodenet-agent apply`.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nodenet_crds::Failure;

use super::CliError;
use super::input::{self, Input};
use super::options::{KernelKind, KernelOptions, ServiceOptions};
use super::output::{ChangeForm, Changes};
use crate::agent::failures::Unreadable;
use crate::agent::journal::JournalFile;
use crate::agent::lock::Lock;
use crate::agent::machine::{Machine, Synced};
use crate::diff::Note;
use crate::filter::InsideMarks;
use crate::kernel::Kernel;
use crate::kernel::netlink::announce::Announcer;
use crate::report::metrics::{Lane, Metrics};
use crate::resolve::{Origin, Resolver};
use crate::state::{Operation, Scope};

/// `nodenet-operator render -f DIR | nodenet-agent apply -f - --node NAME --dry-run`
#[derive(Debug, Args)]
pub struct Arguments {
    /// YAML with the node's NodeNetState and all NodeNetSlices; `-` is standard input. What is ours in the kernel and
    /// not in the file is removed.
    #[arg(short, long, value_name = "FILE|-")]
    pub filename: PathBuf,
    /// Show the difference, do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: ChangeForm,
    #[command(flatten)]
    services: ServiceOptions,
    #[command(flatten)]
    kernel: KernelOptions,
}

/// Runs it. `false`: something could not be done.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<bool, CliError> {
    let input = input::read(&arguments.filename, &arguments.services.node)?;
    let options = arguments.services.configuration()?.resolver(&arguments.services.node, &arguments.kernel);
    let mut resolver = Resolver::new(options.clone());
    feed(&mut resolver, &input);
    let run_dir = arguments.kernel.run_dir();
    let _lock = if arguments.dry_run { None } else { Some(Lock::take(&run_dir)?) };
    let mut machine = machine(arguments.kernel.open()?, JournalFile::open_both(&run_dir)?, options.inside);
    let changes = if arguments.dry_run {
        preview(&mut machine, &mut resolver)
    } else {
        let changes = make(&mut machine, &mut resolver);
        if arguments.kernel.kernel == KernelKind::Netlink {
            announce(&arguments.kernel, &changes.operations);
        }
        changes
    };
    changes.print(arguments.output, out)?;
    Ok(changes.failures.is_empty() && (changes.converged || arguments.dry_run))
}

/// Gives the resolver all of the input. The file is the whole truth: what it does not name may go.
fn feed(resolver: &mut Resolver, input: &Input) {
    if let Some(state) = &input.state {
        resolver.put_spec(&state.spec, Origin::Api);
    }
    resolver.list_started();
    let mut names = BTreeSet::new();
    for slice in &input.slices {
        let name = slice.metadata.name.clone().unwrap_or_default();
        resolver.put_slice(&name, &slice.spec);
        names.insert(name);
    }
    resolver.list_completed(&names);
}

/// One machine for the work of both lanes.
pub(super) fn machine(kernel: Box<dyn Kernel>, journal: JournalFile, inside: InsideMarks) -> Machine {
    Machine::new(kernel, journal, Duration::ZERO, inside, Arc::new(Metrics::default()), Lane::Service)
}

/// Tells the resolver what the node has.
fn see(machine: &mut Machine, resolver: &mut Resolver) -> Vec<Unreadable> {
    let seen = machine.look(&Scope { addresses: true, gateways: true, ..Scope::default() });
    resolver.put_observed(&seen.state);
    seen.unreadable
}

fn notes(resolver: &Resolver, of_diff: &[Note]) -> Vec<String> {
    let problems = resolver.problems().into_iter().map(|p| p.to_string());
    let incomplete = resolver.incomplete().into_iter().map(|i| i.to_string());
    let faults = resolver
        .virtual_ips()
        .iter()
        .filter_map(|vip| vip.fault().map(|fault| format!("virtual IP {}: {fault}", vip.name)));
    problems.chain(incomplete).chain(faults).chain(of_diff.iter().map(ToString::to_string)).collect()
}

fn preview(machine: &mut Machine, resolver: &mut Resolver) -> Changes {
    let mut unreadable = see(machine, resolver);
    let scope = Scope::all(resolver.desired());
    let (outcome, more) = machine.preview(resolver.desired(), &scope, resolver.prune());
    unreadable.extend(more);
    let operations = outcome.transaction.operations().to_vec();
    let mut notes = notes(resolver, &outcome.notes);
    for Unreadable { failure, .. } in unreadable {
        let words = format!("{} {}: {}", failure.operation, failure.object, failure.message);
        if !notes.contains(&words) {
            notes.push(words);
        }
    }
    Changes { dry_run: true, converged: operations.is_empty(), operations, notes, ..Changes::default() }
}

fn make(machine: &mut Machine, resolver: &mut Resolver) -> Changes {
    let mut changes = Changes { converged: true, ..Changes::default() };
    // An address that came decides about roles and node ports: look again until nothing follows from it.
    for _ in 0..3 {
        let before = changes.operations.len();
        see(machine, resolver);
        let scope = Scope::all(resolver.desired());
        let synced = machine.sync(resolver.desired(), scope, true, resolver.prune(), &|| {});
        changes.converged = synced.converged();
        changes.messages += synced.messages;
        changes.notes = notes(resolver, &synced.notes);
        changes.failures = failures(&synced);
        changes.operations.extend(synced.done);
        if changes.operations.len() == before || !changes.failures.is_empty() {
            break;
        }
    }
    changes
}

/// What could not be done.
pub(super) fn failures(synced: &Synced) -> Vec<Failure> {
    let refused = synced.failed.iter().map(|f| f.failure.clone());
    let unreadable = synced.unreadable.iter().map(|u| u.failure.clone());
    let journal = synced.journal.iter().map(|problem| Failure {
        object: "journal of what is ours".to_owned(),
        operation: "write".to_owned(),
        message: problem.clone(),
    });
    unreadable.chain(refused).chain(journal).collect()
}

/// Makes new addresses known on their links, once. No agent is there to repeat it.
fn announce(kernel: &KernelOptions, operations: &[Operation]) {
    let taken: Vec<_> = operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::AddAddress(key, _) => Some(key),
            _ => None,
        })
        .collect();
    if taken.is_empty() {
        return;
    }
    match Announcer::open(&kernel.namespace()) {
        Ok(mut announcer) => {
            for key in taken {
                if let Err(error) = announcer.announce(key) {
                    tracing::warn!("{error}");
                }
            }
        }
        Err(error) => tracing::warn!("{error}"),
    }
}
