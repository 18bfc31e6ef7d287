//! Options of a set, when it is created and when it is listed.

use super::{data_attribute as attribute, data_flag};
use crate::{
    DecodeError,
    attribute::{Writer, attributes},
};

pub(super) const OBJECT: &str = "ipset set data";

/// The ports a `bitmap:port` can hold, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortRange {
    /// All ports (8 KiB of bitmap).
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

/// Options of a set. Absent ones are left to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CreateOptions {
    /// Initial size of the hash (default 1024); a listing has the size it grew to.
    pub hash_size: Option<u32>,
    /// Most entries of a hash (default 65536). More are refused with [`HashFull`](super::ErrorCode::HashFull).
    pub max_elements: Option<u32>,
    /// Ports of a bitmap; only `bitmap:port` has it and must have it.
    pub ports: Option<PortRange>,
    /// Entries expire; this many seconds after they were added unless they say otherwise, 0 is never.
    pub timeout: Option<u32>,
    /// Entries may carry packet marks (`skbinfo`).
    pub marks: bool,
    /// Entries count packets and bytes.
    pub counters: bool,
    /// Entries may carry comments.
    pub comments: bool,
    /// A full hash drops a random entry for a new one.
    pub force_add: bool,
}

impl CreateOptions {
    /// A hash of this initial size and capacity.
    pub const fn hash(hash_size: u32, max_elements: u32) -> Self {
        Self { hash_size: Some(hash_size), max_elements: Some(max_elements), ..Self::NONE }
    }

    /// A bitmap of ports.
    pub const fn bitmap(ports: PortRange) -> Self {
        Self { ports: Some(ports), ..Self::NONE }
    }

    const NONE: Self = Self {
        hash_size: None,
        max_elements: None,
        ports: None,
        timeout: None,
        marks: false,
        counters: false,
        comments: false,
        force_add: false,
    };

    fn flags(&self) -> u32 {
        [
            (self.counters, data_flag::WITH_COUNTERS),
            (self.comments, data_flag::WITH_COMMENT),
            (self.force_add, data_flag::WITH_FORCEADD),
            (self.marks, data_flag::WITH_SKBINFO),
        ]
        .into_iter()
        .filter_map(|(is_set, flag)| is_set.then_some(flag))
        .sum()
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) {
        if let Some(ports) = self.ports {
            writer.network_order(attribute::PORT, &ports.first.to_be_bytes());
            writer.network_order(attribute::PORT_TO, &ports.last.to_be_bytes());
        }
        for (kind, value) in [
            (attribute::TIMEOUT, self.timeout),
            (attribute::CADT_FLAGS, Some(self.flags()).filter(|flags| *flags != 0)),
            (attribute::HASHSIZE, self.hash_size),
            (attribute::MAXELEM, self.max_elements),
        ] {
            if let Some(value) = value {
                writer.network_order(kind, &value.to_be_bytes());
            }
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut options = Self::default();
        let (mut first, mut last) = (None, None);
        for attribute in attributes(OBJECT, bytes) {
            let attribute = attribute?;
            match attribute.kind {
                attribute::PORT => first = Some(attribute.u16_be()?),
                attribute::PORT_TO => last = Some(attribute.u16_be()?),
                attribute::HASHSIZE => options.hash_size = Some(attribute.u32_be()?),
                attribute::MAXELEM => options.max_elements = Some(attribute.u32_be()?),
                attribute::TIMEOUT => options.timeout = Some(attribute.u32_be()?),
                attribute::CADT_FLAGS => {
                    let flags = attribute.u32_be()?;
                    options.counters = flags & data_flag::WITH_COUNTERS != 0;
                    options.comments = flags & data_flag::WITH_COMMENT != 0;
                    options.force_add = flags & data_flag::WITH_FORCEADD != 0;
                    options.marks = flags & data_flag::WITH_SKBINFO != 0;
                }
                _ => {}
            }
        }
        options.ports = first.map(|first| PortRange { first, last: last.unwrap_or(first) });
        Ok(options)
    }
}
