//! IP Virtual Server over generic netlink (family `IPVS`, version 1; `include/uapi/linux/ip_vs.h`).
//!
//! A [`Request`] goes to the kernel, a [`Reply`] comes back. Both encode and decode. The family's number is
//! assigned at run time: ask the generic netlink controller for [`FAMILY_NAME`] (ENOENT when the module is
//! not loaded) and give it to [`Request::message`].
//!
//! What the kernel does not say in its header:
//! - Adding what is there fails with EEXIST, editing or deleting what is not with ESRCH (services) or ENOENT
//!   (destinations).
//! - A service needs all of scheduler, flags, timeout and netmask when it is added or edited, or the answer
//!   is EINVAL; [`Service::new`] fills them. A destination needs forwarding method, weight and both
//!   thresholds.
//! - A destination's address must be unicast or local, which takes a routing table: a network namespace whose
//!   loopback is down answers EINVAL to any.
//! - [`Request::GetServices`] and [`Request::GetDestinations`] are dumps. The replies to the latter do not
//!   name the service: the asker knows it by the sequence number. They resume by position and never say that
//!   the table changed meanwhile (`NLM_F_DUMP_INTR`): with another writer at work, entries may be missed or
//!   come twice.
//! - Setting a destination's weight to 0 keeps its connections and gives it no new ones.

mod destination;
mod reply;
mod request;
mod service;
mod statistics;

pub use self::{
    destination::{
        ConnectionCounts, Destination, DestinationKey, ForwardingMethod, Tunnel, TunnelFlags, TunnelKind,
    },
    reply::{Info, Reply},
    request::{Request, Timeouts},
    service::{EngineName, Netmask, SchedulerName, Service, ServiceFlags, ServiceKey},
    statistics::Statistics,
};

/// `IPVS_GENL_NAME`.
pub const FAMILY_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
pub const VERSION: u8 = 1;

/// `IPVS_CMD_*`.
mod command {
    pub(super) const NEW_SERVICE: u8 = 1;
    pub(super) const SET_SERVICE: u8 = 2;
    pub(super) const DEL_SERVICE: u8 = 3;
    pub(super) const GET_SERVICE: u8 = 4;
    pub(super) const NEW_DEST: u8 = 5;
    pub(super) const SET_DEST: u8 = 6;
    pub(super) const DEL_DEST: u8 = 7;
    pub(super) const GET_DEST: u8 = 8;
    pub(super) const SET_CONFIG: u8 = 12;
    pub(super) const GET_CONFIG: u8 = 13;
    pub(super) const SET_INFO: u8 = 14;
    pub(super) const GET_INFO: u8 = 15;
    pub(super) const FLUSH: u8 = 17;
}

/// `IPVS_CMD_ATTR_*`.
mod command_attribute {
    pub(super) const SERVICE: u16 = 1;
    pub(super) const DEST: u16 = 2;
    pub(super) const TIMEOUT_TCP: u16 = 4;
    pub(super) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(super) const TIMEOUT_UDP: u16 = 6;
}
