//! Tracked connections of backends that went.
//!
//! A UDP or SCTP client that keeps sending would stay bound to the removed backend for as long as it does.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::NetlinkHeader;
use nodenet_wire::{
    Family as WireFamily, IpProtocol,
    conntrack::{Connection as Tracked, Request},
    message::Flags,
};

use super::{
    ipvs,
    transport::{Connection, TransportError},
};
use crate::{
    kernel::KernelError,
    state::{Family, Protocol, RealServerKey, VirtualServerKey},
};

/// Which connections: those of a virtual server to one real server, or to any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) server: VirtualServerKey,
    pub(super) backend: Option<RealServerKey>,
}

impl Selection {
    /// Address family and protocols of its connections. TCP connections end by themselves.
    fn tables(&self) -> Vec<(WireFamily, Protocol)> {
        match self.server {
            VirtualServerKey::Address(Protocol::TCP, ..) => Vec::new(),
            VirtualServerKey::Address(protocol, address, _) => vec![(WireFamily::of(address), protocol)],
            VirtualServerKey::FirewallMark(family, _) => {
                let family = match family {
                    Family::V4 => WireFamily::V4,
                    Family::V6 => WireFamily::V6,
                };
                vec![(family, Protocol::UDP), (family, Protocol::SCTP)]
            }
        }
    }

    pub(super) fn words(&self) -> String {
        let server = ipvs::name(self.server);
        match self.backend {
            Some(backend) => {
                format!("connections to {} of {server}", SocketAddr::new(backend.address, backend.port))
            }
            None => format!("connections of {server}"),
        }
    }
}

/// Selections by what a connection shows of itself: each connection is looked at once, however many selections there are.
#[derive(Debug, Default)]
struct Index {
    /// By the destination as the client wrote it, and the backend where one is named.
    servers: HashMap<(Protocol, IpAddr, u16, Option<RealServerKey>), usize>,
    /// By the backend. The mark of the packets is not kept; what was translated to the backend and is not addressed to
    /// it is a connection through some virtual server.
    marks: HashMap<RealServerKey, usize>,
}

impl Index {
    fn new(selections: &[Selection]) -> Self {
        let mut index = Self::default();
        for (number, selection) in selections.iter().enumerate() {
            match (selection.server, selection.backend) {
                (VirtualServerKey::Address(protocol, address, port), backend) => {
                    index.servers.entry((protocol, address, port, backend)).or_insert(number);
                }
                (VirtualServerKey::FirewallMark(..), Some(backend)) => {
                    index.marks.entry(backend).or_insert(number);
                }
                (VirtualServerKey::FirewallMark(..), None) => {}
            }
        }
        index
    }

    /// The first selection that covers a connection.
    fn find(&self, connection: &Tracked) -> Option<usize> {
        let Tracked { original, reply, .. } = connection;
        let protocol = Protocol::from_number(original.protocol.0)?;
        let backend = RealServerKey { address: reply.source, port: reply.source_port };
        let of_server =
            |backend| self.servers.get(&(protocol, original.destination, original.destination_port, backend));
        let of_mark = if original.destination == reply.source { None } else { self.marks.get(&backend) };
        [of_server(Some(backend)), of_server(None), of_mark].into_iter().flatten().min().copied()
    }
}

/// Forgets connections. One reading of a protocol's table serves all selections.
pub(super) fn forget(netfilter: &mut Connection, selections: &[Selection]) -> Vec<(usize, KernelError)> {
    let mut failed = Vec::new();
    let tables: BTreeSet<_> = selections.iter().flat_map(Selection::tables).collect();
    let index = Index::new(selections);
    for (family, protocol) in tables {
        let concerned =
            || selections.iter().enumerate().filter(|(_, it)| it.tables().contains(&(family, protocol)));
        let connections = match select(netfilter, family, protocol, &index) {
            Ok(connections) => connections,
            Err(error) => {
                failed.extend(concerned().map(|(index, selection)| (index, unreadable(selection, &error))));
                continue;
            }
        };
        let mut batch = netfilter.batch();
        for (_, connection) in &connections {
            let request = Request::Delete(*connection);
            batch.push(request.flags(), &request);
        }
        for (index, error) in batch.finish() {
            // It ended meanwhile.
            if error.errno() == Some(libc::ENOENT) {
                continue;
            }
            if let Some((selection, _)) = connections.get(index)
                && let Some(words) = selections.get(*selection).map(Selection::words)
            {
                failed.push((*selection, error.about("forget", words)));
            }
        }
    }
    failed.sort_by_key(|(index, _)| *index);
    failed.dedup_by_key(|(index, _)| *index);
    failed
}

