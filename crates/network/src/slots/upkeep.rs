//! Keeps the node's rules in force beside other programs that write rules.
//!
//! Two things are common on machines that do more than run this node:
//!
//! - `nft flush ruleset`, the first line of most nftables.conf, removes the rules of everybody. The kernel tells of it, and the
//!   table is installed again, with the gates that sandboxes have by then.
//! - Docker and ufw make the `FORWARD` or `INPUT` chain of iptables drop what none of its rules accepts. A packet needs
//!   the consent of all chains, so nothing would leave a sandbox, and nothing reach the gateway. There, and only there, rules are
//!   appended that accept what comes from slots and goes back to them: behind all rules of the operator's, before the
//!   chain's policy. What sandboxes may reach is still decided by the node's own table.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tracing::{info, warn};
use warren_netlink::nftables::{self, Change, Event};
use warren_runtime::sys;

use super::Plan;

/// Whoever changes rules may do it in many transactions.
const SETTLES_IN: Duration = Duration::from_millis(20);
/// Containers that begin and end change rules too.
const OTHERS_SETTLE_IN: Duration = Duration::from_millis(500);
/// Longest wait for others that hold iptables' lock, in seconds.
const LOCK_PATIENCE: &str = "10";
const INET: u8 = 1;
const IPV4: u8 = 2;

/// What has changed that this node must do something about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Something of its table is gone.
    pub(super) ours: bool,
    /// The chains of iptables may be others now.
    pub(super) theirs: bool,
}

/// Hears of changes of the rules.
pub(super) struct Watch {
    socket: AsyncFd<OwnedFd>,
    table: String,
}

impl Watch {
    pub(super) fn begin(plan: &Plan) -> io::Result<Self> {
        Ok(Self { socket: sys::watch(nftables::listen()?, Interest::READABLE)?, table: plan.table() })
    }

    /// The next change that is of interest.
    pub(super) async fn next(&mut self) -> Changed {
        let mut changed = Changed::default();
        while changed == Changed::default() {
            if self.read_on(&mut changed).await.is_err() {
                changed = self.look().await;
            }
        }
        tokio::time::sleep(if changed.ours { SETTLES_IN } else { OTHERS_SETTLE_IN }).await;
        match nftables::read(&self.socket) {
            Ok(events) => {
                events.iter().for_each(|event| changed.note(event, &self.table));
                changed
            }
            Err(_) => self.look().await,
        }
    }

    /// For when more has changed than could be told. The chain is the last of the table.
    async fn look(&self) -> Changed {
        let found = output(Command::new("nft").args(["list", "chain", "inet", &self.table, "leave"])).await;
        Changed { ours: found.is_err(), theirs: true }
    }

    async fn read_on(&self, changed: &mut Changed) -> io::Result<()> {
        let mut readable = self.socket.readable().await?;
        let events = nftables::read(&self.socket);
        readable.clear_ready();
        events?.iter().for_each(|event| changed.note(event, &self.table));
        Ok(())
    }
}

impl Changed {
    fn note(&mut self, event: &Event, table: &str) {
        if event.family == INET && event.table == table {
            match event.change {
                // Only this node makes it, and always whole.
                Change::TableMade => self.ours = false,
                Change::Removed => self.ours = true,
                Change::ChainMade | Change::Other => {}
            }
        } else if event.family == IPV4 && event.table == "filter" {
            self.theirs |= event.change != Change::Other;
        }
    }
}

/// A chain of iptables and what of this node's passes it.
struct Passage {
    chain: &'static str,
    rules: Vec<Vec<String>>,
}

fn passages(plan: &Plan) -> [Passage; 2] {
    // iptables has another sign for "and whatever follows".
    let links = plan.links().replace('*', "+");
    let rule = |words: &[&str]| -> Vec<String> {
        words.iter().chain(&["-j", "ACCEPT"]).map(|word| (*word).to_owned()).collect()
    };
    let answers = ["-o", &links, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"];
    let turned = ["-i", &links, "-m", "conntrack", "--ctstate", "DNAT"];
    [
        Passage { chain: "FORWARD", rules: vec![rule(&["-i", &links]), rule(&answers)] },
        Passage { chain: "INPUT", rules: vec![rule(&turned)] },
    ]
}

/// Has what is the node's accepted by chains of iptables that would drop it by their policy.
pub(super) async fn pass_iptables(plan: &Plan) {
    for Passage { chain, rules } in passages(plan) {
        match drops(chain).await {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => {
                warn!(%error, chain, "could not find out whether iptables lets sandboxes through");
                continue;
            }
        }
        for rule in rules {
            if iptables("-C", chain, &rule).await.is_ok() {
                continue;
            }
            match iptables("-A", chain, &rule).await {
                Ok(()) => {
                    info!(chain, "iptables would have dropped packets of sandboxes; they are accepted now");
                }
                Err(error) => warn!(
                    %error,
                    chain,
                    "iptables drops packets of sandboxes; accept them with: iptables -A {chain} {}",
                    rule.join(" ")
                ),
            }
        }
    }
}

/// Takes back what [`pass_iptables`] has added.
pub(super) async fn leave_iptables(plan: &Plan) {
    for Passage { chain, rules } in passages(plan) {
        if !drops(chain).await.unwrap_or(false) {
            continue;
        }
        for rule in rules {
            let _ = iptables("-D", chain, &rule).await;
        }
    }
}

/// Whether a chain of iptables drops what no rule accepts. Asks nftables, because iptables makes its tables when it is asked.
async fn drops(chain: &str) -> io::Result<bool> {
    let listed = output(Command::new("nft").args(["-j", "list", "chains", "ip"])).await?;
    let listed: serde_json::Value = serde_json::from_slice(&listed)?;
    let chains = listed["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    Ok(chains
        .filter(|found| found["table"] == "filter" && found["name"] == chain)
        .any(|found| found["policy"] == "drop"))
}

async fn iptables(action: &str, chain: &str, rule: &[String]) -> io::Result<()> {
    let mut command = Command::new("iptables");
    command.args(["-w", LOCK_PATIENCE, action, chain]).args(rule);
    output(&mut command).await.map(drop)
}

async fn output(command: &mut Command) -> io::Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(stderr.lines().next().unwrap_or_default().to_owned()))
}
