//! A netlink socket in a network namespace of its own.

#![allow(dead_code)]

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkSerializable};
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};
use nodenet_wire::{
    extack::KernelError,
    message::{self, Flags, Kind, Messages},
};

/// One's own network namespace, for the thread that a test runs in. `false` when that is not allowed.
pub fn enter_namespace() -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: needs root");
        return false;
    }
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            // Without an address there is no local table, and without that IPVS takes every server's address
            // for a broadcast one.
            let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(status.unwrap().success(), "ip link set lo up");
            true
        }
        Err(error) => {
            println!("SKIP: no network namespace: {error}");
            false
        }
    }
}

pub struct Kernel {
    pub socket: Socket,
    sequence: u32,
}

/// What came back for a batch: errors by the position of their request, and all data.
#[derive(Default)]
pub struct Answers {
    pub errors: Vec<(usize, KernelError)>,
    pub data: Vec<(u16, Vec<u8>)>,
}

impl Kernel {
    pub fn new(protocol: isize) -> Self {
        let mut socket = Socket::new(protocol).unwrap();
        socket.set_ext_ack(true).unwrap();
        socket.bind_auto().unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        Self { socket, sequence: 0 }
    }

    /// Sends requests in one datagram and reads until the last was answered. Only the last asks to be
    /// acknowledged; errors come in any case.
    pub fn ask<R: Flags + NetlinkSerializable>(&mut self, requests: &[R]) -> Answers {
        let mut batch = Vec::new();
        let first = self.sequence + 1;
        for (index, request) in requests.iter().enumerate() {
            let mut flags = request.flags();
            if index + 1 < requests.len() {
                flags &= !NLM_F_ACK;
            }
            self.sequence += 1;
            message::append(&mut batch, flags, self.sequence, request);
        }
        assert_eq!(self.socket.send(&batch, 0).unwrap(), batch.len());
        let mut answers = Answers::default();
        loop {
            let (datagram, _) = self.socket.recv_from_full().unwrap();
            for message in Messages::new(&datagram) {
                let message = message.unwrap();
                let is_last = message.header.sequence_number == self.sequence;
                match message.kind().unwrap() {
                    Kind::Data(payload) => {
                        answers.data.push((message.header.message_type, payload.to_vec()));
                        // A single answer that nobody asked to be acknowledged.
                        let last_flags = requests.last().unwrap().flags();
                        if is_last && last_flags == NLM_F_REQUEST {
                            return answers;
                        }
                    }
                    Kind::Acknowledgement | Kind::Done(None) if is_last => return answers,
                    Kind::Acknowledgement | Kind::Done(None) => {}
                    Kind::Error(error) | Kind::Done(Some(error)) => {
                        let index = message.header.sequence_number - first;
                        answers.errors.push((usize::try_from(index).unwrap(), error));
                        if is_last {
                            return answers;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[track_caller]
    pub fn carry_out<R: Flags + NetlinkSerializable>(&mut self, requests: &[R]) {
        let answers = self.ask(requests);
        assert_eq!(answers.errors, []);
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
