//! Sets of the packet filter (ipset).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netlink_packet_core::NetlinkHeader;
use nodenet_wire::{
    DecodeError, Family as WireFamily, IpProtocol, extack,
    ipset::{
        CreateOptions, Element, Entry, EntryBatch, ErrorCode, ListScope, PortRange, Reply, Request, SetName,
        SetType, SkbMark,
    },
    message::Flags,
};

use super::transport::{Connection, TransportError};
use crate::{
    kernel::KernelError,
    state::{Family, IpSet, PREFIX, PREFIX6, Protocol, Scope, SetEntry, SetKind, Which},
};

/// The kernel's smallest initial size of a hash.
const SMALLEST_HASH: u32 = 64;
/// A hash grows by doubling and copying; this size suits most sets from the start.
const USUAL_HASH: u32 = 1024;

/// Reads the sets that a scope names, whole or single entries of them.
pub(super) fn read(
    netfilter: &mut Connection,
    scope: &Scope,
) -> Result<BTreeMap<String, IpSet>, KernelError> {
    let mut sets = BTreeMap::new();
    let whole = match &scope.sets {
        Which::All => names(netfilter)?,
        Which::Only(names) => names.clone(),
    };
    for name in whole {
        if let Some(set) = read_one(netfilter, &name)? {
            sets.insert(name, set);
        }
    }
    for (name, entries) in &scope.set_entries {
        if !scope.sets.contains(name.as_str())
            && let Some(set) = test(netfilter, name, entries)?
        {
            sets.insert(name.clone(), set);
        }
    }
    Ok(sets)
}

/// Names of our sets.
fn names(netfilter: &mut Connection) -> Result<BTreeSet<String>, KernelError> {
    names_of(netfilter, |name| name.starts_with(PREFIX) || name.starts_with(PREFIX6))
}

/// Names of the sets that are asked for.
pub(super) fn names_of(
    netfilter: &mut Connection,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeSet<String>, KernelError> {
    let request = Request::List { set: None, scope: ListScope::Names };
    let names = netfilter.dump(&request, |names: &mut BTreeSet<String>, header: &NetlinkHeader, payload| {
        if let Reply::List(listing) = Reply::parse(header.message_type, payload)? {
            let name = listing.set.to_string();
            if wanted(&name) {
                names.insert(name);
            }
        }
        Ok(())
    });
    match names {
        Ok(names) => Ok(names),
        // There is no set, or the kernel has not even the subsystem.
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL)) => Ok(BTreeSet::new()),
        Err(error) => Err(about(error, "read", "sets".to_owned(), None)),
    }
}

/// A set with all its entries; `None` when there is none of the name, or of a type that is never ours.
pub(super) fn read_one(netfilter: &mut Connection, name: &str) -> Result<Option<IpSet>, KernelError> {
    let set = set_name("read", name)?;
    let request = Request::List { set: Some(set), scope: ListScope::Entries };
    let found = netfilter.dump(&request, |found: &mut Option<IpSet>, header: &NetlinkHeader, payload| {
        let Reply::List(listing) = Reply::parse(header.message_type, payload)? else { return Ok(()) };
        if let Some(header) = &listing.header {
            let kind = SetType::from_name(&header.type_name).and_then(state_kind);
            *found = kind.map(|kind| IpSet {
                kind: match kind {
                    SetKind::HashIpPort if header.options.marks => SetKind::HashIpPortMark,
                    kind => kind,
                },
                family: match header.family {
                    Some(WireFamily::V4) => Family::V4,
                    Some(WireFamily::V6) => Family::V6,
                    None => family_by_name(name),
                },
                max_entries: header.options.max_elements.unwrap_or_default(),
                entries: BTreeSet::new(),
            });
        }
        if let Some(set) = found {
            for entry in listing.entries() {
                set.entries.extend(state_entry(&entry?));
            }
        }
        Ok(())
    });
    match found {
        Ok(found) => Ok(found),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(error) => Err(about(error, "read", object(name), None)),
    }
}

