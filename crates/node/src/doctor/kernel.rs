//! What the kernel and its tools are made to do once, by small scripts in namespaces of their own.

use std::path::Path;

use tokio::process::Command;
use warren_runtime::cgroup::Hierarchies;

use super::{Check, DEADLINE};
use crate::lxcfs::with_options_kept;
use crate::template::CommandError;
use crate::template::contained::Contained;

/// Runs a script; it dies and its mounts go with the namespaces it runs in.
async fn script(folder: &Path, text: &str) -> Result<(), CommandError> {
    Contained::new("bash", DEADLINE).args(["-euc", text]).directory(folder).run().await.map(drop)
}

pub(super) async fn namespaces() -> Check {
    let all = "unshare --user --map-root-user --mount --pid --net --ipc --uts --cgroup --fork true";
    Check::of(
        "namespaces",
        script(Path::new("/"), all).await.map(|()| "user, mount, pid, network, ipc, uts and cgroup".into()),
        "sysctl -w user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1, \
         and inside a container run that one privileged",
    )
}

pub(super) async fn ext4(folder: &Path) -> Check {
    let text = "truncate -s 16M ext4.img; mke2fs -q -F -t ext4 ext4.img; mkdir -p ext4
                mount -o loop ext4.img ext4; echo works >ext4/file; sync -f ext4; grep -q works ext4/file";
    Check::of(
        "loop and ext4",
        script(folder, text).await.map(|()| "made, attached, mounted and written".into()),
        "apt-get install e2fsprogs mount; modprobe loop ext4",
    )
}

pub(super) async fn reflinks(folder: &Path) -> Check {
    let native = "head -c 65536 /dev/urandom >one; cp --reflink=always one two; cmp one two";
    if script(folder, native).await.is_ok() {
        return Check::ok("reflinks", "the data directory's file system has them");
    }
    let xfs =
        "truncate -s 512M xfs.img; mkfs.xfs -q -m reflink=1 xfs.img; mkdir -p xfs; mount -o loop xfs.img xfs
               head -c 65536 /dev/urandom >xfs/one; cp --reflink=always xfs/one xfs/two; cmp xfs/one xfs/two";
    Check::of(
        "reflinks",
        script(folder, xfs).await.map(|()| "in an XFS volume file, which the server makes itself".into()),
        "apt-get install xfsprogs; modprobe xfs; or put the data directory on XFS or btrfs",
    )
}

/// One transaction that adds and deletes: at no moment does anybody see the table.
pub(super) async fn firewall() -> Check {
    let table = format!("warren_doctor_{}", std::process::id());
    let text = format!(
        "nft -f - <<END
add table inet {table}
add chain inet {table} out {{ type nat hook postrouting priority srcnat; }}
add rule inet {table} out oifname \"lo\" masquerade
add chain inet {table} pass {{ type filter hook forward priority filter; }}
add rule inet {table} pass ct state established accept
delete table inet {table}
END"
    );
    if let Err(error) = script(Path::new("/"), &text).await {
        return Check::fail(
            "firewall",
            error.to_string(),
            "apt-get install nftables; modprobe -a nf_tables nft_chain_nat nft_masq",
        );
    }
    let chains = Command::new("nft").args(["-j", "list", "chains"]).kill_on_drop(true).output().await;
    match chains.ok().and_then(|chains| in_the_way(&chains.stdout)) {
        Some((chain, fix)) => Check::warn(
            "firewall",
            format!(
                "the chain {chain} drops what none of its rules accepts; if none accepts links named w*, nothing leaves sandboxes"
            ),
            &fix,
        ),
        None => Check::ok("firewall", "nftables takes filter and NAT rules"),
    }
}

