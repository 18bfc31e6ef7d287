//! Numbers of ports whose `externalTrafficPolicy` is `Local`.
//!
//! A node answers clients from outside by its own endpoints, its own clients by all endpoints. Agents part the two by a
//! packet mark, made of this number. It is given here because it must be the same after a restart of either side: a
//! mark that changes takes the connections that stand on it along.

use std::collections::{BTreeMap, BTreeSet};

use nodenet_crds::{FrontendKind, PortPlan, Protocol, ServicePlan, TrafficPolicy};

use crate::service::Named;

/// Greatest number (the schema's bound): agents have eleven bits of a packet mark for it.
const GREATEST: i32 = 2047;

/// Name and protocol of a Service's port.
type Port = (String, Protocol);

/// Which port has which number.
#[derive(Debug, Default)]
pub(crate) struct InsideNumbers {
    of: BTreeMap<Named, BTreeMap<Port, i32>>,
    used: BTreeSet<i32>,
    last: i32,
    /// A slice is there that could not be read: which numbers it holds is not known, so none is given.
    blind: bool,
    /// Services that lack a number because of that.
    waiting: BTreeSet<Named>,
}

impl InsideNumbers {
    /// Takes over the numbers that are published; `blind` says that there are some that cannot be read. Returns the
    /// Services that waited until all can.
    pub(crate) fn adopt<'a>(
        &mut self,
        published: impl Iterator<Item = &'a ServicePlan>,
        blind: bool,
    ) -> BTreeSet<Named> {
        self.blind = blind;
        let numbers = self;
        for plan in published {
            let service = Named::new(&plan.namespace, &plan.name);
            for port in &plan.ports {
                let Some(number) = port.inside_number else { continue };
                // Of two ports with one number the first keeps it.
                let ports = numbers.of.entry(service.clone()).or_default();
                let key = (port.name.clone(), port.protocol);
                if !ports.contains_key(&key) && numbers.used.insert(number) {
                    ports.insert(key, number);
                    numbers.last = numbers.last.max(number);
                }
            }
        }
        if blind { BTreeSet::new() } else { std::mem::take(&mut numbers.waiting) }
    }

    /// Whether numbers were not known when it was looked last.
    pub(crate) fn is_blind(&self) -> bool {
        self.blind
    }

    /// Gives each port of a Service that needs one its number and takes back those that it needs no longer. Returns
    /// whether one got none.
    pub(crate) fn assign(&mut self, service: &Named, ports: &mut [PortPlan]) -> bool {
        self.waiting.remove(service);
        let mut before = self.of.remove(service).unwrap_or_default();
        let mut now: BTreeMap<Port, i32> = BTreeMap::new();
        for port in ports.iter().filter(|port| parted(port)) {
            let key = (port.name.clone(), port.protocol);
            if let Some(number) = before.remove(&key) {
                now.insert(key, number);
            }
        }
        for number in before.into_values() {
            self.used.remove(&number);
        }
        let mut too_few = false;
        for port in ports.iter_mut().filter(|port| parted(port)) {
            let key = (port.name.clone(), port.protocol);
            port.inside_number = now.get(&key).copied().or_else(|| self.next());
            match port.inside_number {
                Some(number) => _ = now.insert(key, number),
                None => too_few = true,
            }
        }
        if !now.is_empty() {
            self.of.insert(service.clone(), now);
        }
        if too_few && self.blind {
            self.waiting.insert(service.clone());
        }
        too_few
    }

    /// A free number, as long unused as can be: agents may still be about to take the last user's away.
    fn next(&mut self) -> Option<i32> {
        if self.blind {
            return None;
        }
        let after = self.last + 1..=GREATEST;
        let free = after.chain(1..=self.last).find(|number| !self.used.contains(number))?;
        self.used.insert(free);
        self.last = free;
        Some(free)
    }
}

