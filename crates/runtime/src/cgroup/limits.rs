//! Limits of CPU and memory, as a sandbox starts and while it runs, and what it uses of its memory.

use std::fs;
use std::io;
use std::path::Path;

use super::{Cgroup, CgroupError, Result, Version, read, write, write_if_there};

const CPU_PERIOD_US: u64 = 100_000;

/// In version 1 buffers of network sockets are no part of the limit of memory, and without one of their own only all of the
/// host together is limited. A group gets this share of its memory for them, in these bounds.
const SOCKETS_SHARE: u64 = 16;
const SOCKETS_LEAST: u64 = 64 << 20;
const SOCKETS_MOST: u64 = 256 << 20;

impl Cgroup {
    /// Changes the limits of a group that is in use. Memory first: it is the one that may be refused, with
    /// [`CgroupError::InUse`], and then nothing has changed.
    pub fn resize(&self, cpu_count: u32, cpus: &[u32], memory_bytes: u64) -> Result<()> {
        self.resize_memory(memory_bytes)?;
        self.limit_cpu(cpu_count, cpus)
    }

    /// Bytes that cannot be taken back without harm: everything but caches of files. 0 when the group is gone.
    #[must_use]
    pub fn memory_in_use(&self) -> u64 {
        let Some((version, folder)) = self.hierarchies.controller("memory", &self.path) else { return 0 };
        let (usage, cache) = match version {
            Version::Two => ("memory.current", "file"),
            Version::One => ("memory.usage_in_bytes", "total_cache"),
        };
        let shared = if version == Version::Two { "shmem" } else { "total_shmem" };
        let usage = fs::read_to_string(folder.join(usage)).ok().and_then(|text| text.trim().parse().ok());
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let figure = |name| figure(&stat, name).unwrap_or(0);
        // Files in memory (`/dev/shm`) count as cache there, but have nowhere else to be.
        usage.unwrap_or(0_u64).saturating_sub(figure(cache).saturating_sub(figure(shared)))
    }

    /// Bytes that it has written to files and that are in memory alone. 0 when the group is gone.
    #[must_use]
    pub fn unwritten_bytes(&self) -> u64 {
        let Some((version, folder)) = self.hierarchies.controller("memory", &self.path) else { return 0 };
        let names = match version {
            Version::Two => ["file_dirty", "file_writeback"],
            Version::One => ["total_dirty", "total_writeback"],
        };
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        names.into_iter().filter_map(|name| figure(&stat, name)).sum()
    }

    pub(super) fn limit_cpu(&self, cpu_count: u32, cpus: &[u32]) -> Result<()> {
        let quota = u64::from(cpu_count) * CPU_PERIOD_US;
        match self.hierarchies.controller("cpu", &self.path) {
            Some((Version::Two, folder)) => {
                write(&folder.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))?;
            }
            Some((Version::One, folder)) => {
                write(&folder.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
                write(&folder.join("cpu.cfs_quota_us"), &quota.to_string())?;
            }
            None => {}
        }
        let Some((version, folder)) = self.hierarchies.controller("cpuset", &self.path) else {
            return Ok(());
        };
        let list = match version {
            Version::One => {
                let parent = folder.parent().expect("a group is below the root");
                write(&folder.join("cpuset.mems"), read(&parent.join("cpuset.mems"))?.trim())?;
                if cpus.is_empty() {
                    read(&parent.join("cpuset.cpus"))?.trim().to_owned()
                } else {
                    list(cpus)
                }
            }
            // An empty line means whatever the parent has.
            Version::Two if cpus.is_empty() => "\n".to_owned(),
            Version::Two => list(cpus),
        };
        write(&folder.join("cpuset.cpus"), &list)
    }

    pub(super) fn limit_memory(&self, bytes: u64) -> Result<()> {
        self.limit_sockets(bytes)?;
        let bytes = bytes.to_string();
        match self.hierarchies.controller("memory", &self.path) {
            Some((Version::Two, folder)) => {
                write(&folder.join("memory.max"), &bytes)?;
                write_if_there(&folder.join("memory.swap.max"), "0")
            }
            Some((Version::One, folder)) => {
                write(&folder.join("memory.limit_in_bytes"), &bytes)?;
                write_if_there(&folder.join("memory.memsw.limit_in_bytes"), &bytes)
            }
            None => Ok(()),
        }
    }

