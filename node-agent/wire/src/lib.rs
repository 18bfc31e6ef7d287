//! Codecs for what the agent says to the kernel and to its neighbours. No I/O: no socket, no clock.
//!
//! | module | protocol |
//! |---|---|
//! | [`ipvs`] | virtual servers over generic netlink |
//! | [`ipset`] | IP sets over nfnetlink |
//! | [`conntrack`] | tracked connections over nfnetlink |
//! | [`extack`] | errors and their extended acknowledgement |
//! | [`message`] | netlink messages in a buffer: composing batches, taking datagrams apart |
//! | [`arp`], [`nd`] | announcing and probing addresses on the link, in frames of [`ethernet`] |
//!
//! Received bytes are never trusted: short or garbled ones are a [`DecodeError`], unknown attributes are
//! skipped, and nothing panics.
//!
//! # One send, many messages
//!
//! [`message::append`] puts complete messages one behind the other, whatever their family, so that a single
//! `sendmsg` carries them all. Each keeps its own sequence number; the kernel works them off in order,
//! answers each, and goes on after one that failed. Put at most [`message::MOST_PER_SEND`] into one.
//!
//! ```
//! use nodenet_wire::{
//!     IpProtocol,
//!     ipvs::{Destination, DestinationKey, ForwardingMethod, Request, Service, ServiceKey},
//!     message::{self, Flags},
//! };
//!
//! let family_id = 0x21; // as the generic netlink controller said
//! let service = ServiceKey::Address {
//!     protocol: IpProtocol::TCP,
//!     address: "10.96.0.1".parse()?,
//!     port: 443,
//! };
//! let server = DestinationKey { address: "10.244.1.2".parse()?, port: 6443 };
//! let requests = [
//!     Request::NewService(Service::new(service, "rr".parse()?)),
//!     Request::NewDestination(service, Destination::new(server, ForwardingMethod::MASQUERADE, 1)),
//! ];
//!
//! let mut batch = Vec::new();
//! for (sequence, request) in (1..).zip(requests) {
//!     message::append(&mut batch, request.flags(), sequence, &request.message(family_id));
//! }
//! // One send of `batch` to the kernel, then, for each datagram that comes back:
//! # let datagram = batch.as_slice();
//! for message in message::Messages::new(datagram) {
//!     let message = message?;
//!     match message.kind()? {
//!         message::Kind::Acknowledgement => {}
//!         message::Kind::Error(error) => println!("{}: {error}", message.header.sequence_number),
//!         message::Kind::Data(_payload) => {} // decode it: see below
//!         message::Kind::Done(_) | message::Kind::Noop | message::Kind::Overrun => {}
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Dumps, one message at a time
//!
//! Nothing collects a dump: [`ipvs::Reply::parse_payload`] and [`ipset::Reply::parse`] decode one message
//! each, names live inline in the decoded value, and the entries of a set are decoded as they are iterated
//! over. Look at [`message::Message::is_interrupted`] of every message: a dump that it is true for was taken
//! while the table changed and has to be repeated.
//!
//! ```
//! use nodenet_wire::{ipset::{Listing, Reply}, message::{Kind, Messages}};
//!
//! fn count_entries(datagram: &[u8]) -> Result<usize, nodenet_wire::DecodeError> {
//!     let mut count = 0;
//!     for message in Messages::new(datagram) {
//!         let message = message?;
//!         if let Kind::Data(payload) = message.kind()?
//!             && let Reply::List(listing) = Reply::parse(message.header.message_type, payload)?
//!         {
//!             for entry in listing.entries() {
//!                 let _entry = entry?;
//!                 count += 1;
//!             }
//!         }
//!     }
//!     Ok(count)
//! }
//! ```

pub mod arp;
mod attribute;
pub mod conntrack;
mod error;
pub mod ethernet;
pub mod extack;
mod ip;
pub mod ipset;
pub mod ipvs;
pub mod message;
mod name;
pub mod nd;

pub use self::{
    error::DecodeError,
    ip::{Family, IpProtocol},
    name::{Name, NameError},
};
