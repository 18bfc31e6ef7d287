//! Destinations, the real servers of a service (`IPVS_DEST_ATTR_*`).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::Statistics;
use crate::{
    DecodeError, Family,
    attribute::{Attribute, Writer, attributes, inet_address, required},
};

const ADDR: u16 = 1;
const PORT: u16 = 2;
const FWD_METHOD: u16 = 3;
const WEIGHT: u16 = 4;
const U_THRESH: u16 = 5;
const L_THRESH: u16 = 6;
const ACTIVE_CONNS: u16 = 7;
const INACT_CONNS: u16 = 8;
const PERSIST_CONNS: u16 = 9;
const STATS: u16 = 10;
const ADDR_FAMILY: u16 = 11;
const STATS64: u16 = 12;
const TUN_TYPE: u16 = 13;
const TUN_PORT: u16 = 14;
const TUN_FLAGS: u16 = 15;

const OBJECT: &str = "IPVS destination";

/// Which real server of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// The server's address. Its family may differ from the service's only where packets are tunnelled.
    pub address: IpAddr,
    /// The server's port; equal to the service's unless it masquerades, 0 for a service on any port.
    pub port: u16,
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SocketAddr::new(self.address, self.port), f)
    }
}

/// How packets reach a real server (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardingMethod(u8);

impl ForwardingMethod {
    /// Address translation (`ipvsadm -m`).
    pub const MASQUERADE: Self = Self(0);
    /// The server is this node; the kernel's own choice at run time.
    pub const LOCAL_NODE: Self = Self(1);
    /// Encapsulation (`ipvsadm -i`).
    pub const TUNNEL: Self = Self(2);
    /// Same packet, the server's link-layer address (`ipvsadm -g`).
    pub const DIRECT_ROUTE: Self = Self(3);
    /// Past the cache; the kernel's own.
    pub const BYPASS: Self = Self(4);

    const MASK: u32 = 7;

    /// The method's number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MASQUERADE => f.pad("Masquerade"),
            Self::LOCAL_NODE => f.pad("Local"),
            Self::TUNNEL => f.pad("Tunnel"),
            Self::DIRECT_ROUTE => f.pad("DirectRoute"),
            Self::BYPASS => f.pad("Bypass"),
            Self(number) => fmt::Display::fmt(&number, f),
        }
    }
}

/// Encapsulation of [`ForwardingMethod::TUNNEL`] (`IP_VS_CONN_F_TUNNEL_TYPE_*`, Linux 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TunnelKind(pub u8);

impl TunnelKind {
    /// IP in IP.
    pub const IPIP: Self = Self(0);
    /// Generic UDP encapsulation; needs a port.
    pub const GUE: Self = Self(1);
    /// Generic routing encapsulation.
    pub const GRE: Self = Self(2);
}

/// Checksums of the encapsulation (`IP_VS_TUNNEL_ENCAP_FLAG_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TunnelFlags(pub u16);

impl TunnelFlags {
    /// No checksum.
    pub const NO_CHECKSUM: Self = Self(0);
    /// Checksum.
    pub const CHECKSUM: Self = Self(1);
    /// Remote checksum offload.
    pub const REMOTE_CHECKSUM: Self = Self(2);
}

/// How packets are encapsulated for a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tunnel {
    /// Encapsulation.
    pub kind: TunnelKind,
    /// UDP port of [`TunnelKind::GUE`], otherwise 0.
    pub port: u16,
    /// Checksum flags.
    pub flags: TunnelFlags,
}

/// Connections of a destination, as the kernel counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionCounts {
    /// Established.
    pub active: u32,
    /// In any other state.
    pub inactive: u32,
    /// Persistence templates: clients bound to this server.
    pub persistent: u32,
}

impl ConnectionCounts {
    /// Whether nobody uses the destination any more.
    pub const fn is_idle(&self) -> bool {
        self.active == 0 && self.inactive == 0 && self.persistent == 0
    }
}

/// A real server of a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Which.
    pub key: DestinationKey,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
    /// Connection flags besides the forwarding method (`IP_VS_CONN_F_*`). Up to now the kernel drops them
    /// in both directions, so they are 0.
    pub connection_flags: u32,
    /// Share of new connections; 0 is none.
    pub weight: u32,
    /// Connections above which it gets no new ones; 0 is no limit.
    pub upper_threshold: u32,
    /// Connections below which an overloaded server gets new ones again; 0 lets the kernel choose.
    pub lower_threshold: u32,
    /// Encapsulation. Kernels before 5.2 do not know it and say nothing of it.
    pub tunnel: Option<Tunnel>,
    /// Connections, only from the kernel.
    pub connections: Option<ConnectionCounts>,
    /// Traffic, only from the kernel.
    pub statistics: Option<Statistics>,
}

