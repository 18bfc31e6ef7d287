//! Whether the node may hold what it was told to hold. Pure: time and all else come in as arguments.
//!
//! The operator's word is enough to take an address: it gives it only after the fence of the last holder ran out. This
//! is about the cases where its word may be stale:
//! * the word comes from the copy on disk: addresses that are in the kernel are kept, others are taken only when no API
//!   server answers for a while and a probe finds no other owner;
//! * another host answers for an address while the API server is out of reach: the operator has moved it, so it goes at
//!   once; it comes back when the operator says so again and a probe is silent;
//! * the link was down: the operator may have moved the address meanwhile, so a probe comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::resolve::Origin;
use crate::state::AddressKey;

/// Times of this module.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long the API server has to confirm the copy on disk before it is put into force.
    pub grace: Duration,
    /// How long a probe waits for an answer.
    pub probe: Duration,
    /// How long the API server must be in reach before its silence counts as "still yours".
    pub settled: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5),
            probe: Duration::from_millis(500),
            settled: Duration::from_secs(10),
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
    Unconfirmed,
    LinkDown { interface: String },
    Taken { key: AddressKey, mac: String },
}

#[derive(Debug)]
struct Suspended {
    why: Why,
    keys: Vec<AddressKey>,
    /// Generation whose word is doubted.
    generation: Option<i64>,
    /// When to probe next, if time alone decides.
    probe_at: Option<Instant>,
    /// A running probe: whose answers are missing, and until when they may come.
    probing: Option<(BTreeSet<AddressKey>, Instant)>,
}

/// Which of the assigned virtual IPs are not held for the time being, and why.
#[derive(Debug)]
pub struct Holding {
    times: Times,
    suspended: BTreeMap<String, Suspended>,
    assigned: Vec<Assigned>,
    generation: Option<i64>,
}

