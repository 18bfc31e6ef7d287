//! Hearing that another host has an address that is ours.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nodenet_wire::ethernet::{EtherType, MacAddress};

use super::{
    announce::{claim, open},
    events::Listener,
    frames::FrameSocket,
    link,
    namespace::Namespace,
    transport::{Connection, Protocol},
};
use crate::{kernel::KernelError, state::AddressKey};

/// How often a thread without frames looks whether it shall end.
const ATTENTION: Duration = Duration::from_millis(250);
/// How old what is known of our own interfaces may be. A neighbour that claims in a row must not make us read them at
/// each frame.
const FRESH: Duration = Duration::from_secs(1);

/// Another host says that it has a watched address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnotherOwner {
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
/// watched address on its interface, and ends the listening by `false`.
///
/// # Errors
/// When a socket cannot be opened; packet sockets ask for `CAP_NET_RAW`.
pub fn watch(
    namespace: &Namespace,
    heard: impl FnMut(AnotherOwner) -> bool + Send + 'static,
) -> Result<OwnerWatch, KernelError> {
    let watched = Watched::default();
    let heard: Heard = Arc::new(Mutex::new(heard));
    let listener = |name: &str, family: IpAddr, ether_type: EtherType| {
        let socket = open(namespace, ether_type)?;
        let ear = Ear {
            family,
            watched: Arc::clone(&watched),
            heard: Arc::clone(&heard),
            interfaces: Interfaces::new(Connection::open(Protocol::Route, namespace)?),
        };
        Listener::start(name, move |ending| ear.listen(socket, ending))
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
}

impl Ear {
    fn listen(mut self, mut socket: FrameSocket, ending: &AtomicBool) {
        while !ending.load(Ordering::Relaxed) {
            match socket.receive(ATTENTION) {
                Ok(None) => {}
                Ok(Some((index, frame))) => {
                    let claim = claim(self.family, frame);
                    if let Some((address, mac)) = claim
                        && !self.take(index, address, mac)
                    {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "listening for other owners of addresses failed");
                    return;
                }
            }
        }
    }

    /// Tells of a claim if it is another's to a watched address; whether to go on.
    fn take(&mut self, index: u32, address: IpAddr, mac: MacAddress) -> bool {
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        // Nearly all claims are to addresses that nobody watches.
        if !watched.iter().any(|key| key.address == address) {
            return true;
        }
        let Some(interface) = self.interfaces.foreign(index, mac) else { return true };
        let key = AddressKey { interface, address };
        if !watched.contains(&key) {
            return true;
        }
        drop(watched);
        let another = AnotherOwner { interface: key.interface, address, mac };
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
