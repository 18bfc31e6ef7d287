//! What changes in the kernel, by whatever hand, as it happens.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use netlink_sys::Socket;
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::TimeVal,
};
use nodenet_wire::{
    DecodeError,
    message::{Kind, Message, Messages},
};

use super::{
    address, link,
    listener::{Hearing, Listener},
    namespace::Namespace,
    route,
    transport::{Connection, Protocol},
};
use crate::{
    kernel::{KernelError, KernelEvent},
    state::AddressKey,
};

/// `RTNLGRP_*` (`linux/rtnetlink.h`).
const GROUPS: [u32; 5] = [
    1,  // LINK
    5,  // IPV4_IFADDR
    7,  // IPV4_ROUTE
    9,  // IPV6_IFADDR
    11, // IPV6_ROUTE
];
/// `RTM_*`.
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;

/// Room for bursts: a link with thousands of addresses that goes down is a message for each.
const BUFFER: usize = 8 * 1024 * 1024;
const RECEIVE: usize = 64 * 1024;
/// How often a thread without events looks whether it shall end.
pub(super) const ATTENTION: TimeVal = TimeVal::new(0, 250_000);

/// Listens for changes of interfaces, addresses and routes. `heard` gets each, ours too, and ends the listening by
/// `false`. Of routes only ours, foreign ones in the table of local routes and default routes are told. `hearing` gets to know when the
/// listening fails, and when it goes on; what was missed in between is an [`KernelEvent::Overrun`].
///
/// # Errors
/// When the thread cannot be started. Nothing is missed after the return, unless `hearing` says so.
pub fn listen(
    namespace: &Namespace,
    mut heard: impl FnMut(KernelEvent) -> bool + Send + 'static,
    hearing: impl Fn(Hearing) + Send + 'static,
) -> Result<Listener, KernelError> {
    let namespace = namespace.clone();
    let open = move || {
        let socket = namespace.run(subscribe)?.map_err(|source| failed("open", source))?;
        let route = Connection::open(Protocol::Route, &namespace)?;
        let mut names = Names { route, names: BTreeMap::new() };
        // Read after the subscription: what comes in between is in both.
        names.learn();
        Ok((socket, names))
    };
    Listener::start("kernel-events", open, hearing, move |(socket, names), again, ending| {
        if again && !heard(KernelEvent::Overrun) {
            return Ok(());
        }
        follow(&socket, names, &mut heard, ending)
    })
}

/// Tells events until nobody hears them or the thread shall end.
fn follow(
    socket: &Socket,
    mut names: Names,
    heard: &mut dyn FnMut(KernelEvent) -> bool,
    ending: &AtomicBool,
) -> Result<(), KernelError> {
    let mut buffer = vec![0; RECEIVE];
    while !ending.load(Ordering::Relaxed) {
        let datagram = match socket.recv(&mut buffer.as_mut_slice(), libc::MSG_TRUNC) {
            Ok(length) => buffer.get(..length),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => continue,
                Some(libc::ENOBUFS) => None,
                _ => return Err(failed("read", error)),
            },
        };
        let go_on = match datagram {
            Some(datagram) => names.tell(datagram, heard),
            None => {
                drain(socket, &mut buffer);
                names.learn();
                heard(KernelEvent::Overrun)
            }
        };
        if !go_on {
            return Ok(());
        }
    }
    Ok(())
}

fn failed(operation: &'static str, source: std::io::Error) -> KernelError {
    KernelError::Io { operation, object: "netlink socket (events)".to_owned(), source }
}

/// Throws away what is queued. After it lost one event, the kernel adds none before the queue was empty, and does not
/// say so again: whoever looks at everything must do so after that.
fn drain(socket: &Socket, buffer: &mut [u8]) {
    loop {
        match socket.recv(&mut &mut *buffer, libc::MSG_DONTWAIT) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => {}
            Err(_) => return,
        }
    }
}

fn subscribe() -> std::io::Result<Socket> {
    let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    setsockopt(&socket, sockopt::ReceiveTimeout, &ATTENTION)?;
    socket.bind_auto()?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

/// Interface names by number: events about addresses carry the number alone.
struct Names {
    route: Connection,
    names: BTreeMap<u32, String>,
}

impl Names {
    fn learn(&mut self) {
        match link::list(&mut self.route) {
            Ok(links) => self.names = links.into_iter().map(|(index, it)| (index, it.name)).collect(),
            Err(error) => tracing::warn!(%error, "reading the interfaces failed"),
        }
    }

    /// Tells the events of a datagram; whether to go on.
    fn tell(&mut self, datagram: &[u8], heard: &mut dyn FnMut(KernelEvent) -> bool) -> bool {
        for message in Messages::new(datagram) {
            // What cannot be read may have been of interest: look at everything.
            let event = match message.and_then(|message| self.event(&message)) {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(error) => {
                    tracing::warn!(%error, "a kernel event could not be read");
                    KernelEvent::Overrun
                }
            };
            if !heard(event) {
                return false;
            }
        }
        true
    }

    fn event(&mut self, message: &Message<'_>) -> Result<Option<KernelEvent>, DecodeError> {
        let payload = match message.kind()? {
            Kind::Data(payload) => payload,
            Kind::Overrun => return Ok(Some(KernelEvent::Overrun)),
            _ => return Ok(None),
        };
        Ok(match message.header.message_type {
            NEW_LINK | DEL_LINK => self.link(message.header.message_type, payload)?,
            NEW_ADDRESS | DEL_ADDRESS => address::parse(payload)?.map(|(index, address, _)| {
                if !self.names.contains_key(&index) {
                    self.learn();
                }
                match self.names.get(&index) {
                    Some(name) => KernelEvent::Address(AddressKey { interface: name.clone(), address }),
                    None => KernelEvent::Overrun,
                }
            }),
            NEW_ROUTE | DEL_ROUTE => match route::parse(payload)? {
                Some(route) if route.ours || (route.table_local && !route.kernels) => {
                    Some(KernelEvent::Route)
                }
                Some(route) if route.default => Some(KernelEvent::Gateway),
                _ => None,
            },
            _ => None,
        })
    }

    fn link(&mut self, kind: u16, payload: &[u8]) -> Result<Option<KernelEvent>, DecodeError> {
        // Bridges tell of their ports under a family of their own; the port itself is told of too.
        let family = payload.first().copied().unwrap_or_default();
        if i32::from(family) != libc::AF_UNSPEC {
            return Ok(None);
        }
        let interface = link::Interface::parse(payload)?;
        if kind == DEL_LINK {
            self.names.remove(&interface.index);
        } else if let Some(former) = self.names.insert(interface.index, interface.name.clone())
            && former != interface.name
        {
            // A new name is the end of one interface and the beginning of another: look at everything.
            return Ok(Some(KernelEvent::Overrun));
        }
        Ok(Some(KernelEvent::Link(interface.name)))
    }
}
