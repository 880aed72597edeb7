//! The rules between sandboxes and everything else: one nftables table per node, replaced whole at each start.

use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{INSIDE, Plan, SLOTS};

/// Destinations no sandbox may reach: this network, private, shared, loopback, link-local (cloud metadata among them),
/// protocol assignments, our own slots, multicast and reserved. The documentation ranges stay open: networks behind
/// inspecting gateways are seen to use them.
const DENIED: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                      192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4";

/// Installs the table, in place of the one of an earlier start.
pub(crate) async fn install(plan: &Plan) -> io::Result<()> {
    // Off by default on most machines; without it nothing leaves a slot.
    let forwarding = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(forwarding)?.trim() == "0" {
        std::fs::write(forwarding, "1")?;
    }
    let (table, links) = (plan.table(), plan.links());
    let sources: Vec<String> =
        (0..SLOTS).map(|slot| format!("\"{}\" : {}", plan.link(slot), plan.outside(slot))).collect();
    // Declared before it is deleted, so that deleting works the first time too. All of it is one transaction.
    run(&format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
    map sources {{ type ifname : ipv4_addr; elements = {{ {sources} }} }}
    set denied {{ type ipv4_addr; flags interval; elements = {{ {DENIED} }} }}
    set disconnected {{ type ifname; }}

    # Before connection tracking: give the packet the address its slot has outside.
    chain enter {{
        type filter hook prerouting priority raw; policy accept;
        iifname != "{links}" accept
        iifname @disconnected drop
        ip saddr != {INSIDE} drop
        meta nfproto ipv6 drop
        ip saddr set iifname map @sources
    }}
    # The host itself answers nothing but what it asked for.
    chain host {{
        type filter hook input priority filter; policy accept;
        iifname != "{links}" accept
        ct state established,related accept
        drop
    }}
    chain pass {{
        type filter hook forward priority filter; policy accept;
        iifname "{links}" oifname "{links}" drop
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
        oifname @disconnected drop
        ip daddr set {INSIDE}
    }}
}}
"#,
        sources = sources.join(", "),
        first = plan.outside(0),
        last = plan.outside(SLOTS - 1),
    ))
    .await
}

pub(crate) async fn disconnect(plan: &Plan, slot: u16) -> io::Result<()> {
    run(&format!("add element inet {} disconnected {{ \"{}\" }}\n", plan.table(), plan.link(slot))).await
}

/// Undoes [`disconnect`]; does nothing for a slot that is connected.
pub(crate) async fn reconnect(plan: &Plan, slot: u16) -> io::Result<()> {
    let (table, link) = (plan.table(), plan.link(slot));
    // Added first, so that deleting it never fails for want of it.
    run(&format!(
        "add element inet {table} disconnected {{ \"{link}\" }}\ndelete element inet {table} disconnected {{ \"{link}\" }}\n"
    ))
    .await
}

pub(crate) async fn remove(plan: &Plan) -> io::Result<()> {
    let table = plan.table();
    run(&format!("table inet {table}\ndelete table inet {table}\n")).await
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
