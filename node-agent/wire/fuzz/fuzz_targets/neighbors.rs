//! An Ethernet frame with ARP or Neighbor Discovery.
#![no_main]

#[path = "../../tests/invariants/mod.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::neighbors(bytes));