impl Holding {
    /// Nothing is assigned.
    pub fn new(times: Times) -> Self {
        Self { times, suspended: BTreeMap::new(), assigned: Vec::new(), generation: None }
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
            match self.suspended.get_mut(&a.name) {
                Some(s) => {
                    s.keys.clone_from(&a.keys);
                    let again = origin == Origin::Api && s.generation != generation;
                    if again && matches!(s.why, Why::Taken { .. }) {
                        s.generation = generation;
                        s.probe_at = Some(now);
                    }
                }
                None if origin == Origin::Disk && (a.keys.is_empty() || !a.keys.iter().all(&present)) => {
                    let s = Suspended {
                        why: Why::Unconfirmed,
                        keys: a.keys.clone(),
                        generation,
                        probe_at: Some(now + self.times.grace),
                        probing: None,
                    };
                    self.suspended.insert(a.name.clone(), s);
                }
                None => {}
            }
        }
        self.assigned = assigned;
        self.generation = generation;
    }

    /// The addresses have run out, because this process did not run in time to renew them: the operator may have given
    /// them to another node since. Each is taken again only after a probe. Returns what must go.
    pub fn lapsed(&mut self, now: Instant) -> Vec<String> {
        let mut going = Vec::new();
        for a in self.assigned.iter().filter(|a| a.active && !self.suspended.contains_key(&a.name)) {
            going.push(a.name.clone());
        }
        for a in self.assigned.iter().filter(|a| going.contains(&a.name)) {
            let s = Suspended {
                why: Why::Unconfirmed,
                keys: a.keys.clone(),
                generation: self.generation,
                probe_at: Some(now),
                probing: None,
            };
            self.suspended.insert(a.name.clone(), s);
        }
        going
    }

    /// The addresses' interfaces may have changed: nothing else about the assignment did.
    pub fn resolved(&mut self, assigned: Vec<Assigned>) {
        for a in &assigned {
            if let Some(s) = self.suspended.get_mut(&a.name) {
                s.keys.clone_from(&a.keys);
            }
        }
        self.assigned = assigned;
    }

    /// These interfaces are down or without carrier; the others work. Returns what must go because of that.
    pub fn links(&mut self, down: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let mut going = Vec::new();
        for a in self.assigned.iter().filter(|a| a.active) {
            let on = a.keys.iter().map(|k| &k.interface).find(|i| down.contains(*i));
            match (on, self.suspended.get_mut(&a.name)) {
                (Some(interface), None) => {
                    let s = Suspended {
                        why: Why::LinkDown { interface: interface.clone() },
                        keys: a.keys.clone(),
                        generation: self.generation,
                        probe_at: None,
                        probing: None,
                    };
                    self.suspended.insert(a.name.clone(), s);
                    going.push(a.name.clone());
                }
                (Some(_), Some(s)) => {
                    s.probing = None;
                    if matches!(s.why, Why::LinkDown { .. }) {
                        s.probe_at = None;
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
        if contact {
            return None;
        }
        let holder = self.assigned.iter().find(|a| a.active && a.keys.contains(key))?;
        if self.suspended.contains_key(&holder.name) {
            return None;
        }
        let s = Suspended {
            why: Why::Taken { key: key.clone(), mac: mac.to_owned() },
            keys: holder.keys.clone(),
            generation: self.generation,
            probe_at: None,
            probing: None,
        };
        self.suspended.insert(holder.name.clone(), s);
        Some(holder.name.clone())
    }

    /// What is to be probed now. `contact` is since when the API server is in reach without a break.
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

    /// A probe of `key` ended: with the link-layer address of another owner, or in silence.
    pub fn answer(&mut self, key: &AddressKey, owner: Option<String>, now: Instant) {
        let settled = self.times.settled;
        self.suspended.retain(|_, s| {
            let Some((open, _)) = &mut s.probing else { return true };
            if !open.remove(key) {
                return true;
            }
            if let Some(mac) = owner.clone() {
                s.why = Why::Taken { key: key.clone(), mac };
                s.probing = None;
                s.probe_at = Some(now + settled);
                return true;
            }
            !open.is_empty()
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

    /// Names of the virtual IPs that are not to be held.
    pub fn yielded(&self) -> BTreeSet<String> {
        self.suspended.keys().cloned().collect()
    }

    /// Reason and words about a virtual IP that is not held.
    pub fn words(&self, name: &str) -> Option<(&'static str, String)> {
        use nodenet_crds::conditions::reason;
        let s = self.suspended.get(name)?;
        Some(match &s.why {
            Why::Unconfirmed => (
                reason::API_SERVER_UNREACHABLE,
                "nothing has confirmed yet that this node still holds the virtual IP (an API server, or a probe)".to_owned(),
            ),
            Why::LinkDown { interface } => {
                (reason::INTERFACE_MISSING, format!("interface {interface} is down or has no carrier"))
            }
            Why::Taken { key, mac } => (
                reason::ADDRESS_TAKEN,
                format!("another host ({mac}) answers for {} on {}", key.address, key.interface),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: &str = "02:00:00:00:00:01";

    fn key() -> AddressKey {
        AddressKey { interface: "eth0".into(), address: "192.168.0.15".parse().unwrap() }
    }

    fn vip(active: bool) -> Vec<Assigned> {
        vec![Assigned { name: "web".into(), active, keys: vec![key()] }]
    }

    fn held(h: &Holding) -> bool {
        h.yielded().is_empty()
    }

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn the_operators_word_is_enough() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
        assert!(held(&h) && h.next(None).is_none());
    }

    #[test]
    fn what_ran_out_is_asked_for_before_it_is_taken_again() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Api, Some(1), |_| true, now);
        assert_eq!(h.lapsed(now), ["web"]);
        assert!(!held(&h), "the word that gave it is older than its fence");
        assert_eq!(h.lapsed(now), Vec::<String>::new(), "once");
        assert_eq!(h.probes(Some(now), now), [key()]);
        h.answer(&key(), Some(MAC.into()), now);
        assert!(!held(&h), "the next holder has it");
        assert_eq!(h.probes(Some(now), now + secs(10)), [key()]);
        h.answer(&key(), None, now + secs(10));
        assert!(held(&h), "nobody has it");
    }

    #[test]
    fn the_disks_word_keeps_what_is_there_and_asks_before_it_takes() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Disk, Some(1), |_| true, now);
        assert!(held(&h), "what is in the kernel is kept");
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
        assert!(!held(&h));
        assert_eq!(h.probes(None, now + secs(4)), []);
        assert_eq!(h.probes(None, now + secs(5)), [key()]);
        h.answer(&key(), None, now + secs(6));
        assert!(held(&h));
    }

    #[test]
    fn the_disks_word_yields_to_an_owner_and_to_the_api() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
        h.probes(None, now + secs(5));
        h.answer(&key(), Some(MAC.into()), now + secs(5));
        assert_eq!(h.words("web").unwrap().0, "AddressTaken");
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
        h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
        assert!(held(&h));
    }

    #[test]
    fn without_the_api_another_owner_is_yielded_to_and_with_it_not() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
        assert_eq!(h.heard(&key(), MAC, true), None);
        assert!(held(&h));
        assert_eq!(h.heard(&key(), MAC, false).as_deref(), Some("web"));
        assert!(!held(&h));
        assert_eq!(h.heard(&key(), MAC, false), None, "said once");
        // Alone, time brings nothing back.
        assert_eq!(h.probes(None, now + secs(3600)), []);
        // The API server is back and has nothing else to say.
        assert_eq!(h.probes(Some(now), now + secs(5)), []);
        assert_eq!(h.probes(Some(now), now + secs(10)), [key()]);
        h.answer(&key(), Some(MAC.into()), now + secs(10));
        assert!(!held(&h));
        assert_eq!(h.probes(Some(now), now + secs(20)), [key()]);
        h.answer(&key(), None, now + secs(21));
        assert!(held(&h));
    }

    #[test]
    fn a_new_word_of_the_operator_brings_it_back_after_a_probe() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
        h.heard(&key(), MAC, false);
        h.assign(vip(true), Origin::Api, Some(2), |_| false, now);
        assert!(!held(&h), "not before the probe");
        assert_eq!(h.probes(Some(now), now), [key()]);
        h.answer(&key(), None, now);
        assert!(held(&h));
    }

    #[test]
    fn backup_ends_every_doubt() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
        h.heard(&key(), MAC, false);
        h.assign(vip(false), Origin::Api, Some(2), |_| false, now);
        assert!(h.yielded().is_empty() && h.words("web").is_none());
    }

    #[test]
    fn a_link_that_comes_back_is_probed_first() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Api, Some(1), |_| false, now);
        let down = BTreeSet::from(["eth0".to_owned()]);
        h.links(&down, now);
        assert_eq!(h.words("web").unwrap().1, "interface eth0 is down or has no carrier");
        assert_eq!(h.probes(Some(now), now + secs(60)), []);
        h.links(&BTreeSet::new(), now);
        assert_eq!(h.probes(None, now), [key()]);
        h.answer(&key(), None, now);
        assert!(held(&h));
    }

    #[test]
    fn a_probe_without_any_answer_is_asked_again() {
        let now = Instant::now();
        let mut h = Holding::new(Times::default());
        h.assign(vip(true), Origin::Disk, Some(1), |_| false, now);
        assert_eq!(h.probes(None, now + secs(5)), [key()]);
        assert_eq!(h.probes(None, now + secs(6)), []);
        assert_eq!(h.probes(None, now + secs(8)), [key()]);
    }
}
