//! What the address lane says and hears on the links: announcements, questions, other owners of its addresses.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::kernel::KernelError;
use crate::kernel::netlink::Namespace;
use crate::kernel::netlink::announce::Announcer;
use crate::kernel::netlink::listener::Hearing;
use crate::kernel::netlink::owner::{self, AnotherOwner, OwnerWatch};
use crate::kernel::netlink::probe::{self, Question};
use crate::state::AddressKey;

/// Answer to a question: who else answers for the address, by link-layer address.
pub type ProbeAnswer = Result<Option<String>, KernelError>;
/// Where answers go.
pub type Answers = Arc<dyn Fn(AddressKey, ProbeAnswer) + Send + Sync>;

/// The links.
pub trait Wire: Send {
    /// Says once that the address is here.
    fn announce(&mut self, key: &AddressKey) -> Result<(), KernelError>;
    /// From now on hears about other owners of exactly these addresses.
    fn watch(&mut self, keys: BTreeSet<AddressKey>);
    /// Asks whether other hosts answer for these addresses. Does not block; the answers come from another thread.
    fn probe(&mut self, keys: Vec<AddressKey>, question: Question, wait: Duration, answers: Answers);
}

/// The links of a network namespace.
pub struct Links {
    namespace: Namespace,
    announcer: Option<Announcer>,
    owners: Option<OwnerWatch>,
}

impl Links {
    /// Opens the sockets. `heard` is called for each frame of another owner, `hearing` when a socket fails or works again.
    pub fn open(
        namespace: Namespace,
        heard: impl FnMut(AnotherOwner) -> bool + Send + 'static,
        hearing: impl Fn(Hearing) + Clone + Send + 'static,
    ) -> (Self, Option<KernelError>) {
        match owner::watch(&namespace, heard, hearing) {
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

    fn probe(&mut self, keys: Vec<AddressKey>, question: Question, wait: Duration, answers: Answers) {
        let asking = {
            let (namespace, keys, answers) = (self.namespace.clone(), keys.clone(), answers.clone());
            move || {
                for (key, answer) in probe::ask(&namespace, &keys, question, wait) {
                    answers(key, answer.map(|mac| mac.map(|mac| mac.to_string())));
                }
            }
        };
        let thread = std::thread::Builder::new().name("probe".to_owned()).stack_size(256 * 1024);
        if let Err(source) = thread.spawn(asking) {
            for key in keys {
                let source = std::io::Error::new(source.kind(), source.to_string());
                let object = format!("address {} on interface {}", key.address, key.interface);
                answers(key, Err(KernelError::Io { operation: "probe", object, source }));
            }
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

    fn probe(&mut self, keys: Vec<AddressKey>, _: Question, _: Duration, answers: Answers) {
        for key in keys {
            answers(key, Ok(None));
        }
    }
}
