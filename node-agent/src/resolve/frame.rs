//! What the spec alone asks for, whatever the Services: modules, settings, our interface, routes, rules, and the sets
//! without the Services' entries.

use std::collections::{BTreeMap, BTreeSet};

use super::{Options, Problem, Reason, Resolver, requirements};
use crate::filter::{Config, SetName, rules};
use crate::state::{Family, Link, LocalRoute, SERVICE_INTERFACE, Scope, Which};

impl Resolver {
    /// What depends on the spec, and on the ranges that are made local: modules, settings, our interface, routes, rules, and the sets themselves.
    pub(super) fn frame(&mut self) -> Scope {
        let Some(spec) = &self.spec else { return Scope::default() };
        let mut problems = Vec::new();
        let ipv6 = spec.wanted.iter().any(|range| Family::of(range.addr()) == Family::V6)
            || spec.written.virtual_ips.iter().flat_map(|vip| &vip.addresses).any(|a| a.contains(':'));
        let proxy = self.options.service_proxy;
        let own = &self.options.settings;
        let (modules, sysctls) = requirements::resolve(&spec.written.kernel, own, proxy, ipv6, &mut problems);
        let mut cluster_cidrs = Vec::new();
        for text in &spec.written.cluster_cidrs {
            match text.parse() {
                Ok(net) => cluster_cidrs.push(net),
                Err(_) => {
                    let reason = Reason::Range { value: text.clone() };
                    problems.push(Problem::new("pod networks".into(), reason));
                }
            }
        }
        let Options { masquerade_all, mark, mask, inside, random_fully, .. } = self.options;
        let pod_cidrs = spec.written.pod_cidrs.iter().filter_map(|text| text.parse().ok()).collect();
        let config = Config { masquerade_all, mark, mask, inside, random_fully, cluster_cidrs, pod_cidrs };
        let families: &[Family] = match (proxy, ipv6) {
            (false, _) => &[],
            (true, false) => &[Family::V4],
            (true, true) => &[Family::V4, Family::V6],
        };

        let mut touched = Scope::default();
        let fresh_rules: BTreeMap<_, _> =
            families.iter().map(|family| (*family, rules(*family, &config))).collect();
        if fresh_rules != self.desired.rules {
            touched.rules = true;
            self.desired.rules = fresh_rules;
        }
        for family in [Family::V4, Family::V6] {
            for set in SetName::ALL {
                let name = set.name(family);
                let there = self.desired.sets.contains_key(&name);
                if families.contains(&family) != there {
                    if there {
                        self.desired.sets.remove(&name);
                    } else {
                        self.desired.sets.insert(name.clone(), set.empty(family));
                    }
                    touched.sets.merge(Which::Only(BTreeSet::from([name])));
                }
            }
            if families.contains(&family) {
                let ranges = spec.judged.ranges.iter().filter(|range| Family::of(range.addr()) == family);
                let single = self.claims.routes().map(|route| route.range);
                let single = single.filter(|range| Family::of(range.addr()) == family);
                let entries = ranges.copied().chain(single).map(crate::state::SetEntry::Net).collect();
                let name = SetName::IpvsIps.name(family);
                if let Some(set) = self.desired.sets.get_mut(&name)
                    && set.entries != entries
                {
                    set.entries = entries;
                    touched.sets.merge(Which::Only(BTreeSet::from([name])));
                }
            }
        }
        let routes: BTreeSet<LocalRoute> = spec
            .judged
            .ranges
            .iter()
            .map(|range| LocalRoute { range: *range, interface: SERVICE_INTERFACE.into() })
            .chain(self.claims.routes())
            .collect();
        if routes != self.desired.routes {
            self.desired.routes = routes;
            touched.routes = true;
            touched.links = true;
        }
        if proxy {
            let link = Link { kind: "dummy".into(), up: true, carrier: true };
            touched.links |= self.desired.links.insert(SERVICE_INTERFACE.into(), link).is_none();
        }

        self.modules = modules;
        touched.modules.extend(self.set_modules());
        let of_addresses: BTreeMap<String, String> = self
            .desired
            .sysctls
            .iter()
            .filter(|(name, _)| crate::state::of_address_lane(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        for (name, value) in &sysctls {
            if self.desired.sysctls.get(name) != Some(value) {
                touched.sysctls.insert(name.clone());
            }
        }
        self.desired.sysctls = sysctls;
        self.desired.sysctls.extend(of_addresses);
        self.view.ipv6 = ipv6;
        self.problems.extend(problems);
        touched
    }

    /// Modules of the frame and of the schedulers in use.
    pub(super) fn set_modules(&mut self) -> BTreeSet<String> {
        let mut modules = self.modules.clone();
        let default = self.options.service_proxy.then_some(self.options.default_scheduler.as_str());
        let used = self.claims.schedulers().chain(default);
        for module in used.filter_map(requirements::scheduler_module) {
            modules.insert(module.to_owned(), true);
        }
        let new = modules.keys().filter(|name| !self.desired.modules.contains_key(*name)).cloned().collect();
        self.desired.modules = modules;
        new
    }
}
