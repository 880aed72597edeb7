//! What changes in the firewall rules of a network namespace, as the kernel tells it to whoever listens.
//!
//! The messages are those of `nfnetlink` (linux/netfilter/nf_tables.h). Those of one transaction come together, in its order.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

/// `NFNLGRP_NFTABLES`, as a mask.
const GROUP: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES`: the upper half of a message's type.
const SUBSYSTEM: u16 = 10;
/// Bytes that may wait to be read: a table with a thousand elements tells of each.
const BUFFER: usize = 8 << 20;
const HEADER: usize = 16;
/// Behind the header: family, version, and a number.
const FAMILY_HEADER: usize = 4;
/// The attribute with the name of the table is the first of all messages but those that count generations.
const TABLE: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    TableMade,
    /// A chain was made, or is another now.
    ChainMade,
    /// A table, or a chain, a rule or a set of it.
    Removed,
    /// Anything else: rules and sets that were added, elements that came and went.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub change: Change,
    /// `NFPROTO_INET` (1), `NFPROTO_IPV4` (2), and so on.
    pub family: u8,
    pub table: String,
}

/// A socket that hears of every change of the rules in the network namespace of this thread. It never blocks.
pub fn listen() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
    Ok(socket)
}

/// What such a socket has heard of since the last time; empty when nothing has happened.
///
/// # Errors
/// `ENOBUFS` when more has happened than was kept.
pub fn read(socket: impl AsFd) -> io::Result<Vec<Event>> {
    let (mut events, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match rustix::net::recv(&socket, &mut *buffer, RecvFlags::empty()) {
            Ok((length, _)) => events.extend(parse(&buffer[..length.min(buffer.len())])),
            Err(rustix::io::Errno::AGAIN) => return Ok(events),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The events of a datagram. What is not understood is left out.
fn parse(mut datagram: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(length) = number(datagram, 0).map(|length| length as usize)
        && let Some(message) = datagram.get(..length).filter(|message| message.len() >= HEADER)
    {
        events.extend(parse_message(message));
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    events
}

fn parse_message(message: &[u8]) -> Option<Event> {
    let kind = short(message, 4)?;
    if kind >> 8 != SUBSYSTEM {
        return None;
    }
    let change = match kind & 0xff {
        0 => Change::TableMade,
        3 => Change::ChainMade,
        2 | 5 | 8 | 11 => Change::Removed,
        // A new generation: a transaction has ended.
        15 => return None,
        _ => Change::Other,
    };
    let family = *message.get(HEADER)?;
    let mut attributes = message.get(HEADER + FAMILY_HEADER..)?;
    while let (Some(length), Some(kind)) = (short(attributes, 0), short(attributes, 2)) {
        let attribute = attributes.get(4..usize::from(length))?;
        if kind & 0x3fff == TABLE {
            let name = attribute.split(|byte| *byte == 0).next()?;
            return Some(Event { change, family, table: String::from_utf8_lossy(name).into_owned() });
        }
        attributes = attributes.get(aligned(usize::from(length))..)?;
    }
    None
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([2, 0, 0, 0]);
        for (kind, value) in attributes {
            bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(aligned(bytes.len()), 0);
        }
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn the_name_of_the_table_is_found_in_messages_that_follow_each_other() {
        let datagram = [
            message(0xa02, &[(3, b"x"), (1, b"warren\0")]),
            message(0xa0f, &[(1, &[0, 0, 0, 1])]),
            message(0x1002, &[(1, b"a route\0")]),
            message(0xa00, &[(1, b"filter\0")]),
        ]
        .concat();
        let event = |change, table: &str| Event { change, family: 2, table: table.to_owned() };
        assert_eq!(parse(&datagram), [event(Change::Removed, "warren"), event(Change::TableMade, "filter")]);
    }

    #[test]
    fn what_is_cut_or_lies_about_its_length_ends_the_reading() {
        let whole = message(0xa02, &[(3, b"abc"), (1, b"warren\0")]);
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), []);
        }
        for length in [0, 1, 15, 16, 17, 19, 21] {
            let mut lying = whole.clone();
            lying[..4].copy_from_slice(&u32::to_ne_bytes(length));
            assert_eq!(parse(&lying), []);
            let mut lying = whole.clone();
            lying[20..22].copy_from_slice(&u16::to_ne_bytes(length as u16));
            // It may find another attribute at the wrong place, but it ends.
            let _ = parse(&lying);
        }
    }
}