/// A chain that drops by its policy what is a sandbox's, and rules that let it through. In those of iptables the server adds
/// them itself.
fn in_the_way(chains: &[u8]) -> Option<(String, String)> {
    let listed: serde_json::Value = serde_json::from_slice(chains).ok()?;
    let objects = listed["nftables"].as_array()?;
    objects.iter().map(|object| &object["chain"]).find_map(|chain| {
        let text = |field: &str| chain[field].as_str();
        let (family, table, hook) = (text("family")?, text("table")?, text("hook")?);
        let concerned = matches!(family, "ip" | "inet") && (family, table) != ("ip", "filter");
        if !concerned || text("policy") != Some("drop") {
            return None;
        }
        let chain = format!("{family} {table} {}", text("name")?);
        let rule = |matches: &str| format!("nft add rule {chain} {matches} accept");
        let fix = match hook {
            "forward" => {
                let answers = rule("oifname 'w*' ct state established,related");
                format!("{}; {answers}", rule("iifname 'w*'"))
            }
            "input" => rule("iifname 'w*' ct status dnat"),
            _ => return None,
        };
        Some((chain, fix))
    })
}

pub(super) async fn links() -> Check {
    // In a network namespace of its own, where a second one is hung on the other end.
    let text = "unshare --net bash -euc '
                    unshare --net sleep 15 & other=$!
                    while [ \"$(readlink /proc/$other/ns/net)\" = \"$(readlink /proc/self/ns/net)\" ]; do sleep 0.01; done
                    ip link add here type veth peer name there netns $other
                    ip addr add 192.0.2.1/30 dev here
                    ip link set here up
                    ip link del here
                    kill $other'";
    Check::of(
        "network links",
        script(Path::new("/"), text).await.map(|()| "a veth pair between two network namespaces".into()),
        "apt-get install iproute2; modprobe veth",
    )
}

/// Only a comfort: without it sandboxes see the host's memory and load.
pub(super) async fn lxcfs(folder: &Path, data_dir: &Path) -> Check {
    let text = "mkdir -p lxcfs; lxcfs --foreground --pidfile=\"$PWD/lxcfs.pid\" \"$PWD/lxcfs\" >lxcfs.log 2>&1 & server=$!
                for _ in $(seq 100); do
                    if grep -q ^MemTotal lxcfs/proc/meminfo 2>/dev/null; then exit 0; fi
                    kill -0 $server 2>/dev/null || break; sleep 0.05
                done; tail -n 2 lxcfs.log >&2; exit 1";
    let name = "lxcfs";
    let fix = "apt-get install lxcfs; modprobe fuse";
    if crate::template::contained::find_program(name).is_none() {
        return Check::warn(
            name,
            "not installed: programs in sandboxes see the host's memory in `free`",
            fix,
        );
    }
    if let Some(pid) = crate::lxcfs::stuck(&data_dir.join("run/lxcfs")).await {
        return Check::warn(
            name,
            "the one that sandboxes read through does not answer: whoever asks for memory or load in one waits",
            &format!("kill -9 {pid}; a server that runs does that by itself and starts another"),
        );
    }
    let tried = match Hierarchies::detect() {
        Ok(hierarchies) => with_options_kept(&hierarchies, script(folder, text)).await,
        Err(_) => script(folder, text).await,
    };
    match tried {
        Ok(()) => Check::ok(name, "answers with a sandbox's own memory"),
        Err(error) => {
            Check::warn(name, format!("programs in sandboxes see the host's memory in `free`: {error}"), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_another_firewall_that_drops_is_named_with_what_lets_sandboxes_through() {
        let chains = |family: &str, table: &str, hook: &str, policy: &str| {
            format!(
                r#"{{"nftables": [{{"metainfo": {{}}}}, {{"chain": {{"family": "inet", "table": "x", "name": "jumped"}}}}, {{"chain":
                {{"family": "{family}", "table": "{table}", "name": "c", "hook": "{hook}", "policy": "{policy}"}}}}]}}"#
            )
        };
        let found = |family, table, hook, policy| in_the_way(chains(family, table, hook, policy).as_bytes());
        let (chain, fix) = found("inet", "filter", "forward", "drop").unwrap();
        assert_eq!(chain, "inet filter c");
        assert!(fix.starts_with("nft add rule inet filter c iifname 'w*' accept; nft add rule"), "{fix}");
        assert!(found("inet", "filter", "input", "drop").is_some());
        for (family, table, hook, policy) in [
            ("ip", "filter", "forward", "drop"),
            ("inet", "filter", "forward", "accept"),
            ("inet", "filter", "output", "drop"),
            ("ip6", "filter", "forward", "drop"),
        ] {
            assert_eq!(found(family, table, hook, policy), None);
        }
        assert_eq!(in_the_way(b"not JSON"), None);
    }
}
