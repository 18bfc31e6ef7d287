//! What could not be done, kept until a look shows that it is done or no longer wanted.

use std::collections::{BTreeMap, BTreeSet};

use nodenet_crds::Failure;
use nodenet_crds::conditions::reason;

use super::scope::{Area, area, covers};
use crate::diff::Note;
use crate::kernel::{Class, KernelError};
use crate::report::facts::Verdict;
use crate::resolve::Problem;
use crate::state::{Operation, Scope, VirtualServerKey};

/// Failures kept; more say nothing new.
const KEPT: usize = 1024;

/// One operation that the kernel refused.
#[derive(Debug)]
pub struct Failed {
    /// The operation.
    pub operation: Operation,
    /// What to do about it.
    pub class: Class,
    /// For people to read.
    pub failure: Failure,
}

/// A part of the state that could not be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The area of the part.
    pub area: Area,
    /// What to do about it.
    pub class: Class,
    /// For people to read.
    pub failure: Failure,
    /// Whether the kernel lacks the feature: its module must be loaded.
    pub missing: bool,
}

/// An error in the form of a status.
pub fn failure(error: &KernelError) -> Failure {
    let (operation, object, message) = match error {
        KernelError::Refused { operation, object, errno, message } => {
            let words = std::io::Error::from_raw_os_error(*errno).to_string();
            let message = match message {
                Some(kernel) => format!("{kernel}: {words}"),
                None => words,
            };
            (*operation, object, message)
        }
        KernelError::Io { operation, object, source } => (*operation, object, source.to_string()),
        KernelError::Decode { operation, object, source } => {
            (*operation, object, format!("unreadable answer: {source}"))
        }
        KernelError::Program { operation, object, program, status, stderr } => {
            (*operation, object, format!("{program} ended with {status}: {stderr}"))
        }
        KernelError::Late { operation, object, program, limit } => (
            *operation,
            object,
            format!("{program} did not end within {} s and was killed", limit.as_secs_f32()),
        ),
        KernelError::Missing { operation, object, feature, module } => {
            (*operation, object, format!("the kernel has no {feature}; load it with `modprobe {module}`"))
        }
    };
    Failure { object: object.clone(), operation: operation.to_owned(), message }
}

/// What is not as wanted, by lane.
#[derive(Debug, Default)]
pub struct Failures {
    failed: Vec<Failed>,
    unreadable: Vec<Unreadable>,
    journal: Option<Failure>,
    /// Virtual servers that cannot be because another hand's stand in their place.
    foreign: BTreeMap<VirtualServerKey, Failure>,
    /// Virtual servers with something left to do.
    outstanding: BTreeSet<VirtualServerKey>,
}

impl Failures {
    /// A synchronisation of `scope` ended: these are its failures, and `left` what a look still asks for.
    pub fn replace(
        &mut self,
        scope: &Scope,
        failed: Vec<Failed>,
        unreadable: Vec<Unreadable>,
        left: &[Operation],
    ) {
        self.failed.retain(|f| !covers(scope, &f.operation));
        self.failed.extend(failed);
        self.failed.truncate(KEPT);
        let areas: BTreeSet<Area> = super::scope::parts(scope).into_iter().map(|(area, _)| area).collect();
        self.unreadable.retain(|u| !areas.contains(&u.area));
        self.unreadable.extend(unreadable);
        self.outstanding.retain(|key| !scope.virtual_servers.contains(key));
        let keys =
            left.iter().filter_map(server).chain(self.failed.iter().filter_map(|f| server(&f.operation)));
        self.outstanding.extend(keys);
    }

    /// What a comparison of `scope` found to stand in the way; after [`Self::replace`].
    pub fn in_the_way(&mut self, scope: &Scope, notes: &[Note]) {
        self.foreign.retain(|key, _| !scope.virtual_servers.contains(key));
        for note in notes {
            if let Note::ForeignVirtualServer(key) = note {
                let failure = Failure {
                    object: super::words::virtual_server(key),
                    operation: "add virtual server".to_owned(),
                    message: note.to_string(),
                };
                self.foreign.insert(*key, failure);
                self.outstanding.insert(*key);
            }
        }
    }

    /// The journal could not be written, or could again.
    pub fn journal(&mut self, problem: Option<String>) {
        self.journal = problem.map(|message| Failure {
            object: "journal of what is ours".to_owned(),
            operation: "write".to_owned(),
            message,
        });
    }

