//! Errors as the kernel sent them, with and without their extended acknowledgement.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "support of tests fails by panicking")]

mod capture;

use capture::named;
use nodenet_wire::{
    extack::KernelError,
    message::{Kind, Messages, is_interrupted},
};

fn error(name: &str) -> KernelError {
    match named(&capture::extack(), name).outcome() {
        Kind::Error(error) | Kind::Done(Some(error)) => error,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn success_is_an_acknowledgement() {
    assert_eq!(named(&capture::extack(), "added").outcome(), Kind::Acknowledgement);
}

#[test]
fn the_kernels_words_are_found_behind_a_whole_and_a_capped_request() {
    for name in ["exists-whole", "exists-capped"] {
        let error = error(name);
        assert_eq!(error.errno, 17);
        assert_eq!(error.message.as_deref(), Some("ipv4: Address already assigned"));
        assert_eq!(error.to_string(), "File exists (os error 17): ipv4: Address already assigned");
    }
    assert_eq!(error("exists-plain").to_string(), "File exists (os error 17)");
}

#[test]
fn a_malformed_attribute_is_pointed_at() {
    let error = error("short-attribute");
    assert_eq!(error.message.as_deref(), Some("Attribute failed policy validation"));
    // Behind the netlink header and the eight bytes of struct ifaddrmsg.
    assert_eq!(error.offset, Some(24));
    assert_eq!(self::error("missing-attribute").message.as_deref(), Some("Network address not specified"));
}

#[test]
fn a_dump_can_end_with_an_error() {
    let refused = error("dump-refused");
    assert_eq!((refused.errno, refused.message), (19, None));
    let invalid = error("dump-invalid");
    assert_eq!(invalid.errno, 22);
    assert_eq!(invalid.message.as_deref(), Some("ipv4: Invalid values in header for address dump request"));
    // It repeats no request: the sequence number of the message itself tells which it was.
    assert_eq!(invalid.request, None);
}

#[test]
fn an_interrupted_dump_is_recognised_by_any_of_its_messages() {
    // Linux sets NLM_F_DUMP_INTR (0x10) beside NLM_F_MULTI, here on the message that ends a dump.
    let done = [20, 0, 0, 0, 3, 0, 0x12, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let message = Messages::new(&done).next().unwrap().unwrap();
    assert!(message.is_interrupted());
    assert!(is_interrupted(&message.header));
    assert_eq!(message.kind(), Ok(Kind::Done(None)));
    for capture in capture::extack() {
        assert!(capture.replies().all(|message| !message.is_interrupted()), "{}", capture.name);
    }
}

#[test]
fn control_messages_are_told_apart() {
    let message = |kind: u8| [16, 0, 0, 0, kind, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    for (number, kind) in [(1, Kind::Noop), (4, Kind::Overrun), (9, Kind::Noop), (16, Kind::Data(&[]))] {
        let bytes = message(number);
        assert_eq!(Messages::new(&bytes).next().unwrap().unwrap().kind(), Ok(kind));
    }
}
