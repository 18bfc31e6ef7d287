//! Traffic counters of services and destinations (`IPVS_STATS_ATTR_*`).

use crate::{
    DecodeError,
    attribute::{Attribute, Writer, attributes},
};

const CONNS: u16 = 1;
const INPKTS: u16 = 2;
const OUTPKTS: u16 = 3;
const INBYTES: u16 = 4;
const OUTBYTES: u16 = 5;
const CPS: u16 = 6;
const INPPS: u16 = 7;
const OUTPPS: u16 = 8;
const INBPS: u16 = 9;
const OUTBPS: u16 = 10;

const OBJECT: &str = "IPVS statistics";

/// Totals since creation, and rates as the kernel estimates them every two seconds.
///
/// Kernels send them twice, in 32 and in 64 bits; the wide ones are kept where both are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients; only masquerading sees them.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Connections per second.
    pub connection_rate: u64,
    /// Packets per second from clients.
    pub packet_rate_in: u64,
    /// Packets per second to clients.
    pub packet_rate_out: u64,
    /// Bytes per second from clients.
    pub byte_rate_in: u64,
    /// Bytes per second to clients.
    pub byte_rate_out: u64,
}

impl Statistics {
    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        for (kind, value) in [
            (CONNS, self.connections),
            (INPKTS, self.packets_in),
            (OUTPKTS, self.packets_out),
            (INBYTES, self.bytes_in),
            (OUTBYTES, self.bytes_out),
            (CPS, self.connection_rate),
            (INPPS, self.packet_rate_in),
            (OUTPPS, self.packet_rate_out),
            (INBPS, self.byte_rate_in),
            (OUTBPS, self.byte_rate_out),
        ] {
            writer.attribute(kind, &value.to_ne_bytes());
        }
    }

    /// A counter that is absent is 0.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut statistics = Self::default();
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            let field = match attribute.kind {
                CONNS => &mut statistics.connections,
                INPKTS => &mut statistics.packets_in,
                OUTPKTS => &mut statistics.packets_out,
                INBYTES => &mut statistics.bytes_in,
                OUTBYTES => &mut statistics.bytes_out,
                CPS => &mut statistics.connection_rate,
                INPPS => &mut statistics.packet_rate_in,
                OUTPPS => &mut statistics.packet_rate_out,
                INBPS => &mut statistics.byte_rate_in,
                OUTBPS => &mut statistics.byte_rate_out,
                _ => continue,
            };
            *field = counter(attribute)?;
        }
        Ok(statistics)
    }
}

/// The bytes are 64 bits wide in both forms, the rest 32 in the narrow one.
fn counter(attribute: Attribute<'_>) -> Result<u64, DecodeError> {
    if attribute.value.len() == 4 { attribute.u32().map(u64::from) } else { attribute.u64() }
}
