//! A received datagram: framing, errors, and each message as one of every family.
#![no_main]

#[path = "../../tests/invariants/mod.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::netlink(bytes));
