//! The sockets of one server, which come and go while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use axum::Router;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use super::Listen;
use super::limited::{Limited, Places};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// All addresses of a host: one socket for each family.
pub(super) fn everywhere(port: u16) -> BTreeSet<SocketAddr> {
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    all.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

/// A socket that listens, for its own family only.
///
/// # Errors
/// The kernel's: in use, no such address, no such family.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier agent that are being closed still have the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Dropping it ends the listening; what was asked is still answered.
struct Open {
    _stop: oneshot::Sender<()>,
}

/// The sockets of one server.
pub(super) struct Sockets {
    router: Router,
    places: Places,
    open: BTreeMap<SocketAddr, Open>,
}

impl Sockets {
    /// None yet. All of them together answer no more than there are `places`.
    pub fn new(router: Router, places: Places) -> Self {
        Self { router, places, open: BTreeMap::new() }
    }

    /// Listens on these addresses and on no others. Returns those that cannot be had now.
    pub fn set(&mut self, wanted: &BTreeSet<SocketAddr>, listen: &Listen) -> Vec<(SocketAddr, Error)> {
        self.open.retain(|address, _| wanted.contains(address));
        let mut refused = Vec::new();
        for address in wanted {
            if self.open.contains_key(address) {
                continue;
            }
            match listen(*address).and_then(tokio::net::TcpListener::from_std) {
                Ok(listener) => _ = self.open.insert(*address, self.serve(listener)),
                Err(error) if without_family(address, &error) => {}
                Err(error) => refused.push((*address, error)),
            }
        }
        refused
    }

    /// Whether any is open.
    pub fn any(&self) -> bool {
        !self.open.is_empty()
    }

    fn serve(&self, listener: tokio::net::TcpListener) -> Open {
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = Limited::new(listener, self.places.clone());
        let serving = axum::serve(listener, self.router.clone()).with_graceful_shutdown(async move {
            // It ends when the other half goes.
            let _ = stopped.await;
        });
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!("load balancers are not answered any more: {error}");
            }
        });
        Open { _stop: stop }
    }
}

/// A host without IPv6 has nobody who would ask by it.
fn without_family(address: &SocketAddr, error: &Error) -> bool {
    let no_family = error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    address.is_ipv6()
        && (no_family || (address.ip().is_unspecified() && error.kind() == ErrorKind::AddrNotAvailable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_of_another_is_refused_until_it_is_free_and_given_back_at_the_end() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let listen: Listen = std::sync::Arc::new(super::listen);
        let mut sockets = Sockets::new(Router::new(), Places::new());
        let wanted = BTreeSet::from([address]);
        let refused = sockets.set(&wanted, &listen);
        assert_eq!(refused[0].1.kind(), ErrorKind::AddrInUse);
        drop(other);
        assert!(sockets.set(&wanted, &listen).is_empty() && sockets.any());
        assert!(sockets.set(&wanted, &listen).is_empty(), "it is ours already");
        sockets.set(&BTreeSet::new(), &listen);
        // The socket closes when its task has run.
        while TcpListener::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    }
}
