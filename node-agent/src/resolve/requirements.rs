//! Modules and settings: what the agent itself needs, and what the spec asks for within the compiled-in lists.

use std::collections::BTreeMap;

use nodenet_crds::{ALLOWED_MODULES, ALLOWED_SYSCTLS, KernelRequirements};

use super::problem::{Problem, Reason};

/// Modules without which nothing of ours works.
const MODULES: &[&str] = &["dummy", "ip_set", "ip_vs", "nf_conntrack", "xt_set"];

/// Settings without which nothing of ours works, with the value where the spec says nothing.
///
/// * `arp_ignore` 0 would answer ARP for every address of the service ranges; `arp_announce` keeps their addresses out
///   of ARP requests.
/// * `vs.conntrack` lets netfilter masquerade what IPVS forwards.
/// * `expire_nodest_conn` ends connections to a real server that is gone at once instead of by time-out.
const SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.conf.all.arp_announce", "2"),
    ("net.ipv4.conf.all.arp_ignore", "1"),
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.vs.conntrack", "1"),
    ("net.ipv4.vs.expire_nodest_conn", "1"),
    ("net.ipv4.vs.expire_quiescent_template", "1"),
];

/// Schedulers of IPVS that the agent knows.
pub fn schedulers() -> impl Iterator<Item = &'static str> {
    ALLOWED_MODULES.iter().filter_map(|module| module.strip_prefix("ip_vs_"))
}

/// The module of a scheduler; `None` where there is no such scheduler.
pub(super) fn scheduler_module(scheduler: &str) -> Option<&'static str> {
    ALLOWED_MODULES.iter().copied().find(|module| module.strip_prefix("ip_vs_") == Some(scheduler))
}

/// Modules (without those of schedulers in use) and settings. Virtual IPs alone need none: what the spec asks for by name
/// is all then.
pub(super) fn resolve(
    spec: &KernelRequirements,
    own: &BTreeMap<String, String>,
    service_proxy: bool,
    ipv6: bool,
    problems: &mut Vec<Problem>,
) -> (BTreeMap<String, bool>, BTreeMap<String, String>) {
    let mut modules: BTreeMap<String, bool> = MODULES.iter().map(|name| ((*name).to_owned(), true)).collect();
    for name in &spec.modules {
        if ALLOWED_MODULES.contains(&name.as_str()) {
            modules.insert(name.clone(), true);
        } else {
            problems.push(Problem::new(format!("module {name}"), Reason::Module));
        }
    }
    let mut sysctls: BTreeMap<String, String> =
        SYSCTLS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    sysctls.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    if !service_proxy {
        modules.clear();
        sysctls.clear();
    } else if ipv6 {
        sysctls.insert("net.ipv6.conf.all.forwarding".into(), "1".into());
    }
    for setting in &spec.sysctls {
        let allowed = ALLOWED_SYSCTLS
            .iter()
            .any(|(name, values)| *name == setting.name && values.contains(&setting.value.as_str()));
        // 0 would make the node answer ARP for addresses that are only local for the sake of Services.
        let harmful = setting.name == "net.ipv4.conf.all.arp_ignore" && setting.value == "0";
        if allowed && !harmful {
            sysctls.insert(setting.name.clone(), setting.value.clone());
        } else {
            let reason = Reason::Sysctl { value: setting.value.clone() };
            problems.push(Problem::new(format!("setting {}", setting.name), reason));
        }
    }
    (modules, sysctls)
}
