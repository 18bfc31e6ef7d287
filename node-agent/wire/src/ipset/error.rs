//! Error numbers of ipset's own, above those of the system.

use super::SetType;

/// `enum ipset_errno` and the numbers of single types, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorCode {
    /// 4097: the request is malformed, or carries what the type or its revision does not know.
    #[error("the kernel does not understand the request")]
    Protocol,
    /// 4098: no such type at this revision and family; the module may be missing.
    #[error("the kernel does not have this set type at this revision and family")]
    FindType,
    /// 4099.
    #[error("the kernel's table of sets is full")]
    MaxSets,
    /// 4100: rules or other sets use it.
    #[error("the set is in use by a rule or another set")]
    Busy,
    /// 4101.
    #[error("a set of the new name exists already")]
    ExistSetName2,
    /// 4102.
    #[error("the two sets differ in type or family and cannot be swapped")]
    TypeMismatch,
    /// 4103: already added, or on deletion and test not there.
    #[error("the entry is there already when added, or not there when deleted or tested")]
    Exist,
    /// 4104.
    #[error("the prefix length is outside what the family and the type allow (0 is not allowed)")]
    InvalidCidr,
    /// 4105.
    #[error("the netmask is invalid")]
    InvalidNetmask,
    /// 4106.
    #[error("the set type does not support this address family")]
    InvalidFamily,
    /// 4107.
    #[error("the set was created without timeouts")]
    Timeout,
    /// 4108.
    #[error("the set is referenced and cannot be renamed")]
    Referenced,
    /// 4109.
    #[error("an IPv4 address was expected")]
    IpAddrIpv4,
    /// 4110.
    #[error("an IPv6 address was expected")]
    IpAddrIpv6,
    /// 4111.
    #[error("the set was created without counters")]
    Counter,
    /// 4112.
    #[error("the set was created without comments")]
    Comment,
    /// 4113.
    #[error("the mark mask is invalid")]
    InvalidMarkMask,
    /// 4114.
    #[error("the set was created without packet marks")]
    SkbInfo,
    /// 4352 of a hash: it holds as many entries as it was created for.
    #[error("the set is full (maxelem reached)")]
    HashFull,
    /// 4353 of a hash.
    #[error("a null address or port cannot be stored")]
    HashElement,
    /// 4354 of a hash.
    #[error("the protocol is invalid")]
    InvalidProtocol,
    /// 4355 of a hash.
    #[error("the protocol is missing")]
    MissingProtocol,
    /// 4356 of a hash.
    #[error("the set type does not support ranges")]
    HashRangeUnsupported,
    /// 4357 of a hash.
    #[error("the range is invalid")]
    HashRange,
    /// 4352 of a bitmap.
    #[error("the entry is outside the set's range")]
    BitmapRange,
    /// 4353 of a bitmap.
    #[error("the set's range is too large")]
    BitmapRangeSize,
    /// Any other number of ipset's own.
    #[error("ipset error {0}")]
    Other(i32),
}

impl ErrorCode {
    /// `IPSET_ERR_PRIVATE`: ipset's own numbers are above it.
    pub const PRIVATE: i32 = 4096;
    const TYPE_SPECIFIC: i32 = 4352;

    /// The meaning of a positive errno, `None` when it is one of the system's. From 4352 on it depends on
    /// the set's type; unknown types are taken for hashes.
    pub fn from_errno(errno: i32, set_type: Option<SetType>) -> Option<Self> {
        if errno <= Self::PRIVATE {
            return None;
        }
        if errno >= Self::TYPE_SPECIFIC && set_type == Some(SetType::BitmapPort) {
            return Some(match errno - Self::TYPE_SPECIFIC {
                0 => Self::BitmapRange,
                1 => Self::BitmapRangeSize,
                _ => Self::Other(errno),
            });
        }
        Some(match errno {
            4097 => Self::Protocol,
            4098 => Self::FindType,
            4099 => Self::MaxSets,
            4100 => Self::Busy,
            4101 => Self::ExistSetName2,
            4102 => Self::TypeMismatch,
            4103 => Self::Exist,
            4104 => Self::InvalidCidr,
            4105 => Self::InvalidNetmask,
            4106 => Self::InvalidFamily,
            4107 => Self::Timeout,
            4108 => Self::Referenced,
            4109 => Self::IpAddrIpv4,
            4110 => Self::IpAddrIpv6,
            4111 => Self::Counter,
            4112 => Self::Comment,
            4113 => Self::InvalidMarkMask,
            4114 => Self::SkbInfo,
            4352 => Self::HashFull,
            4353 => Self::HashElement,
            4354 => Self::InvalidProtocol,
            4355 => Self::MissingProtocol,
            4356 => Self::HashRangeUnsupported,
            4357 => Self::HashRange,
            other => Self::Other(other),
        })
    }
}
