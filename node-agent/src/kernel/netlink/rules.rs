//! Our chains and the jumps to them, by the host's iptables.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    process::{Command, Output},
};

use super::{
    namespace::Namespace,
    program::{LIMIT, Task, find, shortened},
};
use crate::{
    filter,
    kernel::KernelError,
    state::{Family, PREFIX, Ruleset},
};

/// Which of the kernel's two packet filters `iptables` speaks to. They see the same packets but not each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PacketFilterMode {
    /// The one that the host uses: see [`Rules::settle`].
    #[default]
    Auto,
    /// nftables by `iptables-nft`.
    Nft,
    /// The older tables by `iptables-legacy`.
    Legacy,
}

/// Chains that a kubelet makes; where they are is what the host uses.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// The packet filter of a network namespace.
pub(super) struct Rules {
    namespace: Namespace,
    wanted: PacketFilterMode,
    settled: Option<Programs>,
    /// What was read while it was not settled: good for the commit that follows.
    seen: Vec<Candidate>,
    /// Packet filters that could be read for kube-proxy's rules once.
    readable: BTreeSet<(&'static str, Family)>,
    run: u64,
}

/// One set of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Programs {
    mode: PacketFilterMode,
    /// `iptables<infix>-save`
    infix: &'static str,
}

const NFT: Programs = Programs { mode: PacketFilterMode::Nft, infix: "-nft" };
const LEGACY: Programs = Programs { mode: PacketFilterMode::Legacy, infix: "-legacy" };
/// Where the host has but one.
const PLAIN: Programs = Programs { mode: PacketFilterMode::Auto, infix: "" };

impl Programs {
    fn name(self, family: Family, what: &str) -> String {
        let family = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{family}{}-{what}", self.infix)
    }
}

impl Rules {
    pub(super) fn new(namespace: Namespace, wanted: PacketFilterMode) -> Self {
        let settled = match wanted {
            PacketFilterMode::Auto => None,
            PacketFilterMode::Nft => Some(NFT),
            PacketFilterMode::Legacy => Some(LEGACY),
        };
        Self { namespace, wanted, settled, seen: Vec::new(), readable: BTreeSet::new(), run: 0 }
    }

    /// Programs run so far.
    pub(super) fn programs_run(&self) -> u64 {
        self.run
    }

    /// The mode in use, once it is known.
    pub(super) fn mode(&self) -> Option<PacketFilterMode> {
        self.settled.map(|programs| programs.mode)
    }

