//! Hearing that another host has an address that is ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nodenet_wire::ethernet::{EtherType, MacAddress};

use super::{
    announce::{open, statement},
    frames::FrameSocket,
    link,
    listener::{Hearing, Listener},
    namespace::Namespace,
    transport::{Connection, Protocol},
};
use crate::{kernel::KernelError, state::AddressKey};

/// How often a thread without frames looks whether it shall end.
const ATTENTION: Duration = Duration::from_millis(250);
/// How old what is known of our own interfaces may be, and how often the same is told. A neighbour that claims in a row
/// must not make us read them, nor the lane look, at each frame.
const FRESH: Duration = Duration::from_secs(1);

/// What another host says of a watched address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Says {
    /// That it has it.
    Has,
    /// That it will take it when nobody answers (a probe as of RFC 5227, or duplicate address detection).
    WillTake,
}

/// Another host says something of a watched address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnotherOwner {
    /// What it says.
    pub says: Says,
    /// Interface on which it was heard.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: MacAddress,
}

/// Threads that listen to ARP and neighbour discovery; dropping it ends them.
pub struct OwnerWatch {
    watched: Watched,
    _listeners: [Listener; 2],
}

type Watched = Arc<RwLock<BTreeSet<AddressKey>>>;
type Heard = Arc<Mutex<dyn FnMut(AnotherOwner) -> bool + Send>>;

impl OwnerWatch {
    /// Watches these addresses and no others.
    pub fn set(&self, addresses: BTreeSet<AddressKey>) {
        *self.watched.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }
}

/// Listens for other owners. `heard` gets each frame in which a link-layer address that is none of ours claims a
/// watched address on its interface, or is about to, once a second at most for the same words; it ends the listening by
/// `false`. `hearing` gets to know when a listener fails, and when it goes on.
///
/// # Errors
/// When a thread cannot be started. Packet sockets ask for `CAP_NET_RAW`.
pub fn watch(
    namespace: &Namespace,
    heard: impl FnMut(AnotherOwner) -> bool + Send + 'static,
    hearing: impl Fn(Hearing) + Clone + Send + 'static,
) -> Result<OwnerWatch, KernelError> {
    let watched = Watched::default();
    let heard: Heard = Arc::new(Mutex::new(heard));
    let listener = |name: &'static str, family: IpAddr, ether_type: EtherType| {
        let (namespace, watched, heard) = (namespace.clone(), Arc::clone(&watched), Arc::clone(&heard));
        let open = move || {
            let ear = Ear {
                family,
                watched: Arc::clone(&watched),
                heard: Arc::clone(&heard),
                interfaces: Interfaces::new(Connection::open(Protocol::Route, &namespace)?),
                told: BTreeMap::new(),
            };
            Ok((ear, open(&namespace, ether_type)?))
        };
        Listener::start(name, open, hearing.clone(), |(ear, socket), _, ending| ear.listen(socket, ending))
    };
    let listeners = [
        listener("owners-arp", Ipv4Addr::UNSPECIFIED.into(), EtherType::ARP)?,
        listener("owners-nd", Ipv6Addr::UNSPECIFIED.into(), EtherType::IPV6)?,
    ];
    Ok(OwnerWatch { watched, _listeners: listeners })
}

/// What listens for one family.
struct Ear {
    family: IpAddr,
    watched: Watched,
    heard: Heard,
    interfaces: Interfaces,
    /// When what was told last.
    told: BTreeMap<AnotherOwner, Instant>,
}

impl Ear {
    fn listen(mut self, mut socket: FrameSocket, ending: &AtomicBool) -> Result<(), KernelError> {
        while !ending.load(Ordering::Relaxed) {
            let frame = socket.receive(ATTENTION).map_err(|source| KernelError::Io {
                operation: "read",
                object: "packet socket (other owners of addresses)".to_owned(),
                source,
            })?;
            if let Some((index, frame)) = frame
                && let Some((says, address, mac)) = statement(self.family, frame)
                && !self.take(index, says, address, mac)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Tells of a statement if it is another's about a watched address; whether to go on.
    fn take(&mut self, index: u32, says: Says, address: IpAddr, mac: MacAddress) -> bool {
        // Nearly all frames are about addresses that nobody watches. Nothing is asked while this is locked: the lane
        // that renews the addresses changes it.
        let of_address: Vec<AddressKey> = {
            let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
            watched.iter().filter(|key| key.address == address).cloned().collect()
        };
        if of_address.is_empty() {
            return true;
        }
        let Some(interface) = self.interfaces.foreign(index, mac) else { return true };
        if !of_address.iter().any(|key| key.interface == interface) {
            return true;
        }
        let another = AnotherOwner { says, interface, address, mac };
        // One that says it a thousand times a second says nothing new.
        let now = Instant::now();
        if self.told.get(&another).is_some_and(|told| now < *told + FRESH) {
            return true;
        }
        self.told.retain(|_, told| now < *told + FRESH);
        self.told.insert(another.clone(), now);
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard(another)
    }
}

/// Our interfaces, as of a moment ago.
struct Interfaces {
    route: Connection,
    read: Option<Instant>,
    known: Vec<link::Interface>,
}

impl Interfaces {
    fn new(route: Connection) -> Self {
        Self { route, read: None, known: Vec::new() }
    }

    /// The name of an interface, if a link-layer address is none of ours.
    fn foreign(&mut self, index: u32, mac: MacAddress) -> Option<String> {
        if self.read.is_none_or(|read| read.elapsed() > FRESH) {
            match link::list(&mut self.route) {
                Ok(links) => self.known = links.into_values().collect(),
                Err(error) => tracing::warn!(%error, "reading the interfaces failed"),
            }
            self.read = Some(Instant::now());
        }
        if self.known.iter().any(|interface| interface.hardware_address == mac.0) {
            return None;
        }
        self.known.iter().find(|interface| interface.index == index).map(|it| it.name.clone())
    }
}
