//! The network of sandboxes.
//!
//! Every sandbox sits in a network namespace of its own, a *slot*, prepared before it is needed. Inside, all slots look
//! alike (`10.200.0.2`, gateway `10.200.0.1`, resolver `169.254.169.253`), so that nothing in a sandbox has to change
//! when it moves to another slot. Outside, each has an address of its own; the firewall swaps the two on the way.
//!
//! ```text
//!   sandbox ── eth0 10.200.0.2 ═══ veth w<tag>-<n> ── firewall: 10.200.0.2 ⇄ 198.18.x.y ── masquerade ── outside
//!                                                       └─ 169.254.169.254:80 ▶ the node, for what it asks about itself
//!              lo   169.254.169.253:53, :3128 ◀── sockets of this process: names, and the gateway for who asks for it
//! ```
//!
//! The namespace belongs to the host, not to the sandbox's user namespace: root inside cannot change an address, a route
//! or a rule. Private, loopback, link-local, shared and multicast ranges, other sandboxes and the host are out of
//! reach. A namespace is held by its descriptor and the sandbox's processes, so none outlives both; it is never
//! used twice.

mod firewall;
mod pool;
mod slot;
mod upkeep;

pub use firewall::Gate;
pub use pool::Pool;
pub use slot::{Slot, uplink_mtu as mtu};

use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use warren_guest_api::network::{GATEWAY, INSIDE, RESOLVER};

/// Slots of one node.
pub const SLOTS: u16 = 1024;
/// Nodes that can share a machine, each with addresses and host ids of its own.
const BLOCKS: u16 = 24;

/// First host id of all; above what distributions give to users and services.
const FIRST_ID: u32 = 0x1000_0000;
const IDS_PER_SLOT: u32 = 65536;

/// What one sandbox may take of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at once.
    pub connections: u32,
    /// Each way, in millions of bytes.
    pub megabytes_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        // Ten gigabits: on one's own machine the wire is the limit, until somebody says otherwise.
        Self { connections: 4096, megabytes_per_second: 1250 }
    }
}

/// Ports of 127.0.0.1 that connections of slots are turned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listeners {
    pub gateway: u16,
    /// Answers what sandboxes ask about themselves.
    pub metadata: u16,
}

/// The names, addresses and ids of a node's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    tag: String,
    block: u16,
}

impl Plan {
    pub fn new(tag: String, block: u16) -> Self {
        Self { tag, block: block % BLOCKS }
    }

    /// Name of the host's end of a slot. At most 13 bytes; the kernel allows 15.
    pub fn link(&self, slot: u16) -> String {
        format!("w{}-{slot}", self.tag)
    }

    fn links(&self) -> String {
        format!("w{}-*", self.tag)
    }

    fn table(&self) -> String {
        format!("warren_{}", self.tag)
    }

    /// Address by which the host knows a slot, in 198.18.0.0/15, which is not routed anywhere else.
    pub fn outside(&self, slot: u16) -> Ipv4Addr {
        let base = u32::from(Ipv4Addr::new(198, 18, 0, 0));
        Ipv4Addr::from(base + u32::from(self.block) * u32::from(SLOTS) + u32::from(slot))
    }

    /// First of the host ids of the sandbox in a slot.
    pub fn id_base(&self, slot: u16) -> u32 {
        FIRST_ID + (u32::from(self.block) * u32::from(SLOTS) + u32::from(slot)) * IDS_PER_SLOT
    }
}

/// A block of addresses and ids that no other node of this network namespace takes while this is held. Routes tell of nodes whose
/// sandboxes run, but not of one that starts at the same time: so each has a name of the kernel's, which goes with its holder.
#[derive(Debug)]
pub struct Claim {
    pub block: u16,
    _name: UnixListener,
}

impl Claim {
    /// That block, unless another node has it.
    pub fn of(block: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("warren-network-block-{block}")).ok()?;
        UnixListener::bind_addr(&name).ok().map(|name| Self { block, _name: name })
    }

    /// The first that no other node has and that no route on this machine leads to, from one on that depends on the tag.
    pub fn first(tag: &str) -> Option<Self> {
        let start = first_choice(tag);
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        let taken = blocks_in_use(&routes);
        let mut free = (0..BLOCKS).map(|step| (start + step) % BLOCKS).filter(|block| !taken.contains(block));
        free.find_map(Self::of)
    }
}

/// The block that a node tries first, and has when none is free.
pub fn first_choice(tag: &str) -> u16 {
    u16::from_str_radix(tag.get(..4).unwrap_or_default(), 16).unwrap_or_default() % BLOCKS
}

fn blocks_in_use(routes: &str) -> Vec<u16> {
    let base = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    routes
        .lines()
        .filter_map(|line| u32::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .filter_map(|destination| destination.swap_bytes().checked_sub(base))
        .filter_map(|offset| u16::try_from(offset / u32::from(SLOTS)).ok())
        .filter(|block| *block < BLOCKS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_all_blocks_are_apart_and_ids_fit() {
        let last = Plan::new("ffffff".into(), BLOCKS - 1);
        assert!(last.id_base(SLOTS - 1).checked_add(IDS_PER_SLOT).unwrap() < 1 << 31);
        assert_eq!(last.outside(SLOTS - 1), Ipv4Addr::new(198, 18, 95, 255));
        assert!(last.link(SLOTS - 1).len() < 16);
        let first = Plan::new("000000".into(), 0);
        assert_eq!(
            first.id_base(0) + u32::from(SLOTS) * IDS_PER_SLOT,
            Plan::new("000000".into(), 1).id_base(0)
        );
    }

    #[test]
    fn nodes_that_start_at_once_have_blocks_of_their_own() {
        let (one, two) = (Claim::first("7763b6").unwrap(), Claim::first("8b2b39").unwrap());
        assert_eq!(first_choice("7763b6"), first_choice("8b2b39"));
        assert_ne!(one.block, two.block);
        assert!(Claim::of(one.block).is_none());
        let block = two.block;
        drop(two);
        assert!(Claim::of(block).is_some());
    }

    #[test]
    fn a_block_that_is_routed_is_not_chosen() {
        // 198.18.4.7 is the eighth slot of block 1.
        let routes = "Iface\tDestination\tGateway\nwabc-7\t070412C6\t00000000\n";
        assert_eq!(blocks_in_use(routes), [1]);
    }
}
