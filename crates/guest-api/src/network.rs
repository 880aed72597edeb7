//! The network as every sandbox sees it, whichever runtime it has.
//!
//! The same addresses in each, so that nothing in a sandbox has to change when it moves to another slot.

use std::net::Ipv4Addr;

/// The sandbox's own address, alone in its network.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// Where names are asked for.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
/// Where the same address takes requests for others, as an HTTP proxy does.
pub const PROXY_PORT: u16 = 3128;

/// Where programs inside ask what sandbox they are in, over plain HTTP. The same address as a cloud's, which it hides.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const METADATA_PORT: u16 = 80;

/// Hardware addresses of the gateway and the sandbox; nobody has to ask for them.
pub const GATEWAY_HARDWARE: [u8; 6] = [0x02, 0x77, 0x61, 0x72, 0, 1];
pub const INSIDE_HARDWARE: [u8; 6] = [0x02, 0x77, 0x61, 0x72, 0, 2];

/// Name of the sandbox's link.
pub const LINK: &str = "eth0";

/// Settings below `/proc/sys/net` of a sandbox's network. Ports and ping need no rights: in a container root has none
/// over its network.
pub const SETTINGS: [(&str, &str); 4] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
];
