//! What can be wrong with received bytes.

/// Bytes that do not hold what they claim to hold.
///
/// Every variant names the object being read, so that the message alone says where the reader stood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the object does.
    #[error("{object}: {actual} bytes, at least {needed} needed")]
    Truncated {
        /// What was being read.
        object: &'static str,
        /// The smallest size the object has.
        needed: usize,
        /// What was there.
        actual: usize,
    },
    /// A length field contradicts the bytes that are there.
    #[error("{object}: length field says {length}, {available} bytes are there")]
    Length {
        /// What was being read.
        object: &'static str,
        /// The value of the length field.
        length: usize,
        /// The bytes that are there.
        available: usize,
    },
    /// An attribute that the object cannot do without is absent.
    #[error("{object}: no {attribute}")]
    Missing {
        /// What was being read.
        object: &'static str,
        /// The kernel's name of the attribute.
        attribute: &'static str,
    },
    /// An attribute has another size than its type allows.
    #[error("{object}: attribute {attribute} has {actual} bytes, {expected} expected")]
    AttributeSize {
        /// What was being read.
        object: &'static str,
        /// The attribute's number.
        attribute: u16,
        /// The size of its type.
        expected: usize,
        /// What was there.
        actual: usize,
    },
    /// A field has a value that has no meaning in its place.
    #[error("{object}: {field} is {value}")]
    Value {
        /// What was being read.
        object: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A command that this codec does not know.
    #[error("{object}: unknown command {command}")]
    Command {
        /// The protocol.
        object: &'static str,
        /// The command's number.
        command: u8,
    },
    /// The attributes that are there do not make a whole that is known.
    #[error("{object}: its attributes fit no known form")]
    Shape {
        /// What was being read.
        object: &'static str,
    },
    /// A name that this codec has no meaning for.
    #[error("{object}: unknown name {name:?}")]
    Unknown {
        /// What was being read.
        object: &'static str,
        /// The name.
        name: String,
    },
    /// A checksum over the bytes does not come out.
    #[error("{object}: wrong checksum {found:#06x}")]
    Checksum {
        /// What was being read.
        object: &'static str,
        /// The checksum in the packet.
        found: u16,
    },
}

impl From<DecodeError> for netlink_packet_core::DecodeError {
    /// For the traits of `netlink-packet-core`, whose error is a text.
    fn from(error: DecodeError) -> Self {
        Self::from(error.to_string())
    }
}
