//! What there is of kube-proxy, and whether it runs.
//!
//! An agent in a pod sees no process of the node. What it does see, on the host's network, is who listens: kube-proxy
//! serves its health on port 10256 and its metrics, and with them its mode, on 10249. A process that listens there and
//! is not the agent itself is asked what it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use super::{NetlinkKernel, address, ipset, link};
use crate::{
    kernel::{KernelError, RunningSign},
    state::{
        Family, KubeProxy, SetEntry,
        kube_proxy::{INTERFACE, is_set, node_ports_of},
    },
};

/// `--healthz-bind-address`, by default.
const HEALTH: u16 = 10256;
/// `--metrics-bind-address`, by default.
const METRICS: u16 = 10249;
/// How long an answer on the same machine may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most of an answer that is read.
const ANSWER: u64 = 4096;
/// `TCP_LISTEN` as `/proc/net/tcp` has it.
const LISTEN: &str = "0A";

/// What there is of it, its rules where they are asked for: reading those runs four programs.
pub(super) fn read(kernel: &mut NetlinkKernel, rules: bool) -> Result<KubeProxy, KernelError> {
    let mut found = KubeProxy::default();
    let interface = link::find(&mut kernel.route, INTERFACE)
        .map_err(|error| error.about("read", format!("interface {INTERFACE}")))?;
    if let Some(interface) = interface {
        found.interface = true;
        let only = BTreeMap::from([(interface.index, interface)]);
        let addresses = address::list(&mut kernel.route, &only)
            .map_err(|error| error.about("read", "interface addresses"))?;
        // What the kernel gives every interface by itself is no Service's.
        let by_hand = |address: &IpAddr| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        found.addresses = addresses.into_keys().map(|key| key.address).filter(by_hand).collect();
    }
    match kernel.netfilter() {
        Ok(netfilter) => {
            found.sets = ipset::names_of(netfilter, is_set)?;
            for name in &found.sets {
                let Some(protocol) = node_ports_of(name) else { continue };
                let entries = ipset::read_one(netfilter, name)?.map(|set| set.entries).unwrap_or_default();
                found.node_ports.extend(entries.iter().filter_map(|entry| match entry {
                    SetEntry::Port(port) | SetEntry::IpPort(_, _, port) => Some((protocol, *port)),
                    _ => None,
                }));
            }
        }
        // A kernel without netfilter's netlink has no set.
        Err(KernelError::Io { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ESOCKTNOSUPPORT)
            ) => {}
        Err(error) => return Err(error),
    }
    for family in [Family::V4, Family::V6].into_iter().filter(|_| rules) {
        let rules = kernel.rules.kube_proxys(family)?;
        found.jumps |= rules.jumps;
        found.iptables_mode |= rules.iptables_mode;
        if !rules.chains.is_empty() {
            found.chains.insert(family, rules.chains);
        }
    }
    Ok(found)
}

/// Whether it shows itself in the network namespace of this thread.
pub(super) fn running() -> Option<RunningSign> {
    let mut own = own_sockets();
    let mut listeners = Vec::new();
    for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match listening(file) {
            Ok(found) => listeners.extend(found),
            // A kernel without IPv6 has no such file.
            Err(error) => tracing::debug!("read {file}: {error}"),
        }
    }
    // Another thread may have opened one since.
    own.extend(own_sockets());
    listeners.retain(|(_, inode)| !own.contains(inode));
    listeners.sort();
    listeners.into_iter().find_map(|(at, _)| sign(at))
}

/// What listens at a port of kube-proxy's.
fn sign(at: SocketAddr) -> Option<RunningSign> {
    let path = if at.port() == METRICS { "/proxyMode" } else { "/healthz" };
    match ask(at, path) {
        Ok(answer) => interpret(at, &answer),
        // It has gone since.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        Err(_) => Some(RunningSign::Mute { at }),
    }
}

fn interpret(at: SocketAddr, answer: &str) -> Option<RunningSign> {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    if at.port() == METRICS {
        // In an answer of unknown length the mode stands in a chunk.
        let mode = body
            .lines()
            .map(str::trim)
            .find(|line| matches!(*line, "ipvs" | "iptables" | "nftables" | "userspace" | "kernelspace"))?;
        return Some(RunningSign::Mode { at, mode: mode.to_owned() });
    }
    // What it answers while it is well and while it is not.
    body.contains("\"lastUpdated\"").then_some(RunningSign::Health { at })
}

