//! Links, addresses, neighbours and routes, said to the kernel directly.
//!
//! A node prepares a network for each sandbox it makes, and a virtual machine's agent sets up its own. Starting the `ip`
//! program for that costs more than all the rest: a process start is a millisecond on a virtual machine, and the
//! machine's template may not have the program. The messages are those of rtnetlink(7).

pub mod nftables;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Message types.
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;

const REQUEST_AND_ACKNOWLEDGE: u16 = 0x5;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

const ERROR: u16 = 2;
const HEADER: usize = 16;
const IPV4: u8 = 2;
const UP: u32 = 1;

pub type HardwareAddress = [u8; 6];

/// A socket to the network namespace of the thread that opened it.
pub struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// Index of a link by its name.
    pub fn index(&self, name: &str) -> io::Result<u32> {
        rustix::net::netdevice::name_to_index(&self.socket, name).map_err(Into::into)
    }

    /// Makes a pair of links: `name`, with that index, here, and `peer` in the network namespace of process `peer_in`.
    /// Packets on it are at most `mtu` bytes.
    pub fn add_pair(
        &self,
        mtu: u32,
        (name, index, address): (&str, u32, HardwareAddress),
        (peer, peer_address, peer_in): (&str, HardwareAddress, u32),
    ) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE);
        message.link(index, 0);
        message.attribute(1, &address);
        message.text(3, name);
        message.attribute(4, &mtu.to_ne_bytes());
        message.nested(18, |info| {
            info.text(1, "veth");
            info.nested(2, |data| {
                data.nested(1, |end| {
                    end.link(0, 0);
                    end.attribute(1, &peer_address);
                    end.text(3, peer);
                    end.attribute(4, &mtu.to_ne_bytes());
                    end.attribute(19, &peer_in.to_ne_bytes());
                });
            });
        });
        self.call(message, "make a pair of links")
    }

    pub fn set_up(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, 0);
        message.link(index, UP);
        self.call(message, "bring a link up")
    }

    /// Gives a link that is down another hardware address.
    pub fn set_hardware(&self, index: u32, address: HardwareAddress) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, 0);
        message.link(index, 0);
        message.attribute(1, &address);
        self.call(message, "set the hardware address of a link")
    }

    /// Packets on it are at most `mtu` bytes from here on.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, 0);
        message.link(index, 0);
        message.attribute(4, &mtu.to_ne_bytes());
        self.call(message, "set the packet size of a link")
    }

    /// Removes a link; it may be gone already.
    pub fn delete(&self, name: &str) -> io::Result<()> {
        let mut message = Message::new(DELETE_LINK, 0);
        message.link(0, 0);
        message.text(3, name);
        match self.call(message, "remove a link") {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    pub fn add_address(&self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::new(NEW_ADDRESS, CREATE | REPLACE);
        // Family, prefix length, flags, scope, link.
        message.bytes(&[IPV4, 32, 0, 0]);
        message.bytes(&index.to_ne_bytes());
        message.attribute(2, &address.octets());
        message.attribute(1, &address.octets());
        self.call(message, "add an address")
    }

    /// Removes an address. With the last address of a link its routes go too.
    pub fn delete_address(&self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::new(DELETE_ADDRESS, 0);
        message.bytes(&[IPV4, 32, 0, 0]);
        message.bytes(&index.to_ne_bytes());
        message.attribute(2, &address.octets());
        match self.call(message, "remove an address") {
            // It is gone already.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    pub fn add_neighbour(&self, index: u32, address: Ipv4Addr, hardware: HardwareAddress) -> io::Result<()> {
        const PERMANENT: u16 = 0x80;
        let mut message = Message::new(NEW_NEIGHBOUR, CREATE | REPLACE);
        message.bytes(&[IPV4, 0, 0, 0]);
        message.bytes(&index.to_ne_bytes());
        message.bytes(&PERMANENT.to_ne_bytes());
        message.bytes(&[0, 0]);
        message.attribute(1, &address.octets());
        message.attribute(2, &hardware);
        self.call(message, "add a neighbour")
    }

    /// A route to one address over a link.
    pub fn add_route(&self, index: u32, to: Ipv4Addr) -> io::Result<()> {
        const LINK_SCOPE: u8 = 253;
        let mut message = route(32, LINK_SCOPE);
        message.attribute(1, &to.octets());
        message.attribute(4, &index.to_ne_bytes());
        self.call(message, "add a route")
    }

    /// The route to everywhere else.
    pub fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = route(0, 0);
        message.attribute(5, &gateway.octets());
        message.attribute(4, &index.to_ne_bytes());
        self.call(message, "add the default route")
    }

    /// Sends one request and waits for its acknowledgement.
    fn call(&self, message: Message, what: &str) -> io::Result<()> {
        let told = |error: io::Error| match error.raw_os_error() {
            // Kept as it is: callers tell some of these apart.
            Some(libc::ENODEV | libc::EADDRNOTAVAIL) => error,
            _ => io::Error::new(error.kind(), format!("could not {what}: {error}")),
        };
        rustix::net::send(&self.socket, &message.finish(), SendFlags::empty())
            .map_err(|error| told(error.into()))?;
        let mut answer = [0; 4096];
        let (length, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        parse_acknowledgement(&answer[..length]).map_err(told)
    }
}

fn route(prefix: u8, scope: u8) -> Message {
    const MAIN_TABLE: u8 = 254;
    const STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    let mut message = Message::new(NEW_ROUTE, CREATE | REPLACE);
    message.bytes(&[IPV4, prefix, 0, 0, MAIN_TABLE, STATIC, scope, UNICAST]);
    message.bytes(&[0; 4]);
    message
}

/// An acknowledgement is an error message with the number 0.
fn parse_acknowledgement(answer: &[u8]) -> io::Result<()> {
    let field = |from: usize| answer.get(from..from + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    match (kind, field(HEADER).map(i32::from_ne_bytes)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(number)) => Err(io::Error::from_raw_os_error(-number)),
        _ => Err(io::Error::other("the kernel answered something else than an acknowledgement")),
    }
}

/// A request under construction; everything in it is aligned to four bytes.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST_AND_ACKNOWLEDGE).to_ne_bytes());
        // Sequence number and port: there is one request at a time on a socket.
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Which link the message is about, and the flags it is to have.
    fn link(&mut self, index: u32, flags: u32) {
        self.bytes(&[0; 4]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        // Which flags change: those that are set.
        self.bytes(&flags.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.bytes(value));
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.nested(kind, |message| {
            message.bytes(text.as_bytes());
            message.bytes(&[0]);
        });
    }

    fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        content(self);
        let length = u16::try_from(self.bytes.len() - start).expect("attributes are short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_measured_without_their_padding() {
        let mut message = Message::new(NEW_LINK, 0);
        message.text(3, "eth0");
        let bytes = message.finish();
        assert_eq!(bytes.len(), HEADER + 12);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(u16::from_ne_bytes(bytes[16..18].try_into().unwrap()), 9);
        assert_eq!(&bytes[20..], b"eth0\0\0\0\0");
    }

    #[test]
    fn a_refusal_carries_its_reason() {
        let mut answer = vec![0; 36];
        answer[4] = 2;
        assert!(parse_acknowledgement(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert_eq!(parse_acknowledgement(&answer).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert!(parse_acknowledgement(&answer[..10]).is_err());
    }
}
