//! The rules of the schema and those that a schema cannot state, as one function for each kind. The operator refuses
//! what breaks them with `Accepted=False`; a violation names the field and what must change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{AddressRole, VirtualIPSpec};

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Violation {
    /// Path of the field, for example `spec.addresses[1]`.
    pub field: String,
    /// What is wrong with it and what must change.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Too few or too many entries.
    #[error("has {have} entries; allowed are {min} to {max}")]
    Count {
        /// Entries found.
        have: usize,
        /// Fewest allowed.
        min: usize,
        /// Most allowed.
        max: usize,
    },
    /// Not an address with a prefix length.
    #[error(
        "{value:?} is not an address with a prefix length; write for example 192.168.0.15/24 or 2001:db8::15/64"
    )]
    NotACidr {
        /// What stands there.
        value: String,
    },
    /// An address that no host can have.
    #[error("{address} is {what} address; use a unicast address of the network")]
    NotAHost {
        /// The address.
        address: IpAddr,
        /// With its article: `a multicast`, `the network's broadcast`, …
        what: &'static str,
    },
    /// Stands twice in one list.
    #[error("{value} stands here twice; remove one")]
    Duplicate {
        /// The entry.
        value: String,
    },
    /// A number out of its range.
    #[error("is {have}; allowed are {min} to {max}")]
    Range {
        /// The number.
        have: i64,
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
    },
    /// A name that the kernel or the API does not accept.
    #[error("{value:?} is not {what}")]
    Name {
        /// What stands there.
        value: String,
        /// What it should be.
        what: &'static str,
    },
    /// A rule of [`crate::rules::RULES`].
    #[error("{0}")]
    Rule(&'static str),
}

fn violation(field: impl Into<String>, problem: Problem) -> Violation {
    Violation { field: field.into(), problem }
}

fn range(out: &mut Vec<Violation>, field: impl Into<String>, have: i64, min: i64, max: i64) {
    if have < min || have > max {
        out.push(violation(field, Problem::Range { have, min, max }));
    }
}

fn count(out: &mut Vec<Violation>, field: &str, have: usize, min: usize, max: usize) {
    if have < min || have > max {
        out.push(violation(field, Problem::Count { have, min, max }));
    }
}

/// Message of the rule that stands at `path` of `kind`.
fn rule(kind: &str, path: &[&str]) -> Problem {
    let found = crate::rules::RULES.iter().find(|r| r.kind == kind && r.path == path);
    Problem::Rule(found.map_or("breaks a rule of the schema", |r| r.message))
}