/// Which of some entries are in a set; `None` when there is none of the name.
fn test(
    netfilter: &mut Connection,
    name: &str,
    entries: &BTreeSet<SetEntry>,
) -> Result<Option<IpSet>, KernelError> {
    let set = set_name("read", name)?;
    let mut batch = netfilter.batch();
    for entry in entries {
        let request = Request::Test { set, entry: wire_entry(entry) };
        batch.push(request.flags(), &request);
    }
    let mut absent = BTreeSet::new();
    for (index, error) in batch.finish() {
        match error.errno() {
            Some(libc::ENOENT | libc::EINVAL) => return Ok(None),
            Some(errno) if ErrorCode::from_errno(errno, None) == Some(ErrorCode::Exist) => {
                absent.insert(index);
            }
            _ => return Err(about(error, "read", object(name), None)),
        }
    }
    let Some(first) = entries.first() else { return Ok(None) };
    let (kind, family) = shape(name, first);
    let present = entries.iter().enumerate().filter(|(index, _)| !absent.contains(index));
    let entries = present.map(|(_, entry)| *entry).collect();
    Ok(Some(IpSet { kind, family, max_entries: 0, entries }))
}

/// Makes an empty set. One that is there with another size is made anew with its entries and takes the old one's place
/// at once: rules that refer to it match without a break.
pub(super) fn create(
    netfilter: &mut Connection,
    name: &str,
    kind: SetKind,
    family: Family,
    max_entries: u32,
) -> Result<(), KernelError> {
    let set = set_name("add", name)?;
    let definition = Definition { kind, family, max_entries };
    let refused = match definition.create(netfilter, set) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    if !matches!(&refused, KernelError::Refused { errno: libc::EEXIST, .. }) {
        return Err(refused);
    }
    let Some(present) = read_one(netfilter, name)? else { return Err(refused) };
    if present.kind != kind || present.family != family || present.max_entries == max_entries {
        return Err(refused);
    }
    let larger = set_name("add", &format!("{PREFIX}RESIZED"))?;
    // Left behind if this was interrupted before.
    match one(netfilter, &Request::Destroy { set: larger }) {
        Ok(()) => {}
        Err(error) if error.errno() == Some(libc::ENOENT) => {}
        Err(error) => return Err(about(error, "resize", object(name), None)),
    }
    definition.create(netfilter, larger)?;
    let entries = present.entries.into_iter().collect();
    let run = Run { set: &larger.to_str(), direction: Direction::Add, entries };
    let outcome = match change(netfilter, &[run]).pop() {
        Some((_, _, error)) => Err(error),
        None => one(netfilter, &Request::Swap { set, with: larger })
            .map_err(|error| about(error, "resize", object(name), None)),
    };
    let removed = one(netfilter, &Request::Destroy { set: larger })
        .map_err(|error| about(error, "remove", object(&larger.to_str()), None));
    outcome.and(removed)
}

/// What a set is made with.
#[derive(Clone, Copy)]
struct Definition {
    kind: SetKind,
    family: Family,
    max_entries: u32,
}

impl Definition {
    fn create(self, netfilter: &mut Connection, set: SetName) -> Result<(), KernelError> {
        let set_type = wire_type(self.kind);
        let object = || object(&set.to_str());
        let family = set_type.has_family().then_some(wire_family(self.family));
        let revisions = netfilter.get(&Request::Type { set_type, family }, |header, payload| {
            match Reply::parse(header.message_type, payload)? {
                Reply::Type(revisions) => Ok(revisions),
                _ => Err(DecodeError::Missing { object: "ipset type", attribute: "IPSET_ATTR_REVISION" }),
            }
        });
        let missing =
            |feature, module| KernelError::Missing { operation: "add", object: object(), feature, module };
        let revisions = revisions.map_err(|error| match error.errno() {
            // The subsystem is not there at all.
            Some(libc::EINVAL) => missing("IP sets", "ip_set"),
            Some(errno) if ErrorCode::from_errno(errno, None) == Some(ErrorCode::FindType) => {
                missing(set_type.as_str(), module(self.kind))
            }
            _ => about(error, "add", object(), Some(set_type)),
        })?;
        let options = match self.kind {
            SetKind::BitmapPort => CreateOptions::bitmap(PortRange::ALL),
            _ => CreateOptions {
                marks: self.kind == SetKind::HashIpPortMark,
                ..CreateOptions::hash(hash_size(self.max_entries), self.max_entries)
            },
        };
        let revision = set_type.revision(revisions);
        let request = Request::Create { set, set_type, revision, family, options, exist: false };
        one(netfilter, &request).map_err(|error| about(error, "add", object(), Some(set_type)))
    }
}