fn unreadable(selection: &Selection, error: &TransportError) -> KernelError {
    let (operation, object) = ("forget", selection.words());
    match error.errno() {
        // The subsystem is not there at all.
        Some(libc::EINVAL) => KernelError::Missing {
            operation,
            object,
            feature: "connection tracking by netlink",
            module: "nf_conntrack_netlink",
        },
        _ => error.again().about(operation, object),
    }
}

/// Connections that a selection covers, each with the first that does.
fn select(
    netfilter: &mut Connection,
    family: WireFamily,
    protocol: Protocol,
    index: &Index,
) -> Result<Vec<(usize, Tracked)>, TransportError> {
    let request = Request::List { family, protocol: IpProtocol(protocol.number()) };
    netfilter.dump(&request, |found: &mut Vec<_>, _: &NetlinkHeader, payload| {
        if let Some(connection) = Tracked::parse_payload(payload)?
            && let Some(selection) = index.find(&connection)
        {
            found.push((selection, connection));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use nodenet_wire::conntrack::Tuple;

    use super::*;

    fn connection() -> Tracked {
        let tuple = |source: &str, source_port, destination: &str, destination_port| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: IpProtocol::UDP,
            source_port,
            destination_port,
        };
        Tracked {
            original: tuple("10.0.0.9", 40000, "10.96.0.10", 53),
            reply: tuple("10.1.0.3", 5353, "10.0.0.9", 40000),
            id: None,
            zone: 0,
        }
    }

    fn selection(protocol: Protocol, address: &str, port: u16, backend: Option<(&str, u16)>) -> Selection {
        Selection {
            server: VirtualServerKey::Address(protocol, address.parse().unwrap(), port),
            backend: backend.map(|(address, port)| RealServerKey { address: address.parse().unwrap(), port }),
        }
    }

    #[test]
    fn a_selection_covers_its_servers_connections_alone() {
        let covers = |selection: Selection| Index::new(&[selection]).find(&connection()).is_some();
        assert!(covers(selection(Protocol::UDP, "10.96.0.10", 53, None)));
        assert!(covers(selection(Protocol::UDP, "10.96.0.10", 53, Some(("10.1.0.3", 5353)))));
        assert!(!covers(selection(Protocol::UDP, "10.96.0.10", 53, Some(("10.1.0.4", 5353)))));
        assert!(!covers(selection(Protocol::UDP, "10.96.0.10", 54, None)));
        assert!(!covers(selection(Protocol::SCTP, "10.96.0.10", 53, None)));
        assert!(!covers(selection(Protocol::UDP, "10.96.0.11", 53, None)));
    }

    #[test]
    fn a_mark_covers_what_was_translated_to_the_backend() {
        let mark = |backend: Option<(&str, u16)>| Selection {
            server: VirtualServerKey::FirewallMark(Family::V4, 9),
            ..selection(Protocol::UDP, "10.0.0.1", 1, backend)
        };
        let covers = |selection: Selection| Index::new(&[selection]).find(&connection()).is_some();
        assert!(covers(mark(Some(("10.1.0.3", 5353)))));
        assert!(!covers(mark(Some(("10.1.0.3", 80)))));
        assert!(!covers(mark(None)));
        let mut direct = connection();
        direct.original.destination = direct.reply.source;
        assert_eq!(
            Index::new(&[mark(Some(("10.1.0.3", 5353)))]).find(&direct),
            None,
            "it went there by itself"
        );
    }

    #[test]
    fn a_connection_belongs_to_the_first_of_many_selections_that_cover_it() {
        let of = |port| selection(Protocol::UDP, "10.96.0.10", port, None);
        let mut selections: Vec<Selection> = (1000..9000).map(of).collect();
        selections.push(selection(Protocol::UDP, "10.96.0.10", 53, Some(("10.1.0.3", 5353))));
        selections.push(of(53));
        assert_eq!(Index::new(&selections).find(&connection()), Some(8000));
    }
}
