//! The rules between sandboxes and everything else: one nftables table per node, replaced whole at each start and whenever
//! another program has removed of it (see [`super::upkeep`]).
//!
//! What a slot may do is its [`Gate`]: a set of the table that its link is in, or none.
//!
//! | gate | TCP | QUIC | the rest |
//! | --- | --- | --- | --- |
//! | open | out, but for what is denied | the same | the same |
//! | sealed | to the gateway | refused | out, but for what is denied |
//! | gated | to the gateway | dropped | dropped |
//! | closed | dropped | dropped | dropped |
//!
//! Names are asked for inside the slot and never pass here. What a sandbox asks about itself, at [`METADATA`], is turned
//! to a listener of this process whatever its gate: it ends on this host, so it says nothing of what may be reached. How many
//! of those connections there are, and how fast they come, is decided here, before they cost anything.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use warren_guest_api::network::{METADATA, METADATA_PORT};
use warren_types::{EgressMode, EgressPolicy};

use super::{INSIDE, Limits, Listeners, Plan, SLOTS};
use crate::reach::Reach;

/// Connections of one sandbox to its metadata that may be open at once, and begun in a second.
const METADATA_OPEN: u32 = 16;
const METADATA_RATE: u32 = 50;
const METADATA_BURST: u32 = 200;

/// How far the firewall lets a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gate {
    #[default]
    Open,
    /// It has secrets, which the gateway puts in.
    Sealed,
    /// What it may reach is a matter of names and requests, which the gateway reads.
    Gated,
    Closed,
}

impl Gate {
    #[must_use]
    pub fn of(policy: &EgressPolicy, sealed: bool) -> Self {
        match policy.mode {
            EgressMode::None => Self::Closed,
            EgressMode::Allowlist => Self::Gated,
            EgressMode::Open if sealed => Self::Sealed,
            EgressMode::Open => Self::Open,
        }
    }

    /// The set of the table for links with this gate.
    fn set(self) -> Option<&'static str> {
        match self {
            Self::Open => None,
            Self::Sealed => Some("sealed"),
            Self::Gated => Some("gated"),
            Self::Closed => Some("closed"),
        }
    }

    const SETS: [&str; 3] = ["sealed", "gated", "closed"];
}

/// What the rules of a node follow from.
pub(crate) struct Firewall {
    pub(crate) plan: Plan,
    pub(crate) limits: Limits,
    pub(crate) reach: Reach,
    pub(crate) listeners: Listeners,
}

