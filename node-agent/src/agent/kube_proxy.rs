//! How the agent behaves where kube-proxy is, or was.
//!
//! | on the node | the service part |
//! |---|---|
//! | kube-proxy runs | writes no virtual server. Where it never worked before it writes nothing at all |
//! | kube-proxy is stopped, what it made treats packets | the same, until somebody asks for [`Settings::takeover`] |
//! | the same, and it was asked for | adopts the virtual servers, and takes the rest away when its own is in place |
//! | nothing of it treats packets | works |
//!
//! A kube-proxy that is restarted must not find its tables taken, so that it is not there for a moment says nothing.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use nodenet_crds::conditions::{Status, reason};

use super::machine::Machine;
use crate::diff::{Others, SERVICE_INTERFACE_KIND};
use crate::kernel::{KernelError, RunningSign};
use crate::report::facts::Verdict;
use crate::state::{KubeProxy, SERVICE_INTERFACE, Scope, Which};

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
    /// For so long something that came back by itself says that a kube-proxy runs that shows itself by nothing else.
    pub writer: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            serve: true,
            remove: false,
            takeover: false,
            excluded: Vec::new(),
            look: Duration::from_secs(5),
            writer: Duration::from_secs(600),
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
}

/// Keeps an eye on kube-proxy.
#[derive(Debug)]
pub struct Neighbour {
    settings: Settings,
    stance: Stance,
    /// What was there at the last look at which nothing showed that it runs.
    seen: Option<KubeProxy>,
    /// Until when what came by itself counts.
    writer_until: Option<Instant>,
    /// Our own part is in the kernel.
    ours: bool,
    problem: Option<String>,
}

impl Neighbour {
    /// Knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, stance: Stance::Unknown, seen: None, writer_until: None, ours: false, problem: None }
    }

    /// What is to be done.
    pub fn stance(&self) -> &Stance {
        &self.stance
    }

    /// Time between two looks; none where the looks at everything are enough.
    pub fn period(&self) -> Option<Duration> {
        (!matches!(self.stance, Stance::Alone(_) | Stance::Off)).then_some(self.settings.look)
    }

    /// Looks whether it runs and what there is of it. Whether the stance is another one.
    pub fn look(&mut self, machine: &mut Machine) -> bool {
        let now = Instant::now();
        let stance = match self.judge(machine, now) {
            Ok(stance) => {
                self.problem = None;
                stance
            }
            Err(error) => {
                self.problem = Some(error.to_string());
                return false;
            }
        };
        let links = machine.look(&Scope { links: true, ..Scope::default() }).state.links;
        self.ours = links.get(SERVICE_INTERFACE).is_some_and(|link| link.kind == SERVICE_INTERFACE_KIND);
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
            }
        }
        self.stance = stance;
        changed
    }

    fn judge(&mut self, machine: &mut Machine, now: Instant) -> Result<Stance, KernelError> {
        if !self.settings.serve {
            if self.settings.remove {
                self.seen = Some(machine.kube_proxy()?);
            }
            return Ok(Stance::Off);
        }
        let sign = machine.kube_proxy_runs()?;
        if let Some(sign @ (RunningSign::Mode { .. } | RunningSign::Health { .. })) = &sign {
            self.seen = None;
            return Ok(Stance::Active(sign.to_string()));
        }
        let left = machine.kube_proxy()?;
        // Who does not say what it is may be anybody, where there is nothing of kube-proxy.
        if let Some(sign) = sign.filter(|_| left.in_force()) {
            self.seen = None;
            return Ok(Stance::Active(sign.to_string()));
        }
        let before = self.seen.replace(left.clone());
        if before.as_ref().is_some_and(|before| left.grew(before)) {
            self.writer_until = Some(now + self.settings.writer);
        }
        if !left.in_force() {
            return Ok(Stance::Alone(left));
        }
        if self.writer_until.is_some_and(|until| now < until) {
            let words = "its addresses, sets or rules came (back) by another hand than nodenet's";
            return Ok(Stance::Active(words.to_owned()));
        }
        // Seen twice without a sign of life: it is not being restarted just now.
        Ok(if self.settings.takeover && before.is_some() {
            Stance::Taking(left)
        } else {
            Stance::Leftovers(left)
        })
    }

    /// Whether Services are left to others.
    pub fn stands_back(&self) -> bool {
        matches!(self.stance, Stance::Unknown | Stance::Active(_) | Stance::Leftovers(_))
    }

    /// Whether our part is in the kernel and kept, virtual servers aside, although Services are left to others.
    pub fn works_beside(&self) -> bool {
        self.ours
    }

    /// Whether what is left is to be taken over.
    pub fn takes_over(&self) -> bool {
        self.settings.takeover
    }

    /// Why it is not taken over yet.
    pub fn set_problem(&mut self, problem: Option<String>) {
        self.problem = problem;
    }

    /// Whether load balancers ask another proxy. One that is stopped answers nobody.
    pub fn answers_elsewhere(&self) -> bool {
        matches!(self.stance, Stance::Off | Stance::Active(_))
    }

    /// The part of a scope that may be written now. Where our part works already beside a kube-proxy that came later, our
    /// own sets, rules and routes are kept as they must be: packets still go through them.
    pub fn allowed(&self, scope: Scope) -> Scope {
        match (self.stands_back(), self.ours) {
            (false, _) => scope,
            (true, true) => Scope { virtual_servers: Which::default(), ..scope },
            (true, false) => Scope::default(),
        }
    }

    /// What is to be said about sets and rules instead of whether they are as wanted, and about virtual servers.
    pub fn verdicts(&self) -> Option<(Verdict, Verdict)> {
        let (why, words) = match &self.stance {
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
                let remedy = if self.settings.takeover {
                    "it is taken over at the next look"
                } else {
                    "it still serves Services as they were, and is not touched. Set takeover: true in nodenet's chart \
                     to take it over without a break, or remove it by hand (`kube-proxy --cleanup`, or a reboot)"
                };
                (reason::KUBE_PROXY_LEFTOVERS, format!("kube-proxy is stopped and left {left}: {remedy}"))
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
