//! What the address lane says and hears on the links: announcements, probes, other owners of its addresses.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::kernel::KernelError;
use crate::kernel::netlink::Namespace;
use crate::kernel::netlink::announce::Announcer;
use crate::kernel::netlink::owner::{AnotherOwner, OwnerWatch};
use crate::state::AddressKey;

/// Answer to a probe: who else answers for the address, by link-layer address.
pub type ProbeAnswer = Result<Option<String>, KernelError>;

/// The links.
pub trait Wire: Send {
    /// Says once that the address is here.
    fn announce(&mut self, key: &AddressKey) -> Result<(), KernelError>;
    /// From now on hears about other owners of exactly these addresses.
    fn watch(&mut self, keys: BTreeSet<AddressKey>);
    /// Asks whether another host answers for the address. Does not block; the answer comes to `answer`, from another
    /// thread.
    fn probe(&mut self, key: &AddressKey, wait: Duration, answer: Box<dyn FnOnce(ProbeAnswer) + Send>);
}

/// The links of a network namespace.
pub struct Links {
    namespace: Namespace,
    announcer: Option<Announcer>,
    owners: Option<OwnerWatch>,
}

impl Links {
    /// Opens the sockets. `heard` is called for each frame of another owner.
    pub fn open(
        namespace: Namespace,
        heard: impl FnMut(AnotherOwner) -> bool + Send + 'static,
    ) -> (Self, Option<KernelError>) {
        match crate::kernel::netlink::owner::watch(&namespace, heard) {
            Ok(owners) => (Self { namespace, announcer: None, owners: Some(owners) }, None),
            Err(error) => (Self { namespace, announcer: None, owners: None }, Some(error)),
        }
    }
}

impl Wire for Links {
    fn announce(&mut self, key: &AddressKey) -> Result<(), KernelError> {
        let announcer = match &mut self.announcer {
            Some(announcer) => announcer,
            none => none.insert(Announcer::open(&self.namespace)?),
        };
        announcer.announce(key)
    }

    fn watch(&mut self, keys: BTreeSet<AddressKey>) {
        if let Some(owners) = &self.owners {
            owners.set(keys);
        }
    }

    fn probe(&mut self, key: &AddressKey, wait: Duration, answer: Box<dyn FnOnce(ProbeAnswer) + Send>) {
        let (namespace, key) = (self.namespace.clone(), key.clone());
        let probing = std::thread::Builder::new().name("probe".to_owned()).stack_size(128 * 1024);
        let asked = probing.spawn(move || {
            let found = Announcer::open(&namespace)
                .and_then(|mut announcer| announcer.probe(&key, wait))
                .map(|mac| mac.map(|mac| mac.to_string()));
            answer(found);
        });
        if let Err(error) = asked {
            // The closure went with the thread that never was: the lane asks again when no answer comes.
            tracing::warn!("probe {error}");
        }
    }
}

/// No links at all, for a kernel that is none.
pub struct NoLinks;

impl Wire for NoLinks {
    fn announce(&mut self, _: &AddressKey) -> Result<(), KernelError> {
        Ok(())
    }

    fn watch(&mut self, _: BTreeSet<AddressKey>) {}

    fn probe(&mut self, _: &AddressKey, _: Duration, answer: Box<dyn FnOnce(ProbeAnswer) + Send>) {
        answer(Ok(None));
    }
}
