//! What can be read off this host: who we are, how much room there is, which programs are there.

use std::path::{Path, PathBuf};

use super::Check;
use crate::template;

const MINIMUM_KERNEL: (u32, u32) = (5, 19);
const GIB: u64 = 1024 * 1024 * 1024;
/// Below this a server cannot hold its template and a few disks.
const DISK_NEEDED: u64 = 5 * GIB;
const DISK_WISHED: u64 = 20 * GIB;
const MEMORY_NEEDED: u64 = GIB;
const MEMORY_WISHED: u64 = 4 * GIB;

pub(super) fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("root", "running as root")
    } else {
        let detail = "sandboxes are made of mounts, cgroups and network namespaces, which only root can make; \
                      the checks that need it were not run";
        Check::fail("root", detail, "sudo warren doctor")
    }
}

pub(super) fn kernel_version() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match parse_version(release) {
        Some(version) if version >= MINIMUM_KERNEL => Check::ok("kernel", release),
        _ => {
            let (major, minor) = MINIMUM_KERNEL;
            let detail = format!("Linux {release}; id-mapped layers of an overlay need {major}.{minor}");
            Check::fail(
                "kernel",
                detail,
                "apt-get install linux-image-amd64, or upgrade to Debian 12 or Ubuntu 24.04",
            )
        }
    }
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn disk_space(data_dir: &Path) -> Check {
    let folder = existing(data_dir);
    let fix = "free some space, or choose another data directory with --data-dir";
    match rustix::fs::statvfs(&folder) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            graded(
                "disk space",
                free,
                DISK_NEEDED,
                DISK_WISHED,
                &format!(" free in {}", folder.display()),
                fix,
            )
        }
        Err(error) => Check::fail("disk space", format!("{}: {error}", folder.display()), fix),
    }
}

pub(super) fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let fix = "end programs that use it, or give this machine more";
    graded("memory", kib.saturating_mul(1024), MEMORY_NEEDED, MEMORY_WISHED, " available", fix)
}

fn graded(name: &'static str, have: u64, needed: u64, wished: u64, what: &str, fix: &str) -> Check {
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let have_text = format!("{:.1} GiB{what}", gib(have));
    if have < needed {
        Check::fail(name, format!("{have_text}, {:.0} GiB are needed", gib(needed)), fix)
    } else if have < wished {
        Check::warn(name, format!("{have_text}; {:.0} GiB or more are comfortable", gib(wished)), fix)
    } else {
        Check::ok(name, have_text)
    }
}

/// The base template, or what building it takes.
pub(super) fn template() -> Check {
    let name = "base template";
    let cache = template::cache_dir();
    if template::any_cached(&cache) {
        return Check::ok(name, format!("cached in {}", cache.display()));
    }
    for (program, package) in
        [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("unshare", "util-linux")]
    {
        if template::contained::find_program(program).is_none() {
            let detail = format!("not built yet, and `{program}` to build it is missing");
            return Check::fail(name, detail, &format!("apt-get install {package}"));
        }
    }
    if !template::keyring_has_suite() {
        let detail = "not built yet, and Debian trixie's keys to check its packages are missing";
        return Check::fail(name, detail, "apt-get install debian-archive-keyring");
    }
    Check::ok(name, format!("is built in {} on the first start, in a minute or two", cache.display()))
}

/// The path itself, or the nearest folder above it that is there.
pub(super) fn existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_of_all_kinds_are_read() {
        for (release, version) in [
            ("6.18.44-fc", (6, 18)),
            ("5.4.0-100-generic", (5, 4)),
            ("6.1.0-18-amd64", (6, 1)),
            ("10.0+", (10, 0)),
        ] {
            assert_eq!(parse_version(release), Some(version));
        }
        assert_eq!(parse_version("what"), None);
    }

    #[test]
    fn little_is_a_warning_and_too_little_a_failure() {
        let status = |have| graded("x", have, 10, 20, "", "").status;
        assert_eq!(
            [status(9), status(10), status(20)],
            [super::super::Status::Fail, super::super::Status::Warn, super::super::Status::Ok]
        );
    }
}
