//! A payload of ipset behind two bytes that choose the command and whether `NLM_F_EXCL` is set.
#![no_main]

#[path = "../../tests/invariants/mod.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let [command, exclusive, payload @ ..] = bytes {
        let message_type = u16::from_be_bytes([nodenet_wire::ipset::SUBSYSTEM, *command]);
        invariants::ipset(message_type, u16::from(*exclusive & 1) << 9, payload);
    }
});