    /// Reads our chains and jumps of both families. A family without any is left out.
    pub(super) fn read(&mut self) -> Result<BTreeMap<Family, Ruleset>, KernelError> {
        let (programs, mut first) = match self.settled {
            Some(programs) => (programs, None),
            None => {
                self.seen = self.candidates()?;
                let Some(candidate) = self.seen.first() else { return Ok(BTreeMap::new()) };
                if candidate.ours {
                    self.settled = Some(candidate.programs);
                }
                (candidate.programs, Some(candidate.text.clone()))
            }
        };
        let mut rules = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            // Which programs to use was found out by reading IPv4's rules.
            let text = first.take().map_or_else(|| self.save(programs, family), |text| Ok(Some(text)));
            let text = match text {
                Ok(Some(text)) => text,
                Ok(None) => continue,
                // IPv4 must not suffer for it; whoever wants IPv6 rules hears of it when they are to be written.
                Err(error) if family == Family::V6 => {
                    tracing::debug!(%error, "no IPv6 rules");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let ruleset = filter::parse(family, &text);
            if ruleset != Ruleset::default() {
                rules.insert(family, ruleset);
            }
        }
        Ok(rules)
    }

    /// Makes our chains and jumps of a family those wanted, in one run of `iptables-restore`. Whether anything had to
    /// be done.
    pub(super) fn replace(&mut self, family: Family, wanted: &Ruleset) -> Result<bool, KernelError> {
        if family == Family::V6 && !has_ipv6() {
            return Err(KernelError::Missing {
                operation: "replace",
                object: object(family),
                feature: "IPv6",
                module: "ipv6",
            });
        }
        let Some(programs) = self.settled else { return self.settle(family, wanted) };
        let Some(text) = self.save(programs, family)? else {
            return Err(no_program(family, &programs.name(family, "save")));
        };
        self.write(programs, family, wanted, &text)
    }

    /// What of kube-proxy is in a family's rules. Both packet filters are looked at: the host may use one and kube-proxy
    /// have used the other. One that never could be read has none; that one cannot be read now says nothing.
    pub(super) fn kube_proxys(&mut self, family: Family) -> Result<filter::kube_proxy::Found, KernelError> {
        let mut all = filter::kube_proxy::Found::default();
        for (_, text) in self.both(family)? {
            let found = filter::kube_proxy::find(&text);
            all.chains.extend(found.chains);
            all.jumps |= found.jumps;
            all.iptables_mode |= found.iptables_mode;
        }
        Ok(all)
    }

    /// Takes kube-proxy's chains and jumps out.
    pub(super) fn remove_kube_proxys(&mut self, family: Family) -> Result<(), KernelError> {
        for (programs, text) in self.both(family)? {
            let removal = filter::kube_proxy::removal(&text);
            if !removal.is_empty() {
                self.restore(programs, family, &removal)?;
            }
        }
        Ok(())
    }

    /// The rules of a family in each packet filter that the kernel has.
    fn both(&mut self, family: Family) -> Result<Vec<(Programs, String)>, KernelError> {
        let mut found = Vec::new();
        for programs in [NFT, LEGACY, PLAIN] {
            if programs == PLAIN && !found.is_empty() {
                break;
            }
            match self.save(programs, family) {
                Ok(Some(text)) => {
                    self.readable.insert((programs.infix, family));
                    found.push((programs, text));
                }
                Ok(None) => {}
                Err(error) if is_absence(&error, self.readable.contains(&(programs.infix, family))) => {
                    tracing::debug!("{error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn write(
        &mut self,
        programs: Programs,
        family: Family,
        wanted: &Ruleset,
        current: &str,
    ) -> Result<bool, KernelError> {
        let text = filter::restore_text(wanted, &filter::parse(family, current));
        if text.is_empty() {
            return Ok(false);
        }
        self.restore(programs, family, &text)?;
        Ok(true)
    }

    /// Which programs to use: those that have our chains already; otherwise the side that a kubelet uses, otherwise
    /// the side with more rules, otherwise nftables; and only if writing works there, because `iptables-nft-save`
    /// succeeds on kernels where `iptables-nft` can change nothing.
    ///
    /// The rules themselves are the trial: a candidate that refuses them is passed over. What was read just before for
    /// the comparison serves here too; each program is 30 to 70 ms on a slow machine.
    fn settle(&mut self, family: Family, wanted: &Ruleset) -> Result<bool, KernelError> {
        let mut candidates = std::mem::take(&mut self.seen);
        if candidates.is_empty() {
            candidates = self.candidates()?;
        }
        let mut first_error = None;
        for candidate in candidates {
            let current = match family {
                Family::V4 => Some(candidate.text),
                Family::V6 => self.save(candidate.programs, family)?,
            };
            let outcome = match current {
                Some(current) => self.write(candidate.programs, family, wanted, &current),
                None => Err(no_program(family, &candidate.programs.name(family, "save"))),
            };
            match outcome {
                Ok(changed) => {
                    self.settled = Some(candidate.programs);
                    return Ok(changed);
                }
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| no_program(family, "iptables-save")))
    }

    /// The programs that are there, the most likely first.
    fn candidates(&mut self) -> Result<Vec<Candidate>, KernelError> {
        debug_assert_eq!(self.wanted, PacketFilterMode::Auto);
        let mut candidates = Vec::new();
        for programs in [NFT, LEGACY] {
            candidates.extend(self.candidate(programs)?);
        }
        if candidates.is_empty() {
            candidates.extend(self.candidate(PLAIN)?);
        }
        // Stable: nftables first among equals.
        candidates.sort_by_key(|it| std::cmp::Reverse((it.ours, it.hinted, it.rules)));
        Ok(candidates)
    }

    fn candidate(&mut self, programs: Programs) -> Result<Option<Candidate>, KernelError> {
        let Some(text) = self.save(programs, Family::V4)? else { return Ok(None) };
        let ours = format!(":{PREFIX}");
        Ok(Some(Candidate {
            programs,
            ours: text.lines().any(|line| line.starts_with(&ours)),
            hinted: text.lines().any(|line| HINTS.iter().any(|hint| line.starts_with(hint))),
            rules: text.lines().filter(|line| line.starts_with("-A ")).count(),
            text,
        }))
    }

    /// All rules of a family; `None` where the program or the family is not there.
    fn save(&mut self, programs: Programs, family: Family) -> Result<Option<String>, KernelError> {
        if family == Family::V6 && !has_ipv6() {
            return Ok(None);
        }
        let name = programs.name(family, "save");
        let Some(program) = find(&name) else { return Ok(None) };
        let task = Task { operation: "read", object: object(family), program: &name };
        let output = self.output(Command::new(program), task, "")?;
        if !output.status.success() {
            return Err(failed("read", family, name, &output));
        }
        Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    fn restore(&mut self, programs: Programs, family: Family, text: &str) -> Result<(), KernelError> {
        let name = programs.name(family, "restore");
        let Some(program) = find(&name) else { return Err(no_program(family, &name)) };
        let mut command = Command::new(program);
        // Another hand may hold the lock of the older tables for a while.
        command.args(["--noflush", "--wait", "10"]);
        let task = Task { operation: "replace", object: object(family), program: &name };
        let output = self.output(command, task, text)?;
        if output.status.success() { Ok(()) } else { Err(failed("replace", family, name, &output)) }
    }

    fn output(&mut self, mut command: Command, task: Task<'_>, input: &str) -> Result<Output, KernelError> {
        self.run += 1;
        command.env("LC_ALL", "C");
        self.namespace.run(|| task.run(command, input, LIMIT))?
    }
}

/// Whether an error says that the kernel does not have this packet filter: its program ran, and never read anything.
fn is_absence(error: &KernelError, read_before: bool) -> bool {
    matches!(error, KernelError::Program { .. }) && !read_before
}

/// Programs that are there, and what speaks for them.
struct Candidate {
    programs: Programs,
    ours: bool,
    hinted: bool,
    rules: usize,
    /// IPv4's rules as they were read.
    text: String,
}

fn object(family: Family) -> String {
    match family {
        Family::V4 => "IPv4 packet filter rules".to_owned(),
        Family::V6 => "IPv6 packet filter rules".to_owned(),
    }
}

fn no_program(family: Family, name: &str) -> KernelError {
    KernelError::Io {
        operation: "replace",
        object: object(family),
        source: io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no program {name}; install iptables"),
        ),
    }
}

fn failed(operation: &'static str, family: Family, program: String, output: &Output) -> KernelError {
    KernelError::Program {
        operation,
        object: object(family),
        program,
        status: output.status,
        stderr: shortened(&output.stderr),
    }
}

/// Whether the kernel speaks IPv6 at all.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_packet_filter_is_absent_only_where_it_never_could_be_read() {
        let output =
            Output { status: ExitStatus::from_raw(256), stdout: Vec::new(), stderr: b"no tables".into() };
        let refused = failed("read", Family::V4, "iptables-nft-save".into(), &output);
        assert!(is_absence(&refused, false));
        assert!(!is_absence(&refused, true), "its rules may still be in force");
        let late = KernelError::Late {
            operation: "read",
            object: object(Family::V4),
            program: "iptables-legacy-save".into(),
            limit: LIMIT,
        };
        assert!(!is_absence(&late, false));
    }
}
