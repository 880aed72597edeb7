//! Requests on a packet socket, with descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::plan::{LaunchError, MAX_REQUEST_BYTES, Result, Step};

/// Descriptors that may come with one request.
const MAX_DESCRIPTORS: usize = 4;

/// A pair of connected packet sockets.
pub(crate) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // Packets are at most as large as the buffers allow.
    for end in [&one, &other] {
        rustix::net::sockopt::set_socket_send_buffer_size(end, 2 * MAX_REQUEST_BYTES)?;
    }
    Ok((one, other))
}

pub(crate) fn send<const N: usize>(
    socket: impl AsFd,
    request: &impl Serialize,
    descriptors: [BorrowedFd<'_>; N],
) -> Result<()> {
    let step = "send a request";
    let request = serde_json::to_vec(request).step(step)?;
    if request.len() > MAX_REQUEST_BYTES {
        return Err(LaunchError::new(step, "it is too large"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(pushed, "the buffer is large enough");
    rustix::net::sendmsg(socket, &[IoSlice::new(&request)], &mut ancillary, SendFlags::NOSIGNAL)
        .map(drop)
        .step(step)
}

/// The bytes of the next request and its descriptors; `None` when the other end has closed.
pub(crate) fn receive<const N: usize>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> Result<Option<(&[u8], [OwnedFd; N])>> {
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
    let descriptors = <[OwnedFd; N]>::try_from(received)
        .map_err(|got| LaunchError::new(step, format!("{} descriptors came with it, not {N}", got.len())))?;
    Ok(Some((&buffer[..message.bytes], descriptors)))
}

pub(crate) fn decode<T: DeserializeOwned>(request: &[u8]) -> Result<T> {
    serde_json::from_slice(request).step("read a request")
}
