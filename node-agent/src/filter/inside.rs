//! Marks of packets by which the node's own clients reach a port that answers others by this node's endpoints only.

use crate::state::Protocol;

/// Numbers that ports have ([`nodenet_crds::PortPlan::inside_number`]).
pub const INSIDE_NUMBERS: std::ops::RangeInclusive<u16> = 1..=2047;

/// Bits that a number and the protocol's bit take.
const FULL_BITS: u8 = 12;

/// Which bits of a packet's mark are used. All others are 0 in such a mark: IPVS compares all 32 bits.
///
/// The default keeps the bits 13 (portmap of CNI), 14 and 15 (Kubernetes) and those above (Calico and others) free. Cilium
/// reads 8 to 11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsideMarks {
    base: u32,
    first_bit: u8,
    bits: u8,
}

/// Bits that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsideError {
    /// Too few or too many.
    #[error("bits: {0} is not from 2 to 12")]
    Bits(u8),
    /// They do not fit in 32 bits.
    #[error("firstBit: {bits} bits from bit {first_bit} on do not fit in 32: at most {}", 32 - bits)]
    FirstBit {
        /// The lowest.
        first_bit: u8,
        /// How many.
        bits: u8,
    },
    /// The base has none beside them.
    #[error("base: {base:#x} must have a bit, and none of the {bits} bits from bit {first_bit} on")]
    Base {
        /// The base.
        base: u32,
        /// The lowest.
        first_bit: u8,
        /// How many.
        bits: u8,
    },
}

impl Default for InsideMarks {
    fn default() -> Self {
        Self { base: 0x1000, first_bit: 0, bits: FULL_BITS }
    }
}

impl InsideMarks {
    /// `base` in all marks, and `bits` bits from `first_bit` on for the number and the protocol.
    ///
    /// # Errors
    /// Where the bits overlap or do not fit.
    pub fn new(base: u32, first_bit: u8, bits: u8) -> Result<Self, InsideError> {
        if !(2..=FULL_BITS).contains(&bits) {
            return Err(InsideError::Bits(bits));
        }
        if first_bit > 32 - bits {
            return Err(InsideError::FirstBit { first_bit, bits });
        }
        let marks = Self { base, first_bit, bits };
        if base == 0 || base & marks.field() != 0 {
            return Err(InsideError::Base { base, first_bit, bits });
        }
        Ok(marks)
    }

    /// The bits that differ between marks.
    const fn field(self) -> u32 {
        ((1 << self.bits) - 1) << self.first_bit
    }

    /// What all marks have in common: value and mask.
    pub const fn in_common(self) -> (u32, u32) {
        (self.base, !self.field())
    }

    /// The greatest number that there is room for.
    pub const fn greatest(self) -> u16 {
        (1 << (self.bits - 1)) - 1
    }

    /// Whether a mark or mask has bits that these marks have too.
    pub const fn overlaps(self, bits: u32) -> bool {
        bits & (self.base | self.field()) != 0
    }

    /// The mark of a port's number, at most [`Self::greatest`]. The lowest bit says whether connections have an end that
    /// the kernel sees (0, TCP), for who knows only the mark.
    pub fn mark(self, number: u16, protocol: Protocol) -> u32 {
        let number = (u32::from(number) << 1) | u32::from(protocol != Protocol::TCP);
        self.base | (number << self.first_bit)
    }

    /// Whether connections by this mark have no end that the kernel sees.
    pub const fn is_datagram(self, mark: u32) -> bool {
        let (base, mask) = self.in_common();
        mark & mask == base && mark & (1 << self.first_bit) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_within_their_bits() {
        for marks in [
            InsideMarks::default(),
            InsideMarks::new(0x1000_0000, 16, 12).unwrap(),
            InsideMarks::new(0x80, 0, 7).unwrap(),
        ] {
            let (base, mask) = marks.in_common();
            for number in [1, 2, marks.greatest()] {
                for (protocol, datagram) in
                    [(Protocol::TCP, false), (Protocol::UDP, true), (Protocol::SCTP, true)]
                {
                    let mark = marks.mark(number, protocol);
                    assert_eq!(mark & mask, base);
                    assert_eq!(marks.is_datagram(mark), datagram);
                    assert!(!marks.is_datagram(mark | 1 << 31), "another's mark");
                }
            }
        }
        assert_eq!(InsideMarks::default().mark(1, Protocol::TCP), 0x1002);
        assert_eq!(InsideMarks::default().greatest(), 2047);
        // Cilium reads 0x0f00.
        assert!(!InsideMarks::new(0x1000_0000, 16, 12).unwrap().overlaps(0x0f00));
    }

    #[test]
    fn bits_that_overlap_are_refused() {
        assert_eq!(InsideMarks::new(0x1000, 0, 13), Err(InsideError::Bits(13)));
        assert_eq!(InsideMarks::new(0x1000, 0, 1), Err(InsideError::Bits(1)));
        assert_eq!(InsideMarks::new(1, 21, 12), Err(InsideError::FirstBit { first_bit: 21, bits: 12 }));
        assert!(InsideMarks::new(1, 20, 12).is_ok());
        assert!(matches!(InsideMarks::new(0, 0, 12), Err(InsideError::Base { .. })));
        assert!(matches!(InsideMarks::new(0x800, 0, 12), Err(InsideError::Base { .. })));
        assert!(InsideMarks::default().overlaps(0x1000) && InsideMarks::default().overlaps(0x800));
        assert!(!InsideMarks::default().overlaps(0x4000));
    }
}
