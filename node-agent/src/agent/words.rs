//! Operations in words, as a person reads them: in the log, in Events and on the terminal.

use crate::state::{
    Family, Forwarding, Operation, Protocol, RealServer, RealServerKey, SetEntry, SetKind, VirtualServer,
    VirtualServerKey,
};

/// What an operation does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Something comes.
    Add,
    /// Something changes.
    Change,
    /// Something goes.
    Remove,
}

impl Sign {
    /// `+`, `~` or `-`.
    pub fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Change => '~',
            Self::Remove => '-',
        }
    }
}

/// An operation as a sign and an object.
pub fn words(operation: &Operation) -> (Sign, String) {
    use Sign::{Add, Change, Remove};
    match operation {
        Operation::LoadModule(name) => (Add, format!("module {name}")),
        Operation::SetSysctl(name, value) => (Change, format!("sysctl {name} = {value}")),
        Operation::AddLink(name) => (Add, format!("interface {name}")),
        Operation::DeleteLink(name) => (Remove, format!("interface {name}")),
        Operation::CreateSet(name, kind, family, size) => {
            let size = if *size > 0 { format!(", up to {size} entries") } else { String::new() };
            (Add, format!("set {name} ({}, {}{size})", set_kind(*kind), family_name(*family)))
        }
        Operation::DestroySet(name) => (Remove, format!("set {name}")),
        Operation::AddEntry(set, entry) => (Add, format!("entry {} in {set}", set_entry(entry))),
        Operation::DeleteEntry(set, entry) => (Remove, format!("entry {} in {set}", set_entry(entry))),
        Operation::ReplaceRules(family, rules) => {
            let chains: usize = rules.chains.values().map(|chains| chains.len()).sum();
            let lines: usize = rules.chains.values().flat_map(|chains| chains.values().map(Vec::len)).sum();
            let jumps: usize = rules.jumps.values().map(Vec::len).sum();
            if chains == 0 && jumps == 0 {
                (Remove, format!("packet filter rules ({})", family_name(*family)))
            } else {
                let family = family_name(*family);
                (Change, format!("packet filter rules ({family}): {chains} chains, {} rules", lines + jumps))
            }
        }
        Operation::RemoveKubeProxyRules(family) => {
            (Remove, format!("packet filter rules of kube-proxy ({})", family_name(*family)))
        }
        Operation::AddRoute(route) => (Add, format!("local route {} dev {}", route.range, route.interface)),
        Operation::DeleteRoute(route) => {
            (Remove, format!("local route {} dev {}", route.range, route.interface))
        }
        Operation::AddVirtualServer(key, server) => {
            (Add, format!("virtual server {}{}", virtual_server(key), attributes(server)))
        }
        Operation::SetVirtualServer(key, server) => {
            (Change, format!("virtual server {}{}", virtual_server(key), attributes(server)))
        }
        Operation::DeleteVirtualServer(key) => (Remove, format!("virtual server {}", virtual_server(key))),
        Operation::AddRealServer(key, real, server) => (Add, real_server(key, real, Some(server))),
        Operation::SetRealServer(key, real, server) => (Change, real_server(key, real, Some(server))),
        Operation::DeleteRealServer(key, real) => (Remove, real_server(key, real, None)),
        Operation::ForgetConnections(key, Some(real)) => {
            (Remove, format!("tracked connections of {} to {}", virtual_server(key), endpoint(real)))
        }
        Operation::ForgetConnections(key, None) => {
            (Remove, format!("tracked connections of {}", virtual_server(key)))
        }
        Operation::AddAddress(key, address) => {
            let life = address.lifetime.map(|s| format!(" for {s} s")).unwrap_or_default();
            (Add, format!("address {}/{} dev {}{life}", key.address, address.prefix_length, key.interface))
        }
        Operation::SetAddress(key, address) => {
            let life = address.lifetime.map_or_else(|| " forever".to_owned(), |s| format!(" for {s} s"));
            (Change, format!("address {}/{} dev {}{life}", key.address, address.prefix_length, key.interface))
        }
        Operation::DeleteAddress(key, length) => {
            (Remove, format!("address {}/{length} dev {}", key.address, key.interface))
        }
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::TCP => "TCP",
        Protocol::UDP => "UDP",
        Protocol::SCTP => "SCTP",
    }
}

fn socket(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// A virtual server by its key, for example `TCP 10.96.0.10:53`.
pub fn virtual_server(key: &VirtualServerKey) -> String {
    match key {
        VirtualServerKey::Address(p, address, port) => {
            format!("{} {}", protocol(*p), socket(*address, *port))
        }
        VirtualServerKey::FirewallMark(family, mark) => format!("mark {mark:#x} ({})", family_name(*family)),
    }
}

/// In words.
pub fn endpoint(key: &RealServerKey) -> String {
    socket(key.address, key.port)
}

fn attributes(server: &VirtualServer) -> String {
    let mut out = format!(" {}", server.scheduler);
    if server.persistence > 0 {
        out += &format!(" persistent {} s", server.persistence);
    }
    if server.flags != 0 {
        out += &format!(" flags {:#x}", server.flags);
    }
    out
}

fn real_server(key: &VirtualServerKey, real: &RealServerKey, server: Option<&RealServer>) -> String {
    let mut out = format!("real server {} of {}", endpoint(real), virtual_server(key));
    if let Some(server) = server {
        out += match server.forwarding {
            Forwarding::Masquerade => "",
            Forwarding::DirectRoute => " direct route",
            Forwarding::Tunnel => " tunnel",
        };
        if server.weight != 1 {
            out += &format!(" weight {}", server.weight);
        }
    }
    out
}

/// In words.
pub fn set_kind(kind: SetKind) -> &'static str {
    match kind {
        SetKind::HashIp => "hash:ip",
        SetKind::HashNet => "hash:net",
        SetKind::HashIpPort => "hash:ip,port",
        SetKind::HashIpPortNet => "hash:ip,port,net",
        SetKind::HashIpPortMark => "hash:ip,port skbinfo",
        SetKind::HashIpPortIp => "hash:ip,port,ip",
        SetKind::BitmapPort => "bitmap:port",
    }
}

/// In words.
pub fn set_entry(entry: &SetEntry) -> String {
    match entry {
        SetEntry::Ip(address) => address.to_string(),
        SetEntry::Net(net) => net.to_string(),
        SetEntry::IpPortNet(address, p, port, net) => {
            format!("{address},{}:{port},{net}", protocol(*p).to_lowercase())
        }
        SetEntry::IpPortMark(address, p, port, mark) => {
            format!("{address},{}:{port} skbmark {mark:#x}", protocol(*p).to_lowercase())
        }
        SetEntry::IpPort(address, p, port) => format!("{address},{}:{port}", protocol(*p).to_lowercase()),
        SetEntry::IpPortIp(address, p, port, other) => {
            format!("{address},{}:{port},{other}", protocol(*p).to_lowercase())
        }
        SetEntry::Port(port) => port.to_string(),
    }
}
