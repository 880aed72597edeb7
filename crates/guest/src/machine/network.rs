//! The machine's link, with the addresses that every sandbox has.

use std::fs;
use std::io;

use warren_guest_api::network::{GATEWAY, INSIDE, LINK, RESOLVER, SETTINGS};
use warren_netlink::Netlink;

use super::doing;

const LOOPBACK: u32 = 1;

pub(super) fn set_up() -> io::Result<()> {
    for (name, value) in SETTINGS {
        match fs::write(format!("/proc/sys/net/{name}"), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io::Error::new(error.kind(), format!("could not set net/{name}: {error}")));
            }
            _ => {}
        }
    }
    let netlink = Netlink::open()?;
    netlink.set_up(LOOPBACK)?;
    let link = doing("find the network link", netlink.index(LINK))?;
    netlink.add_address(link, INSIDE)?;
    netlink.set_up(link)?;
    // One hop away, whatever it is: the slot answers for both.
    for address in [GATEWAY, RESOLVER] {
        netlink.add_route(link, address)?;
        netlink.add_neighbour(link, address, warren_guest_api::network::GATEWAY_HARDWARE)?;
    }
    netlink.add_default_route(link, GATEWAY)
}

/// Follows the network the machine is connected to now.
pub(super) fn set_mtu(mtu: u32) -> io::Result<()> {
    let netlink = Netlink::open()?;
    netlink.set_mtu(netlink.index(LINK)?, mtu)
}
