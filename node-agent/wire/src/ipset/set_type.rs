//! The set types in use and their revisions.

use std::fmt;

use super::Revisions;
use crate::name::Name;

/// Name of a set type, known to this codec or not (`IPSET_MAXNAMELEN`).
pub type TypeName = Name<32>;

/// A set type that this codec can fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetType {
    /// `hash:ip`
    HashIp,
    /// `hash:ip,port`
    HashIpPort,
    /// `hash:ip,port,ip`
    HashIpPortIp,
    /// `hash:ip,port,net`
    HashIpPortNet,
    /// `hash:net`
    HashNet,
    /// `hash:net,port`
    HashNetPort,
    /// `bitmap:port`; it has no address family.
    BitmapPort,
}

impl SetType {
    /// Every type.
    pub const ALL: [Self; 7] = [
        Self::HashIp,
        Self::HashIpPort,
        Self::HashIpPortIp,
        Self::HashIpPortNet,
        Self::HashNet,
        Self::HashNetPort,
        Self::BitmapPort,
    ];

    /// The type's name as the kernel and `ipset` have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashIpPort => "hash:ip,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::HashNet => "hash:net",
            Self::HashNetPort => "hash:net,port",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// The type of this name, when it is one of those known here.
    pub fn from_name(name: &TypeName) -> Option<Self> {
        Self::ALL.into_iter().find(|set_type| *name == *set_type.as_str())
    }

    /// The first revision that has packet marks (`skbinfo`, Linux 3.18).
    pub const fn marks_since(self) -> u8 {
        match self {
            Self::BitmapPort => 3,
            Self::HashIp => 4,
            Self::HashIpPort | Self::HashIpPortIp => 5,
            Self::HashNet => 6,
            Self::HashIpPortNet | Self::HashNetPort => 7,
        }
    }

    /// The revision to create a set at, given those of the kernel: the one whose meaning is known here, or
    /// the kernel's nearest.
    pub fn revision(self, kernel: Revisions) -> u8 {
        // Later revisions add create options that are not used here (bucketsize, initval, bitmask).
        self.marks_since().clamp(kernel.lowest.min(kernel.highest), kernel.highest)
    }

    /// Whether elements are of an address family.
    pub const fn has_family(self) -> bool {
        !matches!(self, Self::BitmapPort)
    }
}

impl fmt::Display for SetType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