impl Destination {
    /// A destination without thresholds or encapsulation.
    pub const fn new(key: DestinationKey, forwarding: ForwardingMethod, weight: u32) -> Self {
        Self {
            key,
            forwarding,
            connection_flags: 0,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: None,
            connections: None,
            statistics: None,
        }
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        write_key(&self.key, writer);
        let flags = u32::from(self.forwarding.0) | (self.connection_flags & !ForwardingMethod::MASK);
        writer.attribute(FWD_METHOD, &flags.to_ne_bytes());
        writer.attribute(WEIGHT, &self.weight.to_ne_bytes());
        if let Some(tunnel) = &self.tunnel {
            writer.attribute(TUN_TYPE, &[tunnel.kind.0]);
            writer.attribute(TUN_PORT, &tunnel.port.to_be_bytes());
            writer.attribute(TUN_FLAGS, &tunnel.flags.0.to_ne_bytes());
        }
        writer.attribute(U_THRESH, &self.upper_threshold.to_ne_bytes());
        writer.attribute(L_THRESH, &self.lower_threshold.to_ne_bytes());
        if let Some(connections) = &self.connections {
            writer.attribute(ACTIVE_CONNS, &connections.active.to_ne_bytes());
            writer.attribute(INACT_CONNS, &connections.inactive.to_ne_bytes());
            writer.attribute(PERSIST_CONNS, &connections.persistent.to_ne_bytes());
        }
        if let Some(statistics) = &self.statistics {
            writer.nested(STATS64, |writer| statistics.write(writer));
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        Fields::parse(bytes)?.destination()
    }
}

pub(super) fn write_key(key: &DestinationKey, writer: &mut Writer<'_>) {
    writer.attribute(ADDR_FAMILY, &u16::from(Family::of(key.address).number()).to_ne_bytes());
    writer.attribute(ADDR, &inet_address(key.address));
    writer.attribute(PORT, &key.port.to_be_bytes());
}

pub(super) fn parse_key(bytes: &[u8]) -> Result<DestinationKey, DecodeError> {
    Fields::parse(bytes)?.key()
}

/// The attributes as found; the address is read when the family is known.
#[derive(Default)]
struct Fields<'a> {
    family: Option<u16>,
    address: Option<Attribute<'a>>,
    port: Option<u16>,
    flags: Option<u32>,
    weight: Option<u32>,
    upper_threshold: Option<u32>,
    lower_threshold: Option<u32>,
    tunnel: Option<Tunnel>,
    connections: Option<ConnectionCounts>,
    statistics: Option<Statistics>,
    wide_statistics: Option<Statistics>,
}

impl<'a> Fields<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Self::default();
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            match attribute.kind {
                ADDR_FAMILY => fields.family = Some(attribute.u16()?),
                ADDR => fields.address = Some(attribute),
                PORT => fields.port = Some(attribute.u16_be()?),
                FWD_METHOD => fields.flags = Some(attribute.u32()?),
                WEIGHT => fields.weight = Some(attribute.u32()?),
                U_THRESH => fields.upper_threshold = Some(attribute.u32()?),
                L_THRESH => fields.lower_threshold = Some(attribute.u32()?),
                ACTIVE_CONNS => fields.connections.get_or_insert_default().active = attribute.u32()?,
                INACT_CONNS => fields.connections.get_or_insert_default().inactive = attribute.u32()?,
                PERSIST_CONNS => fields.connections.get_or_insert_default().persistent = attribute.u32()?,
                TUN_TYPE => fields.tunnel.get_or_insert_default().kind = TunnelKind(attribute.u8()?),
                TUN_PORT => fields.tunnel.get_or_insert_default().port = attribute.u16_be()?,
                TUN_FLAGS => fields.tunnel.get_or_insert_default().flags = TunnelFlags(attribute.u16()?),
                STATS => fields.statistics = Some(Statistics::parse(attribute.value)?),
                STATS64 => fields.wide_statistics = Some(Statistics::parse(attribute.value)?),
                _ => {}
            }
        }
        Ok(fields)
    }

    fn key(&self) -> Result<DestinationKey, DecodeError> {
        let family =
            Family::from_number(OBJECT, required(OBJECT, self.family, "IPVS_DEST_ATTR_ADDR_FAMILY")?)?;
        Ok(DestinationKey {
            address: required(OBJECT, self.address, "IPVS_DEST_ATTR_ADDR")?.inet_address(family)?,
            port: required(OBJECT, self.port, "IPVS_DEST_ATTR_PORT")?,
        })
    }

    fn destination(self) -> Result<Destination, DecodeError> {
        let flags = required(OBJECT, self.flags, "IPVS_DEST_ATTR_FWD_METHOD")?;
        Ok(Destination {
            key: self.key()?,
            forwarding: ForwardingMethod(u8::try_from(flags & ForwardingMethod::MASK).unwrap_or_default()),
            connection_flags: flags & !ForwardingMethod::MASK,
            weight: required(OBJECT, self.weight, "IPVS_DEST_ATTR_WEIGHT")?,
            upper_threshold: required(OBJECT, self.upper_threshold, "IPVS_DEST_ATTR_U_THRESH")?,
            lower_threshold: required(OBJECT, self.lower_threshold, "IPVS_DEST_ATTR_L_THRESH")?,
            tunnel: self.tunnel,
            connections: self.connections,
            statistics: self.wide_statistics.or(self.statistics),
        })
    }
}
