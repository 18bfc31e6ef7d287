//! Asking a segment whether somebody else has an address.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use nodenet_wire::{
    arp,
    ethernet::{EtherType, MacAddress},
    nd,
};

use super::{
    address,
    announce::{bytes, failed, mac_of, open, statement},
    link::{self, Interface},
    namespace::Namespace,
    owner::Says,
    transport::{Connection, Protocol},
};
use crate::{
    kernel::KernelError,
    state::{Address, AddressKey},
};

/// How often a question is put while answers are waited for: a frame may be lost.
const REPEATS: u32 = 3;

/// How a question is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// By one who will take the address when nobody answers: an ARP probe (RFC 5227, 2.1.1) or duplicate address
    /// detection (RFC 4862, 5.4.2). It claims nothing, and a holder that doubts its own right hears it.
    WillTake,
    /// By one who only wants to know: an ordinary request, from an address of the node. Where the interface has none,
    /// it is put like the other.
    WhoHas,
}

/// What became of a question: the link-layer address of who else has it, if anybody does.
pub type Answer = Result<Option<MacAddress>, KernelError>;

/// Asks who else answers for each of these addresses, on the segment of its interface, within some time. All are asked
/// at once.
pub fn ask(
    namespace: &Namespace,
    keys: &[AddressKey],
    question: Question,
    wait: Duration,
) -> Vec<(AddressKey, Answer)> {
    let seen = Seen::read(namespace).unwrap_or_else(|error| {
        // Each key says below that its interface is not there.
        tracing::warn!("{error}");
        Seen::default()
    });
    let mut answers = Vec::new();
    let mut of_family = [Vec::new(), Vec::new()];
    for key in keys {
        match seen.inquiry(key, question, keys) {
            Ok(inquiry) => of_family[usize::from(key.address.is_ipv6())].push(inquiry),
            Err(error) => answers.push((key.clone(), Err(error))),
        }
    }
    let own = &seen.hardware_addresses();
    let [v4, v6] = of_family;
    // Each family has a socket of its own, and both shall be answered in the same time.
    std::thread::scope(|scope| {
        let converse = |ether_type, questions: Vec<Inquiry>| {
            if questions.is_empty() {
                return Vec::new();
            }
            converse(namespace, ether_type, questions, own, wait)
        };
        let other = scope.spawn(move || converse(EtherType::IPV6, v6));
        answers.extend(converse(EtherType::ARP, v4));
        match other.join() {
            Ok(more) => answers.extend(more),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    answers
}

/// A question about one address.
struct Inquiry {
    key: AddressKey,
    index: u32,
    frame: Vec<u8>,
}

/// The node's own interfaces and addresses.
#[derive(Default)]
struct Seen {
    interfaces: BTreeMap<u32, Interface>,
    addresses: BTreeMap<AddressKey, Address>,
}

impl Seen {
    fn read(namespace: &Namespace) -> Result<Self, KernelError> {
        let mut route = Connection::open(Protocol::Route, namespace)?;
        let interfaces =
            link::list(&mut route).map_err(|error| error.about("read", "interfaces".to_owned()))?;
        let addresses = address::list(&mut route, &interfaces)
            .map_err(|error| error.about("read", "addresses".to_owned()))?;
        Ok(Self { interfaces, addresses })
    }

    fn hardware_addresses(&self) -> Vec<MacAddress> {
        let all = self.interfaces.values();
        all.filter_map(|it| Some(MacAddress(it.hardware_address.as_slice().try_into().ok()?))).collect()
    }

    fn inquiry(
        &self,
        key: &AddressKey,
        question: Question,
        asked: &[AddressKey],
    ) -> Result<Inquiry, KernelError> {
        let interface = self.interfaces.values().find(|it| it.name == key.interface);
        let mac = mac_of("probe", key, interface)?;
        let sender = match question {
            Question::WillTake => None,
            Question::WhoHas => self.sender(key, asked),
        };
        let frame = match (key.address, sender) {
            (IpAddr::V4(target), Some(IpAddr::V4(sender))) => {
                bytes(&arp::Packet::request(mac, sender, target).broadcast())
            }
            (IpAddr::V4(target), _) => bytes(&arp::Packet::probe(mac, target).broadcast()),
            (IpAddr::V6(target), sender) => {
                let packet = match sender {
                    Some(IpAddr::V6(sender)) => nd::Packet::request(mac, sender, target),
                    _ => nd::Packet::probe(target, None),
                };
                // Both go to the group of the target's solicitations.
                packet.multicast(mac).map(|frame| bytes(&frame)).unwrap_or_default()
            }
        };
        let index = interface.map(|it| it.index).unwrap_or_default();
        Ok(Inquiry { key: key.clone(), index, frame })
    }

    /// An address of the node itself from which to ask: of the interface and the family, of the target's subnet before
    /// others.
    fn sender(&self, target: &AddressKey, asked: &[AddressKey]) -> Option<IpAddr> {
        let holds = |key: &AddressKey, address: &Address| {
            ipnet::IpNet::new(key.address, address.prefix_length)
                .is_ok_and(|net| net.contains(&target.address))
        };
        self.addresses
            .iter()
            .filter(|(key, address)| {
                key.interface == target.interface
                    && key.address.is_ipv4() == target.address.is_ipv4()
                    && !address.ours
                    && !address.unusable
                    && !asked.contains(key)
            })
            .max_by_key(|(key, address)| holds(key, address))
            .map(|(key, _)| key.address)
    }
}

/// Puts questions of one family and collects the answers.
fn converse(
    namespace: &Namespace,
    ether_type: EtherType,
    mut questions: Vec<Inquiry>,
    own: &[MacAddress],
    wait: Duration,
) -> Vec<(AddressKey, Answer)> {
    let mut answers = Vec::new();
    let mut whole = || -> Result<(), KernelError> {
        let mut socket = open(namespace, ether_type)?;
        let begun = Instant::now();
        for turn in 1..=REPEATS {
            questions.retain(|it| match socket.send(it.index, &it.frame) {
                Ok(()) => true,
                Err(source) => {
                    answers.push((it.key.clone(), Err(failed("probe", &it.key, source))));
                    false
                }
            });
            let until = begun + wait * turn / REPEATS;
            while let Some(family) = questions.first().map(|it| it.key.address) {
                let left = until.saturating_duration_since(Instant::now());
                let frame = socket.receive(left).map_err(|source| KernelError::Io {
                    operation: "read",
                    object: "packet socket (probes)".to_owned(),
                    source,
                })?;
                let Some((index, frame)) = frame else { break };
                let Some((Says::Has, address, mac)) = statement(family, frame) else { continue };
                let asked = |it: &Inquiry| it.index == index && it.key.address == address;
                if !own.contains(&mac)
                    && let Some(place) = questions.iter().position(asked)
                {
                    answers.push((questions.swap_remove(place).key, Ok(Some(mac))));
                }
            }
        }
        Ok(())
    };
    let problem = whole().err().map(|error| error.to_string());
    answers.extend(questions.into_iter().map(|it| {
        let answer = match &problem {
            None => Ok(None),
            Some(words) => Err(failed("probe", &it.key, io::Error::other(words.clone()))),
        };
        (it.key, answer)
    }));
    answers
}
