//! Making one slot.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};
use warren_guest_api::network::{GATEWAY_HARDWARE, INSIDE_HARDWARE, LINK, PROXY_PORT, SETTINGS};
use warren_netlink::Netlink;
use warren_runtime::network_namespace;

use super::{GATEWAY, INSIDE, Plan, RESOLVER};
use crate::dns;
use crate::egress::{Gateway, Session};

/// Links inside a slot: the kernel's first, and ours.
const LOOPBACK: u32 = 1;
const ETHERNET: u32 = 2;
const DEFAULT_MTU: u32 = 1500;

/// What this process listens on inside of a slot.
struct Sockets {
    questions: UdpSocket,
    long_questions: TcpListener,
    proxy: TcpListener,
}

/// A network namespace that is ready for a sandbox, or has one.
pub struct Slot {
    pub index: u16,
    namespace: OwnedFd,
    sockets: Option<Sockets>,
    /// Ends what is served in the slot with it.
    serving: Option<DropGuard>,
}

impl Slot {
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Answers the sandbox's questions for names, and those who take the gateway for a proxy, from now on.
    pub fn serve(&mut self, gateway: &Arc<Gateway>, session: &Arc<Session>) -> io::Result<()> {
        let Some(sockets) = self.sockets.take() else { return Ok(()) };
        let stop = CancellationToken::new();
        let names = dns::Served::new(session.clone(), gateway.clone());
        dns::serve(sockets.questions, sockets.long_questions, names, stop.clone())?;
        let proxy = tokio::net::TcpListener::from_std(sockets.proxy)?;
        tokio::spawn(gateway.clone().serve_proxy(proxy, session.clone(), stop.clone()));
        self.serving = Some(stop.drop_guard());
        Ok(())
    }

    /// Makes a new slot; blocks for some milliseconds.
    pub(crate) fn make(plan: &Plan, index: u16) -> io::Result<Self> {
        let link = plan.link(index);
        let mtu = uplink_mtu();
        let slot = on_its_own_thread(move || {
            network_namespace::make()?;
            let namespace = OwnedFd::from(fs::File::open("/proc/thread-self/ns/net")?);
            for (name, value) in SETTINGS {
                write_setting(name, value)?;
            }
            let netlink = Netlink::open()?;
            netlink.set_up(LOOPBACK)?;
            netlink.add_address(LOOPBACK, RESOLVER)?;
            netlink.add_pair(
                mtu,
                (LINK, ETHERNET, INSIDE_HARDWARE),
                (&link, GATEWAY_HARDWARE, std::process::id()),
            )?;
            netlink.add_address(ETHERNET, INSIDE)?;
            netlink.set_up(ETHERNET)?;
            netlink.add_neighbour(ETHERNET, GATEWAY, GATEWAY_HARDWARE)?;
            netlink.add_route(ETHERNET, GATEWAY)?;
            netlink.add_default_route(ETHERNET, GATEWAY)?;
            let sockets = listen()?;
            Ok(Self { index, namespace, sockets: Some(sockets), serving: None })
        })?;
        connect_to_host(plan, index)?;
        Ok(slot)
    }

    /// The slot that a running sandbox sits in, found by its PID 1.
    pub(crate) fn adopt(index: u16, pid: i32) -> io::Result<Self> {
        let namespace = OwnedFd::from(fs::File::open(format!("/proc/{pid}/ns/net"))?);
        let inside = namespace.try_clone()?;
        let sockets = on_its_own_thread(move || {
            network_namespace::join(inside.as_fd())?;
            listen()
        })?;
        Ok(Self { index, namespace, sockets: Some(sockets), serving: None })
    }
}

/// The host's end: an address to reach the slot by, and no IPv6.
fn connect_to_host(plan: &Plan, index: u16) -> io::Result<()> {
    let (link, address) = (plan.link(index), plan.outside(index));
    write_setting(&format!("ipv6/conf/{link}/disable_ipv6"), "1")?;
    // The gateway listens on 127.0.0.1, where the firewall turns connections to; it lets nothing else through to there.
    write_setting(&format!("ipv4/conf/{link}/route_localnet"), "1")?;
    let netlink = Netlink::open()?;
    let index = netlink.index(&link)?;
    netlink.set_up(index)?;
    netlink.add_route(index, address)?;
    // By the time a packet asks for its next hop the firewall has given it the address inside. A machine's slot would not
    // answer for that one: it has given it to the machine.
    netlink.add_neighbour(index, INSIDE, INSIDE_HARDWARE)
}

/// Largest packet that leaves this host in one piece. Larger ones from a sandbox would be dropped with a message that
/// does not always reach its sender.
pub fn uplink_mtu() -> u32 {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes
        .lines()
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>())
        .filter(|fields| fields.get(1) == Some(&"00000000"))
        .filter_map(|fields| fs::read_to_string(format!("/sys/class/net/{}/mtu", fields.first()?)).ok())
        .filter_map(|mtu| mtu.trim().parse().ok())
        .min()
        .unwrap_or(DEFAULT_MTU)
        // Below this the standards do not allow, above it nothing is gained.
        .clamp(576, DEFAULT_MTU)
}

fn listen() -> io::Result<Sockets> {
    let names = (RESOLVER, 53);
    let sockets = Sockets {
        questions: UdpSocket::bind(names)?,
        long_questions: TcpListener::bind(names)?,
        proxy: TcpListener::bind((RESOLVER, PROXY_PORT))?,
    };
    sockets.questions.set_nonblocking(true)?;
    sockets.long_questions.set_nonblocking(true)?;
    sockets.proxy.set_nonblocking(true)?;
    Ok(sockets)
}

/// A setting of the network namespace of this thread. A kernel without IPv6 has none of its settings.
fn write_setting(name: &str, value: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => {
            other.map_err(|error| io::Error::new(error.kind(), format!("could not set net/{name}: {error}")))
        }
    }
}

/// Namespaces belong to threads: whoever changes them must not be one that others' work runs on.
fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::Builder::new()
        .name("network-namespace".into())
        .spawn(work)?
        .join()
        .map_err(|_| io::Error::other("the thread that prepares a network slot panicked"))?
}