    /// Before a socket is made: those that are there already are not counted.
    fn limit_sockets(&self, memory_bytes: u64) -> Result<()> {
        match self.hierarchies.controller("memory", &self.path) {
            Some((Version::One, folder)) => {
                let bytes = (memory_bytes / SOCKETS_SHARE).clamp(SOCKETS_LEAST, SOCKETS_MOST);
                write_if_there(&folder.join("memory.kmem.tcp.limit_in_bytes"), &bytes.to_string())
            }
            // Part of the limit of memory.
            Some((Version::Two, _)) | None => Ok(()),
        }
    }

    fn resize_memory(&self, limit: u64) -> Result<()> {
        let used = self.memory_in_use();
        if used > limit {
            return Err(CgroupError::InUse { used, limit });
        }
        match self.hierarchies.controller("memory", &self.path) {
            Some((Version::Two, folder)) => self.resize_unified(&folder, limit),
            Some((Version::One, folder)) => {
                self.resize_legacy(&folder, limit)?;
                // More may be in use at the moment; then it stays as it was.
                let _ = self.limit_sockets(limit);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Version 2 makes room by ending processes, so the room is made first.
    fn resize_unified(&self, folder: &Path, limit: u64) -> Result<()> {
        let current: u64 = read(&folder.join("memory.current"))?.trim().parse().unwrap_or(0);
        if current > limit {
            // Fails when not all of it could be taken back, and on kernels before 5.19.
            let _ = write(&folder.join("memory.reclaim"), &(current - limit).to_string());
            let used: u64 = read(&folder.join("memory.current"))?.trim().parse().unwrap_or(0);
            if used > limit {
                return Err(CgroupError::InUse { used, limit });
            }
        }
        write(&folder.join("memory.max"), &limit.to_string())
    }

    /// Version 1 refuses what does not fit, and wants the limit with swap to be the larger of the two at any moment.
    fn resize_legacy(&self, folder: &Path, limit: u64) -> Result<()> {
        let before: u64 = read(&folder.join("memory.limit_in_bytes"))?.trim().parse().unwrap_or(u64::MAX);
        let (memory, with_swap) =
            (folder.join("memory.limit_in_bytes"), folder.join("memory.memsw.limit_in_bytes"));
        let text = limit.to_string();
        if limit >= before {
            write_if_there(&with_swap, &text)?;
            return write(&memory, &text);
        }
        match write(&memory, &text) {
            Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {
                Err(CgroupError::InUse { used: self.memory_in_use().max(limit + 1), limit })
            }
            Err(error) => Err(error),
            Ok(()) => write_if_there(&with_swap, &text),
        }
    }
}

fn list(cpus: &[u32]) -> String {
    let cpus: Vec<String> = cpus.iter().map(u32::to_string).collect();
    cpus.join(",")
}

/// What a `memory.stat` says under a name.
fn figure(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Hierarchies;
    use super::*;

    #[test]
    fn buffers_of_sockets_have_a_limit_in_version_1_too() {
        let root = std::env::temp_dir().join(format!("warren-cgroup-sockets-{}", std::process::id()));
        let folder = root.join("nodes/one");
        fs::create_dir_all(&folder).unwrap();
        let hierarchies = Hierarchies {
            unified: root.join("unified"),
            unified_controllers: Vec::new(),
            legacy: BTreeMap::from([("memory".to_owned(), root.clone())]),
        };
        let group = hierarchies.group("nodes", "one");
        for (memory, sockets) in [(1 << 30, 64 << 20), (2 << 30, 128 << 20), (16 << 30, 256 << 20_u64)] {
            for file in ["memory.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"] {
                fs::write(folder.join(file), "").unwrap();
            }
            group.limit_memory(memory).unwrap();
            let read = |file| fs::read_to_string(folder.join(file)).unwrap();
            assert_eq!(read("memory.limit_in_bytes"), memory.to_string());
            assert_eq!(read("memory.kmem.tcp.limit_in_bytes"), sockets.to_string());
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
