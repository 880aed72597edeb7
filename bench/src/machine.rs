//! Names the machine the figures are from.

use std::path::Path;

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    cgroup: &'static str,
    system: String,
    /// Load over the last minute when the run began: other work on the machine.
    load: String,
}

// === impl Machine ===

impl Machine {
    pub(crate) fn read() -> Self {
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let system = read("/etc/os-release");
        let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
        Self {
            cpu: cpu.trim_start_matches(['\t', ' ', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mib: crate::process::meminfo("MemTotal").unwrap_or(0) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cgroup: cgroup(),
            system: system.trim_matches('"').to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let Self { cpu, cores, memory_mib, kernel, cgroup, system, load } = self;
        let memory = memory_mib.div_ceil(1024);
        let cpu = if cpu.is_empty() { "unnamed CPU" } else { cpu };
        format!(
            "{cpu}, {cores} cores, {memory} GiB memory, {system}, kernel {kernel}, cgroup {cgroup}; load {load} at the start"
        )
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn cgroup() -> &'static str {
    let controllers = |path: &str| !read(path).trim().is_empty();
    if controllers("/sys/fs/cgroup/cgroup.controllers") {
        "v2"
    } else if Path::new("/sys/fs/cgroup/unified").exists() {
        "v1 with an unused v2 tree (hybrid)"
    } else {
        "v1"
    }
}