/// Whether its own clients get another answer from a node than those from outside.
fn parted(port: &PortPlan) -> bool {
    port.external_traffic_policy == TrafficPolicy::Local
        && port.frontends.iter().any(|frontend| frontend.kind != FrontendKind::ClusterIP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodenet_crds::Frontend;

    fn port(name: &str, policy: TrafficPolicy) -> PortPlan {
        let frontend = Frontend { kind: FrontendKind::NodePort, address: None, port: 30080 };
        PortPlan {
            name: name.to_owned(),
            external_traffic_policy: policy,
            frontends: vec![frontend],
            ..PortPlan::default()
        }
    }

    fn numbers(ports: &[PortPlan]) -> Vec<Option<i32>> {
        ports.iter().map(|port| port.inside_number).collect()
    }

    #[test]
    fn a_port_keeps_its_number_and_a_freed_one_rests() {
        let (a, b) = (Named::new("x", "a"), Named::new("x", "b"));
        let mut all = InsideNumbers::default();
        let mut ports = [port("http", TrafficPolicy::Local), port("dns", TrafficPolicy::Cluster)];
        assert!(!all.assign(&a, &mut ports));
        assert_eq!(numbers(&ports), [Some(1), None]);
        let mut more = [port("http", TrafficPolicy::Local), port("dns", TrafficPolicy::Local)];
        all.assign(&a, &mut more);
        assert_eq!(numbers(&more), [Some(1), Some(2)]);
        all.assign(&a, &mut []);
        let mut other = [port("", TrafficPolicy::Local)];
        all.assign(&b, &mut other);
        assert_eq!(numbers(&other), [Some(3)]);
    }

    /// The plan of a Service in namespace `x` with this one port.
    fn plan(name: &str, published: &PortPlan) -> ServicePlan {
        ServicePlan {
            namespace: "x".to_owned(),
            name: name.to_owned(),
            ports: vec![published.clone()],
            ..ServicePlan::default()
        }
    }

    #[test]
    fn a_restart_gives_everyone_the_same_number() {
        let a = Named::new("x", "a");
        let mut published = port("http", TrafficPolicy::Local);
        published.inside_number = Some(7);
        // The second claims the same number: only one can have it.
        let mut all = InsideNumbers::default();
        all.adopt([&plan("a", &published), &plan("b", &published)].into_iter(), false);
        let mut ports = [port("http", TrafficPolicy::Local)];
        all.assign(&a, &mut ports);
        assert_eq!(numbers(&ports), [Some(7)]);
        let mut ports = [port("http", TrafficPolicy::Local)];
        all.assign(&Named::new("x", "b"), &mut ports);
        assert_eq!(numbers(&ports), [Some(8)]);
    }

    #[test]
    fn no_number_is_given_that_may_stand_where_nothing_can_be_read() {
        let (a, b) = (Named::new("x", "a"), Named::new("x", "b"));
        let mut published = port("", TrafficPolicy::Local);
        published.inside_number = Some(1);
        let mut all = InsideNumbers::default();
        all.adopt(std::iter::empty(), true);
        let mut ports = [port("", TrafficPolicy::Local)];
        assert!(all.assign(&b, &mut ports));
        assert_eq!(numbers(&ports), [None]);
        assert_eq!(all.adopt([&plan("a", &published)].into_iter(), false), [b.clone()].into());
        assert!(!all.assign(&b, &mut ports) && !all.assign(&a, &mut [port("", TrafficPolicy::Local)]));
        assert_eq!(numbers(&ports), [Some(2)]);
    }

    #[test]
    fn when_all_are_taken_it_is_said() {
        let mut all = InsideNumbers::default();
        for index in 0..GREATEST {
            let service = Named::new("x", &index.to_string());
            assert!(!all.assign(&service, &mut [port("", TrafficPolicy::Local)]));
        }
        let mut ports = [port("", TrafficPolicy::Local)];
        assert!(all.assign(&Named::new("x", "one-more"), &mut ports));
        assert_eq!(numbers(&ports), [None]);
        all.assign(&Named::new("x", "5"), &mut []);
        assert!(!all.assign(&Named::new("x", "one-more"), &mut ports));
    }
}