impl Firewall {
    /// Installs the table, in place of the one that may be there. `gates` are those of sandboxes that are running, so that
    /// none of them is without its gate for a moment.
    pub(crate) async fn install(&self, gates: &BTreeMap<u16, Gate>) -> io::Result<()> {
        forward()?;
        let plan = &self.plan;
        let (table, links) = (plan.table(), plan.links());
        let set = |name: &str| {
            let inside: Vec<String> = gates
                .iter()
                .filter(|(_, gate)| gate.set() == Some(name))
                .map(|(slot, _)| format!("\"{}\"", plan.link(*slot)))
                .collect();
            let elements = if inside.is_empty() {
                String::new()
            } else {
                format!("elements = {{ {} }};", inside.join(", "))
            };
            format!("set {name} {{ type ifname; {elements} }}")
        };
        let (denied, opened) = self.reach.as_text();
        let opened = if opened.is_empty() { String::new() } else { format!("elements = {{ {opened} }};") };
        let Listeners { gateway, metadata } = self.listeners;
        let Limits { connections, megabytes_per_second: rate } = self.limits;
        let sources: Vec<String> =
            (0..SLOTS).map(|slot| format!("\"{}\" : {}", plan.link(slot), plan.outside(slot))).collect();
        // Declared before it is deleted, so that deleting works the first time too. All of it is one transaction.
        run(&format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
    map sources {{ type ifname : ipv4_addr; elements = {{ {sources} }} }}
    set denied {{ type ipv4_addr; flags interval; elements = {{ {denied} }} }}
    set opened {{ type ipv4_addr; flags interval; {opened} }}
    {sealed}
    {gated}
    {closed}
    # What each slot has under way, and how much of its rate it has used.
    set connections {{ type ipv4_addr; size 4096; flags dynamic; }}
    set up {{ type ipv4_addr; size 4096; flags dynamic; timeout 1m; }}
    set down {{ type ipv4_addr; size 4096; flags dynamic; timeout 1m; }}

    # What each slot has under way with its metadata, and how fast it comes.
    set asking {{ type ipv4_addr; size 4096; flags dynamic; }}
    set asked {{ type ipv4_addr; size 4096; flags dynamic; timeout 1m; }}

    # Of a slot that is closed, and to one: what it asks about itself, and the answers.
    chain closed_out {{
        ip daddr {METADATA} tcp dport {METADATA_PORT} return
        drop
    }}
    chain closed_in {{
        ip saddr {METADATA} tcp sport {METADATA_PORT} return
        drop
    }}
    # Before connection tracking: give the packet the address its slot has outside.
    chain enter {{
        type filter hook prerouting priority raw; policy accept;
        iifname != "{links}" accept
        iifname @closed jump closed_out
        ip saddr != {INSIDE} drop
        meta nfproto ipv6 drop
        ip saddr set iifname map @sources
        update @up {{ ip saddr limit rate over {rate} mbytes/second burst 16 mbytes }} drop
    }}
    # Where a connection was going to, the gateway asks the kernel.
    chain turn {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "{links}" ip daddr {METADATA} tcp dport {METADATA_PORT} dnat ip to 127.0.0.1:{metadata}
        iifname @sealed meta l4proto tcp dnat ip to 127.0.0.1:{gateway}
        iifname @gated meta l4proto tcp dnat ip to 127.0.0.1:{gateway}
    }}
    # The host itself answers nothing but what it asked for, and the gateway and the metadata to those who were turned there.
    chain host {{
        type filter hook input priority filter; policy accept;
        iifname != "{links}" accept
        ct state established,related accept
        ct status dnat ip daddr 127.0.0.1 tcp dport {gateway} accept
        ct status dnat ip daddr 127.0.0.1 tcp dport {metadata} jump metadata
        drop
    }}
    # Too fast: not heard, so whoever asks tries again a second later. Too many: refused.
    chain metadata {{
        update @asked {{ ip saddr limit rate over {METADATA_RATE}/second burst {METADATA_BURST} packets }} drop
        add @asking {{ ip saddr ct count over {METADATA_OPEN} }} reject with tcp reset
        accept
    }}
    chain pass {{
        type filter hook forward priority filter; policy accept;
        iifname "{links}" oifname "{links}" drop
        iifname @gated drop
        iifname @sealed meta l4proto tcp drop
        iifname @sealed udp dport {{ 443, 853 }} reject
        iifname "{links}" ct state new add @connections {{ ip saddr ct count over {connections} }} drop
        iifname "{links}" ip daddr @opened accept
        iifname "{links}" ip daddr @denied meta l4proto tcp reject with tcp reset
        iifname "{links}" ip daddr @denied drop
        iifname "{links}" accept
        oifname "{links}" ct state established,related accept
        oifname "{links}" drop
    }}
    chain source {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname != "{links}" ip saddr {first}-{last} masquerade
    }}
    # After everything else: give the packet the address its slot has inside.
    chain leave {{
        type filter hook postrouting priority 300; policy accept;
        oifname != "{links}" accept
        meta nfproto ipv6 drop
        oifname @closed jump closed_in
        update @down {{ ip daddr limit rate over {rate} mbytes/second burst 16 mbytes }} drop
        ip daddr set {INSIDE}
    }}
}}
"#,
            sources = sources.join(", "),
            sealed = set("sealed"),
            gated = set("gated"),
            closed = set("closed"),
            first = plan.outside(0),
            last = plan.outside(SLOTS - 1),
        ))
        .await
    }

    /// Gives a slot that gate in place of the one it had, in one step.
    pub(crate) async fn set_gate(&self, slot: u16, gate: Gate) -> io::Result<()> {
        let (table, link) = (self.plan.table(), self.plan.link(slot));
        let wanted = gate.set();
        let change = |set: &&str| {
            let add = format!("add element inet {table} {set} {{ \"{link}\" }}\n");
            // Added first, so that deleting it never fails for want of it.
            let delete = format!("{add}delete element inet {table} {set} {{ \"{link}\" }}\n");
            if wanted == Some(*set) { add } else { delete }
        };
        run(&Gate::SETS.iter().map(change).collect::<String>()).await
    }

    pub(crate) async fn remove(&self) -> io::Result<()> {
        let table = self.plan.table();
        run(&format!("table inet {table}\ndelete table inet {table}\n")).await
    }
}

/// Has the host pass packets on, without which nothing leaves a slot; whether it did not. It is off by default on most machines.
pub(crate) fn forward() -> io::Result<bool> {
    let forwarding = "/proc/sys/net/ipv4/ip_forward";
    let is_off = std::fs::read_to_string(forwarding)?.trim() == "0";
    if is_off {
        std::fs::write(forwarding, "1")?;
    }
    Ok(is_off)
}

async fn run(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("nft: {error}; install it with: apt-get install nftables"))
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nft refused the rules: {}", stderr.lines().next().unwrap_or_default())))
}
