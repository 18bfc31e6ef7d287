//! Reads the files of `tests/captures`: blocks headed by `## name: command`, in them datagrams in
//! hexadecimal, sent (`>`) or received (`<`), continued on indented lines.

#![allow(dead_code)]

use nodenet_wire::message::{Kind, Message, Messages};

/// One command's conversation with the kernel.
pub struct Capture {
    pub name: String,
    pub sent: Vec<Vec<u8>>,
    pub received: Vec<Vec<u8>>,
}

impl Capture {
    /// The last request: what the command was run for.
    pub fn request(&self) -> Message<'_> {
        only(self.sent.last().unwrap())
    }

    /// All messages of the datagrams that were received.
    pub fn replies(&self) -> impl Iterator<Item = Message<'_>> {
        self.received.iter().flat_map(|datagram| Messages::new(datagram)).map(Result::unwrap)
    }

    /// The last reply, sorted.
    pub fn outcome(&self) -> Kind<'_> {
        self.replies().last().unwrap().kind().unwrap()
    }
}

/// The one message of a datagram.
pub fn only(datagram: &[u8]) -> Message<'_> {
    let mut messages = Messages::new(datagram);
    let message = messages.next().unwrap().unwrap();
    assert!(messages.next().is_none(), "more than one message");
    message
}

pub fn ipvs() -> Vec<Capture> {
    read(include_str!("../captures/ipvs.cap"))
}

pub fn ipset() -> Vec<Capture> {
    read(include_str!("../captures/ipset.cap"))
}

pub fn extack() -> Vec<Capture> {
    read(include_str!("../captures/extack.cap"))
}

/// Frames rather than datagrams, all in `sent`.
pub fn neighbors() -> Vec<Capture> {
    read(include_str!("../captures/neighbors.cap"))
}

pub fn named<'a>(captures: &'a [Capture], name: &str) -> &'a Capture {
    captures.iter().find(|capture| capture.name == name).unwrap_or_else(|| panic!("no capture {name}"))
}

fn read(text: &str) -> Vec<Capture> {
    let mut captures: Vec<Capture> = Vec::new();
    let mut is_sent = false;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        if let Some(title) = line.strip_prefix("## ") {
            let (name, _command) = title.split_once(": ").unwrap();
            captures.push(Capture { name: name.to_owned(), sent: Vec::new(), received: Vec::new() });
            continue;
        }
        let capture = captures.last_mut().unwrap();
        let (mark, digits) = line.split_at(2);
        if mark != "  " {
            is_sent = mark == "> ";
            if is_sent { &mut capture.sent } else { &mut capture.received }.push(Vec::new());
        }
        let datagram = if is_sent { &mut capture.sent } else { &mut capture.received }.last_mut().unwrap();
        let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b' ').collect();
        datagram.extend(
            digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()),
        );
    }
    assert!(!captures.is_empty());
    captures
}