/// Parses `value` as the address of a host with the prefix length of its subnet.
pub fn host_cidr(value: &str) -> Result<IpNet, Problem> {
    let net: IpNet = value.parse().map_err(|_| Problem::NotACidr { value: value.to_owned() })?;
    let address = net.addr();
    let what = match address {
        IpAddr::V4(a) if a.is_unspecified() || a.octets()[0] == 0 => Some("an unspecified"),
        IpAddr::V4(a) if a.is_loopback() => Some("a loopback"),
        IpAddr::V4(a) if a.is_multicast() => Some("a multicast"),
        IpAddr::V4(a) if a.is_broadcast() || a.octets()[0] >= 240 => Some("a reserved"),
        IpAddr::V4(a) if a.is_link_local() => Some("a link-local"),
        IpAddr::V6(a) if a.is_unspecified() => Some("an unspecified"),
        IpAddr::V6(a) if a.is_loopback() => Some("a loopback"),
        IpAddr::V6(a) if a.is_multicast() => Some("a multicast"),
        IpAddr::V6(a) if a.is_unicast_link_local() => Some("a link-local"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Some("an IPv4-mapped"),
        _ => match net {
            IpNet::V4(n) if n.prefix_len() < 31 && n.addr() == n.network() => Some("the network's own"),
            IpNet::V4(n) if n.prefix_len() < 31 && n.addr() == n.broadcast() => {
                Some("the network's broadcast")
            }
            IpNet::V4(n) if n.prefix_len() == 0 => Some("without a prefix length no usable"),
            _ => None,
        },
    };
    match what {
        Some(what) => Err(Problem::NotAHost { address, what }),
        None => Ok(net),
    }
}

fn dns_label(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= 63
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}

/// Everything that is wrong with a VirtualIP's spec; empty where nothing is.
pub fn virtual_ip(spec: &VirtualIPSpec) -> Vec<Violation> {
    let mut out = Vec::new();
    count(&mut out, "spec.addresses", spec.addresses.len(), 1, 16);
    let mut seen = BTreeSet::new();
    for (i, value) in spec.addresses.iter().enumerate() {
        match host_cidr(value) {
            Ok(net) if !seen.insert(net.addr()) => {
                out.push(violation(
                    format!("spec.addresses[{i}]"),
                    Problem::Duplicate { value: value.clone() },
                ));
            }
            Ok(net) => {
                if spec.address_role == AddressRole::Secondary
                    && matches!(net, IpNet::V4(n) if n.prefix_len() == 32)
                {
                    out.push(violation(format!("spec.addresses[{i}]"), rule("VirtualIP", &["spec"])));
                }
            }
            Err(problem) => out.push(violation(format!("spec.addresses[{i}]"), problem)),
        }
    }
    if let Some(name) = &spec.interface {
        let bad = |c: char| c == '/' || c.is_whitespace();
        if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
            let what = "an interface name (1 to 15 characters, no slash, no space)";
            out.push(violation("spec.interface", Problem::Name { value: name.clone(), what }));
        }
    }
    count(&mut out, "spec.priorities", spec.priorities.len(), 0, 64);
    for (i, p) in spec.priorities.iter().enumerate() {
        range(&mut out, format!("spec.priorities[{i}].priority"), p.priority.into(), 1, 254);
    }
    if let Some(delay) = spec.failover.preempt_delay_seconds {
        range(&mut out, "spec.failover.preemptDelaySeconds", delay.into(), 0, 3600);
        if delay != 0 && !spec.failover.preempt {
            out.push(violation(
                "spec.failover.preemptDelaySeconds",
                rule("VirtualIP", &["spec", "failover"]),
            ));
        }
    }
    range(&mut out, "spec.announce.count", spec.announce.count.into(), 0, 100);
    range(&mut out, "spec.announce.intervalMillis", spec.announce.interval_millis.into(), 10, 10_000);
    range(&mut out, "spec.announce.refreshSeconds", spec.announce.refresh_seconds.into(), 0, 3600);
    count(&mut out, "spec.services", spec.services.len(), 0, 64);
    let mut bound = BTreeSet::new();
    for (i, s) in spec.services.iter().enumerate() {
        for (field, value) in [("namespace", &s.namespace), ("name", &s.name)] {
            if !dns_label(value) {
                let what = "a name of lower-case letters, digits and dashes (1 to 63)";
                let field = format!("spec.services[{i}].{field}");
                out.push(violation(field, Problem::Name { value: value.clone(), what }));
            }
        }
        if !bound.insert((&s.namespace, &s.name)) {
            let value = format!("{}/{}", s.namespace, s.name);
            out.push(violation(format!("spec.services[{i}]"), Problem::Duplicate { value }));
        }
        if let Some(ports) = &s.ports {
            count(&mut out, &format!("spec.services[{i}].ports"), ports.len(), 1, 100);
            let mut distinct = BTreeSet::new();
            for (j, port) in ports.iter().enumerate() {
                let field = format!("spec.services[{i}].ports[{j}]");
                range(&mut out, field.clone(), (*port).into(), 1, 65535);
                if !distinct.insert(port) {
                    out.push(violation(field, Problem::Duplicate { value: port.to_string() }));
                }
            }
        }
    }
    out
}