/// Removes a set.
pub(super) fn destroy(netfilter: &mut Connection, name: &str) -> Result<(), KernelError> {
    let set = set_name("remove", name)?;
    one(netfilter, &Request::Destroy { set }).map_err(|error| about(error, "remove", object(name), None))
}

fn one(netfilter: &mut Connection, request: &Request) -> Result<(), TransportError> {
    let mut batch = netfilter.batch();
    batch.push(request.flags(), request);
    match batch.finish().pop() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Whether entries come or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Add,
    Delete,
}

impl Direction {
    fn words(self, set: &str, entry: &SetEntry) -> (&'static str, String) {
        let element = element(entry);
        match self {
            Self::Add => ("add", format!("entry {element} to {}", object(set))),
            Self::Delete => ("remove", format!("entry {element} from {}", object(set))),
        }
    }
}

/// A run of changes of one set: its entries go to the kernel hundreds in a message.
pub(super) struct Run<'a> {
    pub(super) set: &'a str,
    pub(super) direction: Direction,
    pub(super) entries: Vec<SetEntry>,
}

/// Carries runs out; which entries failed, as (run, entry), and why. An entry that is there already, or gone already,
/// is no failure.
pub(super) fn change(netfilter: &mut Connection, runs: &[Run<'_>]) -> Vec<(usize, usize, KernelError)> {
    let mut failed = Vec::new();
    // What is to be sent: (run, range of its entries). After a failed entry the rest of its message is sent again,
    // because the kernel stops there.
    let mut pending = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        match set_name("change", run.set) {
            Ok(name) => {
                let chunks = (0..run.entries.len()).step_by(EntryBatch::MOST);
                pending.extend(
                    chunks.map(|from| (index, name, from..(from + EntryBatch::MOST).min(run.entries.len()))),
                );
            }
            Err(_) => failed.extend((0..run.entries.len()).map(|entry| {
                let error = KernelError::Refused {
                    operation: "change",
                    object: object(run.set),
                    errno: libc::EINVAL,
                    message: Some("this cannot be the name of a set".to_owned()),
                };
                (index, entry, error)
            })),
        }
    }
    while !pending.is_empty() {
        let mut batch = netfilter.batch();
        for (index, name, range) in &pending {
            let Some(run) = runs.get(*index) else { continue };
            let entries = run.entries.get(range.clone()).unwrap_or_default();
            let entries: Vec<_> = entries.iter().map(wire_entry).collect();
            let Some(entries) = EntryBatch::split(&entries).next() else { continue };
            let (set, exist) = (*name, true);
            let request = match run.direction {
                Direction::Add => Request::AddBatch { set, entries, exist },
                Direction::Delete => Request::DeleteBatch { set, entries, exist },
            };
            batch.push(request.flags(), &request);
        }
        let mut again = Vec::new();
        for (message, error) in batch.finish() {
            let Some((index, name, range)) = pending.get(message) else { continue };
            let Some(run) = runs.get(*index) else { continue };
            let why = |entry: usize, error: TransportError| {
                let (operation, words) = match run.entries.get(entry) {
                    Some(at) => run.direction.words(run.set, at),
                    None => ("change", object(run.set)),
                };
                (*index, entry, about(error, operation, words, None))
            };
            match failed_line(&error) {
                Some(line) if range.start + line < range.end && !concerns_all(&error) => {
                    let at = range.start + line;
                    failed.push(why(at, error));
                    if at + 1 < range.end {
                        again.push((*index, *name, at + 1..range.end));
                    }
                }
                line => {
                    // Entries before the line are in.
                    let from = range.start + line.unwrap_or_default();
                    for entry in from..range.end {
                        failed.push(why(entry, error.again()));
                    }
                }
            }
        }
        pending = again;
    }
    failed
}

