//! Virtual services (`IPVS_SVC_ATTR_*`).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::Statistics;
use crate::{
    DecodeError, Family, IpProtocol,
    attribute::{Writer, attributes, inet_address, required},
    name::Name,
};

const AF: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDR: u16 = 3;
const PORT: u16 = 4;
const FWMARK: u16 = 5;
const SCHED_NAME: u16 = 6;
const FLAGS: u16 = 7;
const TIMEOUT: u16 = 8;
const NETMASK: u16 = 9;
const STATS: u16 = 10;
const PE_NAME: u16 = 11;
const STATS64: u16 = 12;

const OBJECT: &str = "IPVS service";

/// Name of a scheduler: `rr`, `wrr`, `lc`, `mh` and whatever else the kernel has (`IP_VS_SCHEDNAME_MAXLEN`).
/// The kernel loads the module `ip_vs_<name>` on demand; ENOENT when there is none.
pub type SchedulerName = Name<16>;

/// Name of a persistence engine, in practice `sip` (`IP_VS_PENAME_MAXLEN`).
pub type EngineName = Name<16>;

/// What a virtual service answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// Packets to an address and port. Port 0 is any port and asks for persistence.
    Address {
        /// Transport protocol: TCP, UDP or SCTP.
        protocol: IpProtocol,
        /// Virtual address; its kind is the service's address family.
        address: IpAddr,
        /// Virtual port.
        port: u16,
    },
    /// Packets with a firewall mark, all 32 bits compared; 0 is no mark.
    FirewallMark {
        /// Address family: the same mark may have a service in each.
        family: Family,
        /// The mark.
        mark: u32,
    },
}

impl ServiceKey {
    /// The service's address family.
    pub const fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::FirewallMark { family, .. } => *family,
        }
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        writer.attribute(AF, &u16::from(self.family().number()).to_ne_bytes());
        match self {
            Self::Address { protocol, address, port } => {
                writer.attribute(PROTOCOL, &u16::from(protocol.0).to_ne_bytes());
                writer.attribute(ADDR, &inet_address(*address));
                writer.attribute(PORT, &port.to_be_bytes());
            }
            Self::FirewallMark { mark, .. } => writer.attribute(FWMARK, &mark.to_ne_bytes()),
        }
    }
}

impl fmt::Display for ServiceKey {
    /// As `ipvsadm` lists it: `TCP 10.96.0.1:443`, `FWM 17 IPv6`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, address, port } => {
                write!(f, "{protocol} {}", SocketAddr::new(*address, *port))
            }
            Self::FirewallMark { family, mark } => write!(f, "FWM {mark} {family}"),
        }
    }
}

/// `struct ip_vs_flags`: the bits of `mask` are set to those of `bits`, the others stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceFlags {
    /// The flags.
    pub bits: u32,
    /// Which of them are meant. The kernel's own answers have all bits set.
    pub mask: u32,
}

impl ServiceFlags {
    /// Connections of one client go to one server for the service's timeout.
    pub const PERSISTENT: u32 = 0x01;
    /// In the kernel's table; set in every answer of the kernel.
    pub const HASHED: u32 = 0x02;
    /// Each datagram is scheduled by itself (UDP).
    pub const ONE_PACKET: u32 = 0x04;
    /// The schedulers' first own flag: `sh` and `mh` fall back to another server when theirs is gone.
    pub const SCHEDULER_1: u32 = 0x08;
    /// The schedulers' second own flag: `sh` and `mh` hash the source port too.
    pub const SCHEDULER_2: u32 = 0x10;
    /// The schedulers' third own flag.
    pub const SCHEDULER_3: u32 = 0x20;
    /// What a user configures; the rest is the kernel's.
    pub const CONFIGURABLE: u32 =
        Self::PERSISTENT | Self::ONE_PACKET | Self::SCHEDULER_1 | Self::SCHEDULER_2 | Self::SCHEDULER_3;

    /// Exactly these flags, whatever was set before.
    pub const fn exactly(bits: u32) -> Self {
        Self { bits, mask: u32::MAX }
    }

    /// The flags that a user configures: what to compare desired and observed by.
    pub const fn configured(self) -> u32 {
        self.bits & self.mask & Self::CONFIGURABLE
    }
}

/// Which clients count as one for persistence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Netmask {
    /// A mask, as IPv4 services have it.
    V4(Ipv4Addr),
    /// A prefix length 1..=128, as IPv6 services have it.
    V6(u32),
}

impl Netmask {
    /// Every client for itself, as the kernel wants it where there is no persistence.
    pub const fn host(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Ipv4Addr::BROADCAST),
            Family::V6 => Self::V6(128),
        }
    }
}

/// A virtual service: the virtual server with its scheduling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// What it answers to.
    pub key: ServiceKey,
    /// How real servers are chosen; `none` leaves the service without. The kernel takes no request without
    /// a name (EINVAL), and old kernels say none of a service that has no scheduler.
    pub scheduler: Option<SchedulerName>,
    /// Persistence, one-packet scheduling, scheduler flags.
    pub flags: ServiceFlags,
    /// Persistence timeout in seconds; 0 without persistence.
    pub timeout: u32,
    /// Persistence granularity.
    pub netmask: Netmask,
    /// Persistence engine.
    pub engine: Option<EngineName>,
    /// Counters, only from the kernel.
    pub statistics: Option<Statistics>,
}

