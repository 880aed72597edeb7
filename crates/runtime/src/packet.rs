//! Requests on a packet socket, with descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::plan::{LaunchError, MAX_REQUEST_BYTES, Result, Step};

/// Descriptors that may come with one request.
const MAX_DESCRIPTORS: usize = 4;

/// A pair of connected packet sockets.
pub fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Packets are at most as large as the buffers allow.
    for end in [&one, &other] {
        rustix::net::sockopt::set_socket_send_buffer_size(end, 2 * MAX_REQUEST_BYTES)?;
    }
    Ok((one, other))
}

/// Sends a request, which must not be empty: an empty packet is what a closed socket looks like.
pub fn send(socket: impl AsFd, request: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let step = "send a request";
    if request.is_empty() || request.len() > MAX_REQUEST_BYTES {
        return Err(LaunchError::new(step, format!("it has {} bytes", request.len())));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(LaunchError::new(step, format!("{} descriptors are too many", descriptors.len())));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL)
        .map(drop)
        .step(step)
}

/// The bytes of the next request and its descriptors; `None` when the other end has closed.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<(&[u8], Vec<OwnedFd>)>> {
    let step = "receive a request";
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })
    .step(step)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let mut received: Vec<OwnedFd> = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            received.extend(descriptors);
        }
    }
    Ok(Some((&buffer[..message.bytes], received)))
}

/// As many descriptors as a request must come with.
pub fn exactly<const N: usize>(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N]> {
    <[OwnedFd; N]>::try_from(descriptors).map_err(|got| {
        LaunchError::new("receive a request", format!("{} descriptors came with it, not {N}", got.len()))
    })
}
