//! Ethernet frames as they are on the wire (packet sockets).

use std::{
    io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::socket::{LinkAddr, recvfrom};
use nodenet_wire::ethernet::EtherType;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// Largest frame of interest: ARP and neighbour discovery are small.
const FRAME: usize = 2048;

/// A socket for frames of one type on all interfaces of a namespace.
///
/// It is bound to a type, not to all of them: then the kernel shows it received frames of that type only and need not
/// copy every packet that is sent.
pub(super) struct FrameSocket {
    socket: Socket,
    ether_type: EtherType,
    buffer: Vec<u8>,
}

impl FrameSocket {
    /// Opens a socket in the namespace of the calling thread.
    pub(super) fn open(ether_type: EtherType) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(ether_type.0.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        if ether_type == EtherType::IPV6 {
            socket.attach_filter(&NEIGHBOUR_DISCOVERY)?;
        }
        Ok(Self { socket, ether_type, buffer: vec![0; FRAME] })
    }

    /// Sends a frame out of an interface.
    pub(super) fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        self.socket.send_to(frame, &link_address(index, self.ether_type)).map(|_| ())
    }

    /// The next frame and the number of the interface that it came in by; `None` when none came in time.
    pub(super) fn receive(&mut self, wait: Duration) -> io::Result<Option<(u32, &[u8])>> {
        let deadline = Instant::now() + wait;
        let (length, index) = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Zero would mean to wait for ever.
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut self.buffer) {
                Ok((length, Some(from))) => break (length, from.ifindex()),
                // An interface that went down is told once to every socket.
                Ok((_, None)) | Err(nix::Error::EINTR | nix::Error::ENETDOWN | nix::Error::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let index = u32::try_from(index).unwrap_or_default();
        Ok(self.buffer.get(..length).map(|frame| (index, frame)))
    }
}

/// Passes ICMPv6 neighbour solicitations and advertisements (types 135 and 136) directly in IPv6, and drops all other
/// IPv6 packets before they are copied. Classic BPF: load a byte; if it equals, skip so many, else skip so many.
const NEIGHBOUR_DISCOVERY: [SockFilter; 7] = {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NEXT_HEADER: u32 = 14 + 6;
    const ICMP_TYPE: u32 = 14 + 40;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, NEXT_HEADER),
        SockFilter::new(JUMP_EQUAL, 0, 4, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, ICMP_TYPE),
        SockFilter::new(JUMP_EQUAL, 1, 0, 135),
        SockFilter::new(JUMP_EQUAL, 0, 1, 136),
        SockFilter::new(RETURN, 0, 0, FRAME as u32),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
};

/// Where a frame goes out: the frame itself says to whom.
fn link_address(index: u32, ether_type: EtherType) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    let length = size_of::<libc::sockaddr_ll>();
    // No library makes this address from its parts.
    #[allow(unsafe_code)]
    // SAFETY: `sockaddr_ll` is a socket address: it fits the storage, and any bytes are a valid value of it.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ether_type.0.to_be();
    address.sll_ifindex = libc::c_int::try_from(index).unwrap_or_default();
    #[allow(unsafe_code)]
    // SAFETY: family and all fields were set above, the length is that of this family's address.
    unsafe {
        SockAddr::new(storage, length as libc::socklen_t)
    }
}