impl Service {
    /// A service without persistence or flags.
    pub const fn new(key: ServiceKey, scheduler: SchedulerName) -> Self {
        Self {
            key,
            scheduler: Some(scheduler),
            flags: ServiceFlags::exactly(0),
            timeout: 0,
            netmask: Netmask::host(key.family()),
            engine: None,
            statistics: None,
        }
    }

    /// The same service with connections of one client kept together for `seconds`.
    #[must_use]
    pub const fn persistent(mut self, seconds: u32) -> Self {
        self.flags.bits |= ServiceFlags::PERSISTENT;
        self.timeout = seconds;
        self
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        self.key.write(writer);
        if let Some(scheduler) = &self.scheduler {
            writer.attribute(SCHED_NAME, scheduler.with_zero());
        }
        if let Some(engine) = &self.engine {
            writer.attribute(PE_NAME, engine.with_zero());
        }
        let mut flags = [0; 8];
        let (bits, mask) = flags.split_at_mut(4);
        bits.copy_from_slice(&self.flags.bits.to_ne_bytes());
        mask.copy_from_slice(&self.flags.mask.to_ne_bytes());
        writer.attribute(FLAGS, &flags);
        writer.attribute(TIMEOUT, &self.timeout.to_ne_bytes());
        match self.netmask {
            Netmask::V4(mask) => writer.attribute(NETMASK, &mask.octets()),
            Netmask::V6(prefix) => writer.attribute(NETMASK, &prefix.to_ne_bytes()),
        }
        if let Some(statistics) = &self.statistics {
            writer.nested(STATS64, |writer| statistics.write(writer));
        }
    }

    /// A whole service: of the kernel's reply, or of a request to add or edit it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        Fields::parse(bytes)?.service()
    }
}

/// Reads the key alone: requests to delete or to list carry no more.
pub(super) fn parse_key(bytes: &[u8]) -> Result<ServiceKey, DecodeError> {
    Fields::parse(bytes)?.key()
}

/// The attributes as found. The family may come last, so nothing is interpreted before all were read.
#[derive(Default)]
struct Fields<'a> {
    family: Option<u16>,
    protocol: Option<u16>,
    address: Option<crate::attribute::Attribute<'a>>,
    port: Option<u16>,
    mark: Option<u32>,
    scheduler: Option<SchedulerName>,
    engine: Option<EngineName>,
    flags: Option<ServiceFlags>,
    timeout: Option<u32>,
    netmask: Option<[u8; 4]>,
    statistics: Option<Statistics>,
    wide_statistics: Option<Statistics>,
}

impl<'a> Fields<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Self::default();
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            match attribute.kind {
                AF => fields.family = Some(attribute.u16()?),
                PROTOCOL => fields.protocol = Some(attribute.u16()?),
                ADDR => fields.address = Some(attribute),
                PORT => fields.port = Some(attribute.u16_be()?),
                FWMARK => fields.mark = Some(attribute.u32()?),
                SCHED_NAME => fields.scheduler = Some(attribute.name()?),
                PE_NAME => fields.engine = Some(attribute.name()?),
                FLAGS => {
                    let [b0, b1, b2, b3, m0, m1, m2, m3] = attribute.at_least()?;
                    fields.flags = Some(ServiceFlags {
                        bits: u32::from_ne_bytes([b0, b1, b2, b3]),
                        mask: u32::from_ne_bytes([m0, m1, m2, m3]),
                    });
                }
                TIMEOUT => fields.timeout = Some(attribute.u32()?),
                NETMASK => fields.netmask = Some(attribute.at_least()?),
                STATS => fields.statistics = Some(Statistics::parse(attribute.value)?),
                STATS64 => fields.wide_statistics = Some(Statistics::parse(attribute.value)?),
                _ => {}
            }
        }
        Ok(fields)
    }

    fn key(&self) -> Result<ServiceKey, DecodeError> {
        let family = Family::from_number(OBJECT, required(OBJECT, self.family, "IPVS_SVC_ATTR_AF")?)?;
        // As the kernel does: where there is a mark, the rest is not looked at.
        if let Some(mark) = self.mark {
            return Ok(ServiceKey::FirewallMark { family, mark });
        }
        let protocol = required(OBJECT, self.protocol, "IPVS_SVC_ATTR_PROTOCOL")?;
        let protocol = u8::try_from(protocol).map_err(|_| DecodeError::Value {
            object: OBJECT,
            field: "protocol",
            value: u64::from(protocol),
        })?;
        Ok(ServiceKey::Address {
            protocol: IpProtocol(protocol),
            address: required(OBJECT, self.address, "IPVS_SVC_ATTR_ADDR")?.inet_address(family)?,
            port: required(OBJECT, self.port, "IPVS_SVC_ATTR_PORT")?,
        })
    }

    fn service(self) -> Result<Service, DecodeError> {
        let key = self.key()?;
        let netmask = required(OBJECT, self.netmask, "IPVS_SVC_ATTR_NETMASK")?;
        Ok(Service {
            key,
            scheduler: self.scheduler,
            flags: required(OBJECT, self.flags, "IPVS_SVC_ATTR_FLAGS")?,
            timeout: required(OBJECT, self.timeout, "IPVS_SVC_ATTR_TIMEOUT")?,
            netmask: match key.family() {
                Family::V4 => Netmask::V4(Ipv4Addr::from(netmask)),
                Family::V6 => Netmask::V6(u32::from_ne_bytes(netmask)),
            },
            engine: self.engine,
            statistics: self.wide_statistics.or(self.statistics),
        })
    }
}