    /// Whether trying again by itself may help.
    pub fn retry(&self) -> bool {
        let of = |class: Class| matches!(class, Class::Retry | Class::Conflict);
        self.failed.iter().any(|f| of(f.class)) || self.unreadable.iter().any(|u| of(u.class))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.failed.is_empty()
            && self.unreadable.is_empty()
            && self.journal.is_none()
            && self.foreign.is_empty()
    }

    /// Whether something could not be read, done or noted, virtual servers in whose place another hand's stand aside.
    pub fn any_of_ours(&self) -> bool {
        !self.failed.is_empty() || !self.unreadable.is_empty() || self.journal.is_some()
    }

    /// Virtual servers that the kernel or another hand's ones refuse, and those that are not as wanted for whatever reason.
    pub fn servers(&self) -> (usize, usize) {
        let refused = self.failed.iter().filter_map(|f| server(&f.operation));
        let refused: BTreeSet<_> = refused.chain(self.foreign.keys().copied()).collect();
        (refused.len(), self.outstanding.len())
    }

    /// For the status.
    pub fn list(&self) -> Vec<Failure> {
        let unreadable = self.unreadable.iter().map(|u| u.failure.clone());
        let failed = self.failed.iter().map(|f| f.failure.clone());
        let foreign = self.foreign.values().cloned();
        let all = self.journal.iter().cloned().chain(unreadable).chain(failed).chain(foreign);
        all.take(crate::report::status::FAILURES_MAX).collect()
    }

    /// The failure of one operation, by what it is about.
    pub fn find(&self, matches: impl Fn(&Operation) -> bool) -> Option<&Failure> {
        self.failed.iter().find(|f| matches(&f.operation)).map(|f| &f.failure)
    }

    /// Whether an area could not be read.
    pub fn unread(&self, area: Area) -> Option<&Failure> {
        self.unreadable.iter().find(|u| u.area == area).map(|u| &u.failure)
    }

    /// What is to be said about an area.
    pub fn verdict(&self, of: Area, ready: impl Into<String>) -> Verdict {
        let failed: Vec<&Failed> = self.failed.iter().filter(|f| area(&f.operation) == of).collect();
        let unreadable: Vec<&Unreadable> = self.unreadable.iter().filter(|u| u.area == of).collect();
        let foreign: Vec<&Failure> =
            if of == Area::VirtualServers { self.foreign.values().collect() } else { Vec::new() };
        if failed.is_empty() && unreadable.is_empty() && foreign.is_empty() {
            return Verdict::ready(ready);
        }
        let modules = || failed.iter().any(|f| matches!(f.operation, Operation::LoadModule(_)));
        let why = match of {
            Area::Kernel if modules() => reason::MODULE_MISSING,
            Area::Kernel => reason::SYSCTL_REFUSED,
            _ if failed.is_empty() && unreadable.is_empty() => reason::ADDRESS_IN_USE,
            _ if unreadable.iter().any(|u| u.missing) => reason::MODULE_MISSING,
            _ => reason::KERNEL_REFUSED,
        };
        // The same words about many objects are said once.
        let mut by_words: BTreeMap<&str, (usize, &str, &str)> = BTreeMap::new();
        let refused = unreadable.iter().map(|u| &u.failure).chain(failed.iter().map(|f| &f.failure));
        for f in refused.chain(foreign) {
            by_words.entry(&f.message).or_insert((0, &f.operation, &f.object)).0 += 1;
        }
        let words: Vec<String> = by_words
            .into_iter()
            .map(|(message, (count, operation, object))| match count {
                1 => format!("{operation} {object}: {message}"),
                n => format!("{operation} {object} and {} more: {message}", n - 1),
            })
            .collect();
        Verdict::not(why, words.join("; "))
    }
}

/// What of the input makes no sense, in the form of a status.
pub fn problems(problems: &[Problem]) -> Vec<Failure> {
    let failure = |problem: &Problem| Failure {
        object: problem.object.clone(),
        operation: "resolve".to_owned(),
        message: problem.reason.to_string(),
    };
    problems.iter().take(crate::report::status::FAILURES_MAX).map(failure).collect()
}

fn server(operation: &Operation) -> Option<VirtualServerKey> {
    match operation {
        Operation::AddVirtualServer(key, _)
        | Operation::SetVirtualServer(key, _)
        | Operation::DeleteVirtualServer(key)
        | Operation::AddRealServer(key, ..)
        | Operation::SetRealServer(key, ..)
        | Operation::DeleteRealServer(key, _) => Some(*key),
        _ => None,
    }
}
