//! Whether the node may hold what it was told to hold. Pure: time and all else come in as arguments.
//!
//! The operator gives an address only after the fence of the last holder ran out. Before this node takes one all the
//! same, it asks the link whether somebody has it (a typo may name the gateway), and it takes none that is answered for.
//! What is in its kernel already it keeps without a question. Beyond that the operator's word may be stale:
//! * it comes from the copy on disk: addresses that are in the kernel are kept, others are taken only when no API
//!   server answers for a while and nobody else does;
//! * another host answers for an address while the API server is out of reach: the operator has moved it, so it goes at
//!   once; it comes back when the operator says so again and the link is silent. One that is only about to take it gets
//!   a moment to do so;
//! * the link was down: the operator may have moved the address meanwhile, so a question comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::resolve::Origin;
use crate::state::{AddressKey, Which};

/// Times of this module.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long the API server has to confirm the copy on disk before it is put into force.
    pub grace: Duration,
    /// How long a question waits for an answer. A planned move takes that much longer.
    pub probe: Duration,
    /// First wait after an answer before the link is asked again; doubles up to [`Self::settled`].
    pub again: Duration,
    /// How long the API server must be in reach before its silence counts as "still yours".
    pub settled: Duration,
    /// How long another host that is about to take an address has time to do so.
    pub cede: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5),
            probe: Duration::from_millis(300),
            again: Duration::from_millis(500),
            settled: Duration::from_secs(10),
            cede: Duration::from_secs(3),
        }
    }
}

/// A virtual IP of the node's state.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// Name.
    pub name: String,
    /// Whether the operator says that this node holds it.
    pub active: bool,
    /// Its addresses, each on its interface, as far as interfaces are known.
    pub keys: Vec<AddressKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// Nobody was asked yet.
    Unasked,
    Unconfirmed,
    LinkDown {
        interface: String,
    },
    Taken {
        key: AddressKey,
        mac: String,
    },
    /// Another host is about to take it.
    Ceded {
        key: AddressKey,
        mac: String,
    },
}

#[derive(Debug)]
struct Suspended {
    why: Why,
    /// Those that are not held.
    keys: Vec<AddressKey>,
    /// These are all the virtual IP's addresses; otherwise it holds others.
    whole: bool,
    /// Generation whose word is doubted.
    generation: Option<i64>,
    /// When to ask next, if time alone decides.
    probe_at: Option<Instant>,
    /// A running question: whose answers are missing, and until when they may come.
    probing: Option<(BTreeSet<AddressKey>, Instant)>,
    /// How often in a row somebody answered.
    answered: u32,
    /// Not worth a word yet.
    quiet: bool,
}

/// Which of the assigned virtual IPs are not held for the time being, and why.
#[derive(Debug)]
pub struct Holding {
    times: Times,
    suspended: BTreeMap<String, Suspended>,
    assigned: Vec<Assigned>,
    generation: Option<i64>,
    origin: Origin,
    /// Addresses that the node has, or that nobody answered for.
    cleared: BTreeSet<AddressKey>,
}

impl Holding {
    /// Nothing is assigned.
    pub fn new(times: Times) -> Self {
        Self {
            times,
            suspended: BTreeMap::new(),
            assigned: Vec::new(),
            generation: None,
            origin: Origin::Disk,
            cleared: BTreeSet::new(),
        }
    }

    /// The node's state says this. `present` says whether an address is in the kernel already.
    pub fn assign(
        &mut self,
        assigned: Vec<Assigned>,
        origin: Origin,
        generation: Option<i64>,
        present: impl Fn(&AddressKey) -> bool,
        now: Instant,
    ) {
        let active = |name: &str| assigned.iter().find(|a| a.active && a.name == name);
        self.suspended.retain(|name, s| match (active(name), &s.why) {
            (None, _) => false,
            // The API server confirms it.
            (Some(_), Why::Unconfirmed) => origin != Origin::Api,
            (Some(_), _) => true,
        });
        for a in assigned.iter().filter(|a| a.active) {
            let again = |s: &&mut Suspended| {
                origin == Origin::Api && s.generation != generation && matches!(s.why, Why::Taken { .. })
            };
            if let Some(s) = self.suspended.get_mut(&a.name).filter(again) {
                (s.generation, s.probe_at) = (generation, Some(now));
            }
        }
        let keys = || assigned.iter().filter(|a| a.active).flat_map(|a| &a.keys);
        let known = std::mem::take(&mut self.cleared);
        self.cleared = keys().filter(|key| known.contains(*key) || present(key)).cloned().collect();
        (self.generation, self.origin) = (generation, origin);
        self.resolved(assigned, now);
    }