fn ask(at: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Who listens on the two ports, and by which socket. In these files listening sockets stand before all others.
fn listening(file: &str) -> io::Result<Vec<(SocketAddr, u64)>> {
    of_root(BufReader::new(fs::File::open(file)?).lines())
}

/// Only sockets of root: kube-proxy cannot be anybody else, and whoever else opens such a port must not be able to take
/// the node's Services away.
fn of_root(lines: impl Iterator<Item = io::Result<String>>) -> io::Result<Vec<(SocketAddr, u64)>> {
    let mut found = Vec::new();
    for line in lines.skip(1) {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, uid, _, inode, ..] = words.as_slice() else { continue };
        if *state != LISTEN {
            break;
        }
        if *uid != "0" {
            continue;
        }
        if let Some(at) = address_of(local).filter(|at| matches!(at.port(), HEALTH | METRICS))
            && let Ok(inode) = inode.parse()
        {
            found.push((at, inode));
        }
    }
    Ok(found)
}

/// Where to reach what listens on `0100007F:2808`: the bytes of each four are in the machine's own order.
fn address_of(local: &str) -> Option<SocketAddr> {
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<[u8; 4]> = address
        .as_bytes()
        .chunks(8)
        .filter_map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .map(u32::to_ne_bytes)
        .collect();
    let address = match words.as_slice() {
        [four] => IpAddr::from(*four),
        six if six.len() == 4 => {
            let bytes: [u8; 16] = six.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    let address = match address {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        one => one,
    };
    Some(SocketAddr::new(address, port))
}

/// Sockets of this process.
fn own_sockets() -> BTreeSet<u64> {
    let Ok(files) = fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    let socket = |file: fs::DirEntry| {
        let target = fs::read_link(file.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    files.flatten().filter_map(socket).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_answers_is_known_by_what_it_says() {
        let metrics: SocketAddr = "127.0.0.1:10249".parse().unwrap();
        let health: SocketAddr = "127.0.0.1:10256".parse().unwrap();
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n{body}");
        let mode = |sign: Option<RunningSign>| match sign {
            Some(RunningSign::Mode { mode, .. }) => mode,
            other => panic!("{other:?}"),
        };
        assert_eq!(mode(interpret(metrics, &answer("ipvs"))), "ipvs");
        assert_eq!(mode(interpret(metrics, &answer("8\r\niptables\r\n0\r\n"))), "iptables");
        assert_eq!(interpret(metrics, &answer("404 page not found")), None);
        let well = r#"{"lastUpdated": "2026-01-01","currentTime": "2026-01-01"}"#;
        assert_eq!(interpret(health, &answer(well)), Some(RunningSign::Health { at: health }));
        let sick = format!("HTTP/1.1 503 Service Unavailable\r\n\r\n{well}");
        assert_eq!(interpret(health, &sick), Some(RunningSign::Health { at: health }));
        assert_eq!(interpret(health, &answer("ok")), None);
    }

    #[test]
    fn addresses_of_sockets_are_read_in_the_machines_order() {
        let four = u32::from_ne_bytes([127, 0, 0, 1]);
        assert_eq!(address_of(&format!("{four:08X}:2810")), Some("127.0.0.1:10256".parse().unwrap()));
        let any = "0".repeat(32);
        assert_eq!(address_of(&format!("{any}:2809")), Some("[::1]:10249".parse().unwrap()));
        assert_eq!(address_of("nonsense"), None);
    }

    #[test]
    fn only_root_can_be_kube_proxy() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        let four = u32::from_ne_bytes([127, 0, 0, 1]);
        let line = |port: &str, state: &str, uid: u32, inode: u64| {
            let rest = "00000000:0000";
            format!(
                "   0: {four:08X}:{port} {rest} {state} {rest} 00:00000000 00000000 {uid:5} 0 {inode} 1 0 100 0"
            )
        };
        let lines = [
            head.to_owned(),
            line("2809", LISTEN, 1000, 7),
            line("2810", LISTEN, 0, 8),
            line("0016", LISTEN, 0, 9),
            line("2809", "01", 0, 10),
        ];
        let found = of_root(lines.into_iter().map(Ok)).unwrap();
        assert_eq!(found, [("127.0.0.1:10256".parse().unwrap(), 8)]);
    }

    #[test]
    fn a_socket_of_this_process_is_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener)));
        let inode = inode.unwrap().to_str().unwrap().to_owned();
        let own = own_sockets();
        assert!(own.iter().any(|socket| inode == format!("socket:[{socket}]")), "{inode} {own:?}");
    }
}
