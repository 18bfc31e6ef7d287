//! Names as the kernel keeps them: short, zero-terminated, in a fixed array.

use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

/// A kernel identifier of at most `N - 1` bytes (`N` counts the terminating zero, as the kernel's
/// `*_MAXNAMELEN` constants do).
///
/// It lives inline, so a dump of ten thousand objects allocates nothing for their names, and it cannot be
/// too long to send. The kernel does not insist on UTF-8, so neither does this type.
#[derive(Clone, Copy)]
pub struct Name<const N: usize> {
    bytes: [u8; N],
    length: u8,
}

/// Why a text cannot be a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing in it.
    #[error("the name is empty")]
    Empty,
    /// More bytes than the kernel keeps.
    #[error("the name {name:?} has {} bytes, the kernel takes {longest}", name.len())]
    TooLong {
        /// The name.
        name: String,
        /// How many bytes are allowed.
        longest: usize,
    },
    /// A zero byte would end the name early.
    #[error("the name {name:?} holds a zero byte")]
    Zero {
        /// The name.
        name: String,
    },
}

impl<const N: usize> Name<N> {
    /// The longest name in bytes.
    pub const LONGEST: usize = N - 1;

    /// A name from text.
    ///
    /// # Errors
    /// When the text is empty, too long or holds a zero byte.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.as_bytes().contains(&0) {
            return Err(NameError::Zero { name: name.to_owned() });
        }
        Self::from_bytes(name.as_bytes())
            .ok_or_else(|| NameError::TooLong { name: name.to_owned(), longest: Self::LONGEST })
    }

    /// A name from what the kernel sent: up to the first zero byte. `None` when it is too long.
    pub(crate) fn from_bytes(value: &[u8]) -> Option<Self> {
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        let text = value.get(..end)?;
        if text.len() >= N {
            return None;
        }
        let mut bytes = [0; N];
        bytes.get_mut(..end)?.copy_from_slice(text);
        Some(Self { bytes, length: u8::try_from(end).ok()? })
    }

    /// The name without its terminating zero.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    /// The name with its terminating zero, as attributes carry it.
    pub(crate) fn with_zero(&self) -> &[u8] {
        self.bytes.get(..=usize::from(self.length)).unwrap_or(&self.bytes)
    }

    /// The name for people; bytes that are not UTF-8 are shown as replacement characters.
    pub fn to_str(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }
}

impl<const N: usize> FromStr for Name<N> {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl<const N: usize> fmt::Display for Name<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_str())
    }
}

impl<const N: usize> fmt::Debug for Name<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_str(), f)
    }
}

impl<const N: usize> PartialEq for Name<N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> PartialEq<str> for Name<N> {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> PartialEq<&str> for Name<N> {
    fn eq(&self, other: &&str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> Eq for Name<N> {}

impl<const N: usize> PartialOrd for Name<N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<const N: usize> Ord for Name<N> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl<const N: usize> Hash for Name<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_what_fits_and_refuses_the_rest() {
        let name = Name::<16>::new("fifteen-bytes-x").unwrap();
        assert_eq!(name, "fifteen-bytes-x");
        assert_eq!(name.with_zero(), b"fifteen-bytes-x\0");
        assert_eq!(Name::<16>::new(""), Err(NameError::Empty));
        assert!(matches!(Name::<16>::new("sixteen-bytes-xx"), Err(NameError::TooLong { longest: 15, .. })));
        assert!(matches!(Name::<16>::new("a\0b"), Err(NameError::Zero { .. })));
    }

    #[test]
    fn the_kernels_bytes_end_at_the_first_zero_and_need_not_be_utf8() {
        assert_eq!(Name::<16>::from_bytes(b"wrr\0garbage").unwrap(), "wrr");
        assert_eq!(Name::<16>::from_bytes(b"wrr").unwrap(), "wrr");
        assert_eq!(Name::<16>::from_bytes(&[0xff, 0]).unwrap().to_string(), "\u{fffd}");
        assert!(Name::<4>::from_bytes(b"four").is_none());
    }
}
