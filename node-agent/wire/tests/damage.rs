//! Every truncation and every flipped bit of every captured datagram: an error or other content, no panic.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod capture;
mod invariants;

/// Cuts at every byte, of the datagram and of its last message, and flips every bit.
fn damage(datagram: &[u8]) {
    let mut bytes = datagram.to_vec();
    for place in 0..bytes.len() {
        invariants::netlink(&datagram[..place]);
        for bit in 0..8 {
            bytes[place] ^= 1 << bit;
            invariants::netlink(&bytes);
            bytes[place] ^= 1 << bit;
        }
    }
    // The header agrees with the cut, so that the codecs behind it see it too.
    for length in 16..datagram.len() {
        bytes.truncate(datagram.len());
        let mut cut = datagram[..length].to_vec();
        cut[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
        invariants::netlink(&cut);
    }
}

#[test]
fn damaged_captures_never_panic() {
    for capture in capture::ipvs().iter().chain(&capture::ipset()).chain(&capture::extack()) {
        for datagram in capture.sent.iter().chain(&capture.received) {
            // A bit in the middle of a listing is a bit in any entry of it.
            damage(&datagram[..datagram.len().min(700)]);
        }
    }
}