/// Index in its message of the entry that failed.
fn failed_line(error: &TransportError) -> Option<usize> {
    let TransportError::Refused(error) = error else { return None };
    usize::try_from(error.line?.checked_sub(1)?).ok()
}

/// Whether all further entries would fail the same way.
fn concerns_all(error: &TransportError) -> bool {
    error.errno().is_some_and(|errno| {
        errno == libc::ENOMEM || ErrorCode::from_errno(errno, None) == Some(ErrorCode::HashFull)
    })
}

/// An error about a set: numbers of ipset's own become the system's nearest, with ipset's words.
fn about(
    error: TransportError,
    operation: &'static str,
    object: String,
    set_type: Option<SetType>,
) -> KernelError {
    let TransportError::Refused(error) = error else { return error.about(operation, object) };
    let Some(code) = ErrorCode::from_errno(error.errno, set_type) else {
        return TransportError::Refused(error).about(operation, object);
    };
    let errno = match code {
        ErrorCode::Busy | ErrorCode::Referenced => libc::EBUSY,
        ErrorCode::Exist | ErrorCode::ExistSetName2 => libc::EEXIST,
        ErrorCode::HashFull | ErrorCode::MaxSets => libc::ENOSPC,
        ErrorCode::FindType => libc::EOPNOTSUPP,
        _ => libc::EINVAL,
    };
    let words = code.to_string();
    let error = extack::KernelError { errno, message: Some(words), ..error };
    TransportError::Refused(error).about(operation, object)
}

fn object(name: &str) -> String {
    format!("set {name}")
}

fn set_name(operation: &'static str, name: &str) -> Result<SetName, KernelError> {
    SetName::new(name).map_err(|error| KernelError::Refused {
        operation,
        object: object(name),
        errno: libc::EINVAL,
        message: Some(error.to_string()),
    })
}

/// A hash that need not grow more than a few times, nor take memory for entries that never come.
fn hash_size(max_entries: u32) -> u32 {
    USUAL_HASH.min(max_entries.checked_next_power_of_two().unwrap_or(USUAL_HASH)).max(SMALLEST_HASH)
}

const fn wire_family(family: Family) -> WireFamily {
    match family {
        Family::V4 => WireFamily::V4,
        Family::V6 => WireFamily::V6,
    }
}

const fn wire_type(kind: SetKind) -> SetType {
    match kind {
        SetKind::HashIp => SetType::HashIp,
        SetKind::HashNet => SetType::HashNet,
        SetKind::HashIpPort | SetKind::HashIpPortMark => SetType::HashIpPort,
        SetKind::HashIpPortIp => SetType::HashIpPortIp,
        SetKind::HashIpPortNet => SetType::HashIpPortNet,
        SetKind::BitmapPort => SetType::BitmapPort,
    }
}

const fn state_kind(set_type: SetType) -> Option<SetKind> {
    Some(match set_type {
        SetType::HashIp => SetKind::HashIp,
        SetType::HashNet => SetKind::HashNet,
        SetType::HashIpPort => SetKind::HashIpPort,
        SetType::HashIpPortIp => SetKind::HashIpPortIp,
        SetType::BitmapPort => SetKind::BitmapPort,
        SetType::HashIpPortNet => SetKind::HashIpPortNet,
        SetType::HashNetPort => return None,
    })
}

const fn module(kind: SetKind) -> &'static str {
    match kind {
        SetKind::HashIp => "ip_set_hash_ip",
        SetKind::HashNet => "ip_set_hash_net",
        SetKind::HashIpPort | SetKind::HashIpPortMark => "ip_set_hash_ipport",
        SetKind::HashIpPortIp => "ip_set_hash_ipportip",
        SetKind::HashIpPortNet => "ip_set_hash_ipportnet",
        SetKind::BitmapPort => "ip_set_bitmap_port",
    }
}