    /// The addresses' interfaces may have changed: nothing else about the assignment did.
    pub fn resolved(&mut self, assigned: Vec<Assigned>, now: Instant) {
        for a in assigned.iter().filter(|a| a.active) {
            let fresh: Vec<AddressKey> =
                a.keys.iter().filter(|key| !self.cleared.contains(*key)).cloned().collect();
            match self.suspended.get_mut(&a.name) {
                Some(s) if s.whole && s.keys == a.keys => {}
                Some(s) if s.whole => {
                    s.keys.clone_from(&a.keys);
                    if s.probing.take().is_some() {
                        s.probe_at = Some(now);
                    }
                }
                Some(_) if fresh.is_empty() => {
                    self.suspended.remove(&a.name);
                }
                Some(s) if s.keys == fresh => {}
                Some(s) => {
                    // Addresses were added to the virtual IP, or taken from it.
                    (s.keys, s.probing, s.probe_at) = (fresh, None, Some(now));
                }
                None if fresh.is_empty() => {}
                None => {
                    let (why, at) = match self.origin {
                        Origin::Api => (Why::Unasked, now),
                        Origin::Disk => (Why::Unconfirmed, now + self.times.grace),
                    };
                    let whole = fresh.len() == a.keys.len();
                    let s = suspend(&mut self.suspended, a, why, self.generation, Some(at));
                    (s.keys, s.whole, s.quiet) = (fresh, whole, self.origin == Origin::Api);
                }
            }
        }
        self.assigned = assigned;
    }

    /// The addresses have run out, because this process did not run in time to renew them: the operator may have given
    /// them to another node since. Each is taken again only after a question. Returns what must go.
    pub fn lapsed(&mut self, now: Instant) -> Vec<String> {
        let mut going = Vec::new();
        for a in self.assigned.iter().filter(|a| a.active) {
            if self.suspended.get(&a.name).is_none_or(|s| !s.whole) {
                going.push(a.name.clone());
                suspend(&mut self.suspended, a, Why::Unconfirmed, self.generation, Some(now));
            }
            // A word of the API server that was on its way all the time is no answer to the question.
            for key in &a.keys {
                self.cleared.remove(key);
            }
        }
        going
    }

    /// These interfaces are down or without carrier; the others work. Returns what must go because of that.
    pub fn links(&mut self, down: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let mut going = Vec::new();
        for a in self.assigned.iter().filter(|a| a.active) {
            let on = a.keys.iter().map(|k| &k.interface).find(|i| down.contains(*i));
            match (on, self.suspended.get_mut(&a.name).filter(|s| s.whole)) {
                (Some(interface), None) => {
                    let why = Why::LinkDown { interface: interface.clone() };
                    suspend(&mut self.suspended, a, why, self.generation, None);
                    going.push(a.name.clone());
                }
                (Some(interface), Some(s)) => {
                    // No question gets out.
                    s.probing = None;
                    match s.why {
                        Why::Unasked | Why::LinkDown { .. } => {
                            s.why = Why::LinkDown { interface: interface.clone() };
                            (s.probe_at, s.quiet) = (None, false);
                        }
                        _ => s.probe_at = s.probe_at.or(Some(now + self.times.probe)),
                    }
                }
                (None, Some(s))
                    if matches!(s.why, Why::LinkDown { .. })
                        && s.probing.is_none()
                        && s.probe_at.is_none() =>
                {
                    s.probe_at = Some(now);
                }
                (None, _) => {}
            }
        }
        going
    }

    /// Another host answers for `key`. Whether the address must go: yes without `contact` to the API server, because
    /// then the operator may have given it away; with contact its word counts.
    pub fn heard(&mut self, key: &AddressKey, mac: &str, contact: bool) -> Option<String> {
        let why = Why::Taken { key: key.clone(), mac: mac.to_owned() };
        self.yield_to(key, why, contact, None)
    }

    /// Another host will take `key` when nobody answers. Whether the address must go: without `contact`, because the
    /// operator may have given it away. It is asked for again after a moment, in which the other one has taken it, or has
    /// not.
    pub fn asked(&mut self, key: &AddressKey, mac: &str, contact: bool, now: Instant) -> Option<String> {
        let why = Why::Ceded { key: key.clone(), mac: mac.to_owned() };
        self.yield_to(key, why, contact, Some(now + self.times.cede))
    }

    fn yield_to(
        &mut self,
        key: &AddressKey,
        why: Why,
        contact: bool,
        probe_at: Option<Instant>,
    ) -> Option<String> {
        if contact {
            return None;
        }
        let holder = self.assigned.iter().find(|a| a.active && a.keys.contains(key))?;
        if self.suspended.get(&holder.name).is_some_and(|s| s.whole) {
            return None;
        }
        suspend(&mut self.suspended, holder, why, self.generation, probe_at);
        Some(holder.name.clone())
    }

