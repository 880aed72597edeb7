//! Which kernel modules a machine needs, and in which order.
//!
//! Distributions make the dependency table when a kernel is installed; ours is only unpacked. Each module names what it
//! needs in its `.modinfo` section, as `depends=a,b`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Without these there is no sandbox. Those a kernel has built in are not among its files.
const NEEDED: &[&str] = &[
    // ext4 asks for it by a name that only an installed kernel resolves.
    "crc32c_generic",
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "ext4",
    "overlay",
];

/// What programs in a machine may want to use; loaded where there are such files, because a machine cannot load modules by
/// itself. For containers in a sandbox, mostly.
const USEFUL: &[&str] = &[
    "virtio_mem",
    "fuse",
    "tun",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "nft_fib_inet",
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_conntrack",
    "xt_nat",
    "xt_tcpudp",
    "xt_comment",
    "xt_mark",
];

/// Everything that decides the outcome, for naming what is kept of it.
pub(crate) fn recipe() -> String {
    format!("{} {}", NEEDED.join(","), USEFUL.join(","))
}

/// The files to load, each after those it needs.
///
/// # Errors
/// When `folder` cannot be read, or when a module is compressed and the program to unpack it is missing.
pub(crate) fn choose(
    folder: &Path,
    unpack: impl Fn(&Path) -> io::Result<Vec<u8>>,
) -> io::Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(folder, &mut files)?;
    let mut chosen = Vec::new();
    let mut seen = BTreeSet::new();
    for name in NEEDED.iter().chain(USEFUL) {
        visit(name, &files, &unpack, &mut seen, &mut chosen)?;
    }
    Ok(chosen)
}

/// A module to load.
pub(crate) struct Module {
    pub(crate) name: String,
    /// Not compressed.
    pub(crate) content: Vec<u8>,
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    unpack: &impl Fn(&Path) -> io::Result<Vec<u8>>,
    seen: &mut BTreeSet<String>,
    chosen: &mut Vec<Module>,
) -> io::Result<()> {
    let Some(path) = files.get(name) else { return Ok(()) };
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let content = unpack(path)?;
    for needed in depends(&content) {
        visit(&needed, files, unpack, seen, chosen)?;
    }
    chosen.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// Module files by name; a name may be spelled with either dash.
fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some((name, "ko" | "ko.xz" | "ko.zst")) =
            entry.file_name().to_str().and_then(|name| name.split_once('.'))
        {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// Names a module says it needs.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &module[start + KEY.len()..];
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_module_comes_after_what_it_needs_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, needs: &str| {
            fs::write(folder.path().join(name), format!("ELF\0license=GPL\0depends={needs}\0more\0"))
                .unwrap();
        };
        put("ext4.ko", "jbd2,mbcache");
        put("jbd2.ko", "");
        put("mbcache.ko", "");
        put("virtio-blk.ko", "virtio,virtio_ring");
        put("virtio.ko", "");
        put("virtio_ring.ko", "virtio");
        put("unasked.ko", "");
        let chosen = choose(folder.path(), |path| fs::read(path)).unwrap();
        let names: Vec<&str> = chosen.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_blk", "jbd2", "mbcache", "ext4"]);
    }
}