/// A set of ports has no family in the kernel, but the rules of one family name it.
fn family_by_name(name: &str) -> Family {
    if name.starts_with(PREFIX6) { Family::V6 } else { Family::V4 }
}

/// Kind and family of the set of a name, by one of its entries.
fn shape(name: &str, entry: &SetEntry) -> (SetKind, Family) {
    let family = |v4: bool| if v4 { Family::V4 } else { Family::V6 };
    match entry {
        SetEntry::Ip(address) => (SetKind::HashIp, family(address.is_ipv4())),
        SetEntry::Net(net) => (SetKind::HashNet, family(matches!(net, IpNet::V4(_)))),
        SetEntry::IpPort(address, ..) => (SetKind::HashIpPort, family(address.is_ipv4())),
        SetEntry::IpPortMark(address, ..) => (SetKind::HashIpPortMark, family(address.is_ipv4())),
        SetEntry::IpPortNet(address, ..) => (SetKind::HashIpPortNet, family(address.is_ipv4())),
        SetEntry::IpPortIp(address, ..) => (SetKind::HashIpPortIp, family(address.is_ipv4())),
        SetEntry::Port(_) => (SetKind::BitmapPort, family_by_name(name)),
    }
}

fn element(entry: &SetEntry) -> Element {
    let number = |protocol: &Protocol| IpProtocol(protocol.number());
    match entry {
        SetEntry::Ip(address) => Element::Ip(*address),
        SetEntry::Net(net) => Element::Net(net.network(), net.prefix_len()),
        SetEntry::IpPort(address, protocol, port) | SetEntry::IpPortMark(address, protocol, port, _) => {
            Element::IpPort(*address, number(protocol), *port)
        }
        SetEntry::IpPortNet(address, protocol, port, net) => {
            Element::IpPortNet(*address, number(protocol), *port, net.network(), net.prefix_len())
        }
        SetEntry::IpPortIp(address, protocol, port, second) => {
            Element::IpPortIp(*address, number(protocol), *port, *second)
        }
        SetEntry::Port(port) => Element::Port(*port),
    }
}

fn wire_entry(entry: &SetEntry) -> Entry {
    let mark = match entry {
        SetEntry::IpPortMark(_, _, _, value) => Some(SkbMark { value: *value, mask: u32::MAX }),
        _ => None,
    };
    Entry { mark, ..Entry::from(element(entry)) }
}

/// `None` for entries that are never ours.
fn state_entry(entry: &Entry) -> Option<SetEntry> {
    Some(match &entry.element {
        Element::Ip(address) => SetEntry::Ip(*address),
        Element::Net(address, prefix) => SetEntry::Net(IpNet::new(*address, *prefix).ok()?.trunc()),
        Element::IpPort(address, protocol, port) => {
            let protocol = Protocol::from_number(protocol.0)?;
            match entry.mark {
                None => SetEntry::IpPort(*address, protocol, *port),
                Some(SkbMark { value, mask: u32::MAX }) => {
                    SetEntry::IpPortMark(*address, protocol, *port, value)
                }
                // Ours replace the whole mark: another one is not what was asked for, whatever its value.
                Some(_) => SetEntry::IpPortMark(*address, protocol, *port, 0),
            }
        }
        Element::IpPortIp(address, protocol, port, second) => {
            SetEntry::IpPortIp(*address, Protocol::from_number(protocol.0)?, *port, *second)
        }
        Element::Port(port) => SetEntry::Port(*port),
        Element::IpPortNet(address, protocol, port, net, prefix) => {
            let net = IpNet::new(*net, *prefix).ok()?.trunc();
            SetEntry::IpPortNet(*address, Protocol::from_number(protocol.0)?, *port, net)
        }
        Element::NetPort(..) => return None,
    })
}
