//! Connecting a machine to its network slot.
//!
//! A slot's link has the sandbox's address, for a container that sits in the slot itself. A machine has an end of its own,
//! so here the slot becomes the hop in between: it gives the address up and passes packets on.
//!
//! ```text
//!   machine eth0 10.200.0.2 ─── tap ─── slot: forwards, resolver on lo ─── eth0 ═══ veth ─── the node's firewall
//! ```

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use warren_guest_api::network::{GATEWAY, GATEWAY_HARDWARE, INSIDE, INSIDE_HARDWARE, LINK};
use warren_netlink::Netlink;
use warren_runtime::sys;

const TAP: &str = "machine";

/// Makes the machine's end, in the network namespace of this process.
pub(crate) fn attach(mtu: u32) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    sys::make_tap(device.as_fd(), TAP)?;
    let netlink = Netlink::open()?;
    let (tap, link) = (netlink.index(TAP)?, netlink.index(LINK)?);
    netlink.set_hardware(tap, GATEWAY_HARDWARE)?;
    netlink.set_mtu(tap, mtu)?;
    netlink.set_up(tap)?;

    // Routes and neighbours of a link go with its last address.
    netlink.delete_address(link, INSIDE)?;
    netlink.add_neighbour(link, GATEWAY, GATEWAY_HARDWARE)?;
    netlink.add_route(link, GATEWAY)?;
    netlink.add_default_route(link, GATEWAY)?;
    netlink.add_route(tap, INSIDE)?;
    netlink.add_neighbour(tap, INSIDE, INSIDE_HARDWARE)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    Ok(device.into())
}
