//! Which service ranges may be made local. A range that holds a neighbour, a gateway or a pod would cut the node off from
//! it, and from the API server that could correct it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::addresses::Node;
use super::problem::{Problem, Reason};

/// The ranges that are made local, and what is to be said about the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    pub ranges: Vec<IpNet>,
    pub problems: Vec<Problem>,
}

/// Judges ranges. `standing` are local already: they stay, whatever came later, because connections run through them.
pub(super) fn judge(
    wanted: &[IpNet],
    pod_networks: &[IpNet],
    node: Option<&Node>,
    standing: &BTreeSet<IpNet>,
) -> Judged {
    let mut judged = Judged::default();
    // Without a look at the node nothing is known to be safe.
    let Some(node) = node else { return judged };
    for range in wanted {
        let stands = standing.contains(range);
        let pods = pod_networks.iter().find(|net| overlap(range, net));
        let obstacle = match (node.network_in(range), pods) {
            (Some((interface, net)), _) => Some(format!("the network {net} of interface {interface}")),
            (None, Some(net)) => Some(format!("the pod network {net}")),
            (None, None) => None,
        };
        if stands || obstacle.is_none() {
            judged.ranges.push(*range);
        }
        if let Some(obstacle) = obstacle {
            let reason = Reason::RangeOverlaps { range: *range, obstacle, stands };
            judged.problems.push(Problem::new("service addresses".into(), reason));
        }
    }
    judged
}

/// Whether two networks have an address in common: then one holds the other.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A range may be made local unless it is so wide that it would cut any node off.
pub(super) fn usable(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => {
            net.prefix_len() >= 8
                && !net.contains(&std::net::Ipv4Addr::LOCALHOST)
                && !net.addr().is_multicast()
        }
        IpNet::V6(net) => {
            net.prefix_len() >= 32 && !net.addr().is_multicast() && !net.addr().is_unicast_link_local()
        }
    }
}