    /// What is to be asked now. `contact` is since when the API server is in reach without a break.
    pub fn probes(&mut self, contact: Option<Instant>, now: Instant) -> Vec<AddressKey> {
        let mut out = Vec::new();
        for s in self.suspended.values_mut() {
            if let Some((_, until)) = s.probing {
                if until > now {
                    continue;
                }
                // No answer came at all, not even silence: ask again.
                s.probing = None;
                s.probe_at = Some(now);
            }
            let by_contact = matches!(s.why, Why::Taken { .. })
                && s.probe_at.is_none()
                && contact.is_some_and(|since| now >= since + self.times.settled);
            if by_contact || s.probe_at.is_some_and(|at| at <= now) {
                if s.keys.is_empty() {
                    // Its interface is not there yet: nothing can be asked.
                    s.probe_at = Some(now + self.times.probe * 2);
                    continue;
                }
                s.probe_at = None;
                s.probing = Some((s.keys.iter().cloned().collect(), now + self.times.probe * 4));
                out.extend(s.keys.iter().cloned());
            }
        }
        out
    }

    /// A question about `key` ended: with the link-layer address of another owner, or in silence.
    pub fn answer(&mut self, key: &AddressKey, owner: Option<String>, now: Instant) {
        let Times { again, settled, .. } = self.times;
        let cleared = &mut self.cleared;
        self.suspended.retain(|_, s| {
            let Some((open, _)) = &mut s.probing else { return true };
            if !open.remove(key) {
                return true;
            }
            if let Some(mac) = owner.clone() {
                s.why = Why::Taken { key: key.clone(), mac };
                s.probing = None;
                let wait = again.saturating_mul(1 << s.answered.min(16)).min(settled);
                s.probe_at = Some(now + wait);
                // The last holder may have heard only by this question that it is one no more.
                s.quiet &= s.answered == 0;
                s.answered += 1;
                return true;
            }
            if open.is_empty() {
                cleared.extend(s.keys.iter().cloned());
                return false;
            }
            true
        });
    }

    /// When [`Self::probes`] has something to say by time alone.
    pub fn next(&self, contact: Option<Instant>) -> Option<Instant> {
        let of = |s: &Suspended| match (&s.probing, s.probe_at, &s.why) {
            (Some((_, until)), ..) => Some(*until),
            (None, Some(at), _) => Some(at),
            (None, None, Why::Taken { .. }) => contact.map(|since| since + self.times.settled),
            (None, None, _) => None,
        };
        self.suspended.values().filter_map(of).min()
    }

    /// Names of the virtual IPs of which nothing is to be held.
    pub fn yielded(&self) -> Which<String> {
        let whole = self.suspended.iter().filter(|(_, s)| s.whole);
        Which::Only(whole.map(|(name, _)| name.clone()).collect())
    }

    /// Addresses that are not to be held although others of their virtual IP are.
    pub fn withheld(&self) -> BTreeSet<AddressKey> {
        self.suspended.values().filter(|s| !s.whole).flat_map(|s| s.keys.iter().cloned()).collect()
    }

    /// Reason and words about a virtual IP of which something is not held. None while the link is asked for the first
    /// time, and while a last holder that has not heard that it is one no more has a moment to yield.
    pub fn words(&self, name: &str) -> Option<(&'static str, String)> {
        use nodenet_crds::conditions::reason;
        let s = self.suspended.get(name).filter(|s| !s.quiet)?;
        Some(match &s.why {
            Why::Unasked | Why::Unconfirmed => (
                reason::API_SERVER_UNREACHABLE,
                "nothing has confirmed yet that this node still holds the virtual IP (an API server, or the link)".to_owned(),
            ),
            Why::LinkDown { interface } => {
                (reason::INTERFACE_MISSING, format!("interface {interface} is down or has no carrier"))
            }
            Why::Taken { key, mac } if s.answered == 0 => (
                reason::ADDRESS_TAKEN,
                format!("another host ({mac}) answers for {} on {}: it was given up to it", key.address, key.interface),
            ),
            Why::Taken { key, mac } => (
                reason::ADDRESS_TAKEN,
                format!(
                    "another host ({mac}) answers for {} on {}, so it is not taken here: take the address off that \
                     host, or use another",
                    key.address, key.interface
                ),
            ),
            Why::Ceded { key, mac } => (
                reason::API_SERVER_UNREACHABLE,
                format!(
                    "no API server is in reach, and another host ({mac}) asks for {} on {} in order to take it",
                    key.address, key.interface
                ),
            ),
        })
    }
}

/// Holds nothing of a virtual IP from now on.
fn suspend<'a>(
    suspended: &'a mut BTreeMap<String, Suspended>,
    of: &Assigned,
    why: Why,
    generation: Option<i64>,
    probe_at: Option<Instant>,
) -> &'a mut Suspended {
    let (keys, whole, quiet) = (of.keys.clone(), true, false);
    let s = Suspended { why, keys, whole, generation, probe_at, probing: None, answered: 0, quiet };
    suspended.entry(of.name.clone()).insert_entry(s).into_mut()
}

#[cfg(test)]
mod tests;
