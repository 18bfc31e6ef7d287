//! How the agent behaves where kube-proxy is, or was.
//!
//! | on the node | the service part |
//! |---|---|
//! | kube-proxy runs | writes no virtual server. Where it never worked before it writes nothing at all |
//! | kube-proxy is stopped, what it made treats packets | the same, until somebody asks for [`Settings::takeover`] |
//! | the same, and it was asked for | adopts the virtual servers, and takes the rest away when its own is in place |
//! | nothing of it treats packets | works |
//! | the same, but it served here before the node was started again | writes nothing, until kube-proxy shows itself or it is to be taken over |
//!
//! A kube-proxy that is restarted must not find its tables taken, so that it is not there for a moment says nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use ipnet::IpNet;
use nodenet_crds::conditions::{Status, reason};

use super::machine::Machine;
use crate::diff::{Journal, Others, SERVICE_INTERFACE_KIND};
use crate::kernel::{KernelError, RunningSign};
use crate::report::facts::Verdict;
use crate::source::store::{StoreError, write_file};
use crate::state::{KubeProxy, NodeState, SERVICE_INTERFACE, Scope, VirtualServerKey, Which};

/// What the agent does where kube-proxy is, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Services are served; otherwise they are another proxy's.
    pub serve: bool,
    /// Where they are not: what an agent that served them made is removed.
    pub remove: bool,
    /// What a kube-proxy that is stopped left is taken over.
    pub takeover: bool,
    /// Ranges in which virtual servers of others are neither adopted, changed nor removed.
    pub excluded: Vec<IpNet>,
    /// Between two looks while there is something of kube-proxy.
    pub look: Duration,
    /// For so long after the start it is looked for as often where there is nothing of it: on a node that starts it may
    /// come a little later.
    pub settle: Duration,
    /// Between two readings of the packet filter's rules where Services are left to it: each runs several programs.
    pub rules: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            serve: true,
            remove: false,
            takeover: false,
            excluded: Vec::new(),
            look: Duration::from_secs(5),
            settle: Duration::from_secs(300),
            rules: Duration::from_secs(30),
        }
    }
}

/// What is to be done beside what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stance {
    /// Nothing is known yet.
    Unknown,
    /// Services are not served here.
    Off,
    /// Nothing of kube-proxy treats packets; what there still is of it.
    Alone(KubeProxy),
    /// It runs; how that is known.
    Active(String),
    /// It is stopped, and what it left treats packets.
    Leftovers(KubeProxy),
    /// As before, and it is taken over.
    Taking(KubeProxy),
    /// Nothing of it treats packets, but before the node was started again it served here: it is about to start.
    Awaited,
}

/// What is to be known after the node was started again, when the kernel knows nothing any more: that Services were left
/// to kube-proxy here. A file that is there or not; one that is lost costs that Services are served until it starts.
#[derive(Debug)]
struct Mark {
    path: PathBuf,
    set: bool,
}

impl Mark {
    /// Name of the file in the state folder.
    const FILE: &str = "left-to-kube-proxy";

    fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(Self::FILE);
        let set = path.try_exists().unwrap_or_else(|source| {
            tracing::warn!("{}", StoreError::Io { operation: "read", path: path.clone(), source });
            false
        });
        Self { path, set }
    }

    /// Makes it so. Tried again at the next look where it fails.
    fn put(&mut self, set: bool) {
        if self.set == set {
            return;
        }
        let done = match set {
            true => write_file(&self.path, b"Services of this node are left to kube-proxy\n"),
            false => match fs::remove_file(&self.path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(StoreError::Io { operation: "remove", path: self.path.clone(), source })
                }
                _ => Ok(()),
            },
        };
        match done {
            Ok(()) => self.set = set,
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// Keeps an eye on kube-proxy.
#[derive(Debug)]
pub struct Neighbour {
    settings: Settings,
    stance: Stance,
    /// What was there at the last look at which nothing showed that it runs.
    seen: Option<KubeProxy>,
    /// Something of it came by itself while nothing showed that it runs: one runs that cannot be seen, and that it was
    /// stopped cannot be seen either.
    writer: bool,
    /// Nothing listens at its ports, and what there is of it was there at the look before: nobody is about to start it.
    steady: bool,
    /// The last look at which rules were read, and when.
    rules: Option<(KubeProxy, Instant)>,
    /// Our own part is in the kernel.
    ours: bool,
    mark: Mark,
    started: Instant,
    /// The last look found out what there is.
    sure: bool,
    /// The takeover has begun.
    begun: bool,
    problem: Option<String>,
}

impl Neighbour {
    /// Knows nothing yet but what was kept in `state_dir`.
    pub fn new(settings: Settings, state_dir: &Path) -> Self {
        Self {
            settings,
            stance: Stance::Unknown,
            seen: None,
            writer: false,
            steady: false,
            rules: None,
            ours: false,
            mark: Mark::open(state_dir),
            sure: false,
            begun: false,
            started: Instant::now(),
            problem: None,
        }
    }

    /// What is to be done.
    pub fn stance(&self) -> &Stance {
        &self.stance
    }

    /// Whether the last look found out what there is; otherwise the stance is an older one's.
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    /// Time between two looks; none where the looks at everything are enough.
    pub fn period(&self) -> Option<Duration> {
        let rare = match self.stance {
            Stance::Off => true,
            Stance::Alone(_) => self.started.elapsed() >= self.settings.settle,
            _ => false,
        };
        (!rare).then_some(self.settings.look)
    }

    /// Looks whether it runs and what there is of it. Whether the stance is another one.
    pub fn look(&mut self, machine: &mut Machine) -> bool {
        let now = Instant::now();
        let look = machine.look(&Scope { links: true, ..Scope::default() });
        if look.unreadable.is_empty() {
            let link = look.state.links.get(SERVICE_INTERFACE);
            self.ours = link.is_some_and(|link| link.kind == SERVICE_INTERFACE_KIND);
        }
        let judged = self.judge(machine, now);
        self.sure = judged.is_ok();
        let stance = match judged {
            Ok(stance) => {
                self.problem = None;
                stance
            }
            Err(error) => {
                self.problem = Some(error.to_string());
                return false;
            }
        };
        match &stance {
            Stance::Active(_) | Stance::Leftovers(_) => self.mark.put(true),
            Stance::Alone(_) => self.mark.put(false),
            Stance::Unknown | Stance::Off | Stance::Taking(_) | Stance::Awaited => {}
        }
        let theirs = match &stance {
            // What it serves is not read while it runs: nothing is removed then.
            Stance::Leftovers(left) => Some(left.clone()),
            // It has adopted what was ours.
            Stance::Off => self.seen.clone().filter(KubeProxy::in_force),
            _ => None,
        };
        machine.beside(Others { excluded: self.settings.excluded.clone(), kube_proxy: theirs });
        let changed = std::mem::discriminant(&stance) != std::mem::discriminant(&self.stance);
        if changed {
            self.begun = false;
            match &stance {
                Stance::Unknown => {}
                Stance::Off => tracing::info!("Services are left to another proxy"),
                Stance::Alone(left) if left.is_empty() => tracing::debug!("there is nothing of kube-proxy"),
                Stance::Alone(left) => tracing::info!("kube-proxy left {left}, in nobody's way"),
                Stance::Active(sign) => tracing::warn!("kube-proxy runs: {sign}; Services are left to it"),
                Stance::Leftovers(left) => {
                    tracing::warn!("kube-proxy is stopped and left {left}; Services are left as they are");
                }
                Stance::Taking(left) => tracing::info!("taking over what kube-proxy left: {left}"),
                Stance::Awaited => {
                    tracing::warn!("kube-proxy served here and has not started yet; Services are left to it");
                }
            }
        }
        self.stance = stance;
        changed
    }

    fn judge(&mut self, machine: &mut Machine, now: Instant) -> Result<Stance, KernelError> {
        if !self.settings.serve {
            if self.settings.remove {
                self.seen = Some(self.left(machine, now)?);
            }
            return Ok(Stance::Off);
        }
        let sign = machine.kube_proxy_runs()?;
        if let Some(sign @ (RunningSign::Mode { .. } | RunningSign::Health { .. })) = &sign {
            // What came by itself was made by one that can be seen, and is seen to stop.
            (self.seen, self.writer, self.rules) = (None, false, None);
            return Ok(Stance::Active(sign.to_string()));
        }
        let left = self.left(machine, now)?;
        self.steady = sign.is_none() && self.seen.as_ref() == Some(&left);
        // Who does not say what it is may be anybody, where there is nothing of kube-proxy.
        if let Some(sign) = sign.filter(|_| left.in_force()) {
            self.seen = None;
            return Ok(Stance::Active(sign.to_string()));
        }
        let before = self.seen.replace(left.clone());
        self.writer |= before.as_ref().is_some_and(|before| left.grew(before));
        if !left.in_force() {
            self.writer = false;
            // What it left was there since the node was started, and somebody has removed it.
            let removed = matches!(self.stance, Stance::Leftovers(_) | Stance::Alone(_));
            let awaited = self.mark.set && !self.ours && !removed && !self.settings.takeover;
            return Ok(if awaited { Stance::Awaited } else { Stance::Alone(left) });
        }
        if self.writer {
            let words = "its addresses, sets or rules came (back) by another hand than nodenet's, which shows itself by \
                         nothing else. If it is stopped by now, start nodenet's agent on this node again";
            return Ok(Stance::Active(words.to_owned()));
        }
        // Seen twice without a sign of life: it is not being restarted just now.
        Ok(if self.settings.takeover && before.is_some() && !left.iptables_mode {
            Stance::Taking(left)
        } else {
            Stance::Leftovers(left)
        })
    }

    /// What there is of it. The rules are read at first, and then where there is something of it; while Services are left
    /// to it and nothing else of it changes, more rarely.
    fn left(&mut self, machine: &mut Machine, now: Instant) -> Result<KubeProxy, KernelError> {
        if let Some((before, at)) = &self.rules {
            let left = machine.kube_proxy(false)?.with_rules_of(before);
            let rarely = (self.waits_to_begin()
                || matches!(self.stance, Stance::Leftovers(_) | Stance::Active(_)))
                && left == *before
                && now < *at + self.settings.rules;
            if rarely || (left.is_empty() && !left.in_force()) {
                return Ok(left);
            }
        }
        let left = machine.kube_proxy(true)?;
        self.rules = Some((left.clone(), now));
        Ok(left)
    }

    /// What is to be taken over is from now on. Whether it was not before.
    pub fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    fn waits_to_begin(&self) -> bool {
        matches!(self.stance, Stance::Taking(_)) && !self.begun
    }

    /// Whether Services are left to others.
    pub fn stands_back(&self) -> bool {
        self.waits_to_begin()
            || matches!(
                self.stance,
                Stance::Unknown | Stance::Active(_) | Stance::Leftovers(_) | Stance::Awaited
            )
    }

    /// Whether our part is in the kernel and kept, virtual servers aside, although Services are left to others.
    pub fn works_beside(&self) -> bool {
        self.ours
    }

    /// Whether what is left in nobody's way is to be taken away now.
    pub fn takes_over(&self) -> bool {
        self.settings.takeover && self.steady
    }

    /// Why it is not taken over yet.
    pub fn set_problem(&mut self, problem: Option<String>) {
        self.problem = problem;
    }

    /// Whether load balancers ask another proxy. One that is stopped answers nobody.
    pub fn answers_elsewhere(&self) -> bool {
        matches!(self.stance, Stance::Off | Stance::Active(_) | Stance::Awaited)
    }

    /// The part of a scope that may be written now. Where our part works already beside a kube-proxy that came later, our
    /// own sets, rules and routes are kept as they must be, because packets still go through them; and so are the virtual
    /// servers of firewall marks, because our rules mark packets for them and kube-proxy has none such.
    pub fn allowed(&self, scope: Scope, desired: &NodeState, journal: &Journal) -> Scope {
        if !self.stands_back() {
            return scope;
        }
        if !self.ours {
            return Scope::default();
        }
        let of_mark = |key: &VirtualServerKey| matches!(key, VirtualServerKey::FirewallMark(..));
        let marks = match scope.virtual_servers {
            Which::Only(keys) => keys.into_iter().filter(of_mark).collect(),
            Which::All => {
                let known = desired.virtual_servers.keys().chain(&journal.virtual_servers);
                known.copied().filter(of_mark).collect()
            }
        };
        Scope { virtual_servers: Which::Only(marks), ..scope }
    }

    /// What is to be said about sets and rules instead of whether they are as wanted, and about virtual servers.
    pub fn verdicts(&self) -> Option<(Verdict, Verdict)> {
        let (why, words) = match &self.stance {
            Stance::Taking(left) if self.waits_to_begin() => {
                let waits = self.problem.as_deref().unwrap_or("that is done at the next look");
                let words = format!(
                    "kube-proxy is stopped and left {left}: it still serves Services as they were, and is not taken over \
                     yet: {waits}"
                );
                (reason::KUBE_PROXY_LEFTOVERS, words)
            }
            Stance::Alone(_) | Stance::Taking(_) | Stance::Off => return None,
            Stance::Unknown => {
                let words = match &self.problem {
                    Some(problem) => format!("whether kube-proxy is here is not known: {problem}"),
                    None => "whether kube-proxy is here is not known yet".to_owned(),
                };
                return Some((Verdict::pending(words.clone()), Verdict::pending(words)));
            }
            Stance::Active(sign) => {
                let remedy = "Services are left to it and no virtual server is written. Stop kube-proxy on this node, or \
                              set serviceProxy: false in nodenet's chart to run beside it";
                (reason::KUBE_PROXY_ACTIVE, format!("kube-proxy runs: {sign}. {remedy}"))
            }
            Stance::Leftovers(left) => {
                let remedy = if left.iptables_mode {
                    "rules of its iptables mode are not taken over. They still serve Services as they were, and would \
                     treat packets beside nodenet's: remove them by hand (`kube-proxy --cleanup`); then nodenet serves"
                } else if self.settings.takeover {
                    "it is taken over at the next look"
                } else {
                    "it still serves Services as they were, and is not touched. Set takeover: true in nodenet's chart \
                     to take it over without a break, or remove it by hand (`kube-proxy --cleanup`)"
                };
                (reason::KUBE_PROXY_LEFTOVERS, format!("kube-proxy is stopped and left {left}: {remedy}"))
            }
            Stance::Awaited => {
                let words = "kube-proxy served on this node before the node was started again, and has not started yet: \
                             Services are left to it, and nobody serves them. Start kube-proxy; or, if it is not to come \
                             back, set takeover: true in nodenet's chart";
                (reason::KUBE_PROXY_AWAITED, words.to_owned())
            }
        };
        let rules = match self.ours {
            true => Verdict::ready("sets and rules are as wanted"),
            false => Verdict {
                status: Status::True,
                reason: why,
                message: "kube-proxy's sets and rules are left as they are".to_owned(),
            },
        };
        Some((rules, Verdict::not(why, words)))
    }

    /// What was made for Services goes although they are not served.
    pub fn removes(&self) -> bool {
        self.settings.remove
    }

    /// Something to know where Services are served: what is left of kube-proxy, in nobody's way.
    pub fn remark(&self) -> Option<Verdict> {
        let message = match &self.stance {
            Stance::Alone(left) if !left.is_empty() => {
                let remedy = if self.settings.takeover {
                    "it is removed at the next look at everything"
                } else {
                    "set takeover: true in nodenet's chart to have it removed, or remove it by hand"
                };
                format!("kube-proxy is stopped and left {left}: in nobody's way; {remedy}")
            }
            Stance::Taking(left) => {
                let state = self.problem.as_deref().unwrap_or("being taken over");
                format!("kube-proxy is stopped and left {left}: {state}")
            }
            _ => return None,
        };
        Some(Verdict { status: Status::True, reason: reason::KUBE_PROXY_LEFTOVERS, message })
    }
}
