//! Cgroups, version 2, version 1, and both mixed.
//!
//! Every sandbox has one group of the same name in each hierarchy that is used. The version 2 hierarchy is always one of
//! them, controllers or not: inside the sandbox it is the root of the cgroup namespace, handed over to the guest
//! agent to make a group per command in it, and `cgroup.kill` on it ends everything. Limits are set where their
//! controller is: in version 2 on the very group the guest sees (its files stay the host's), in version 1 in
//! hierarchies the guest cannot see.

mod limits;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Controllers that limits need.
pub const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "cpuset"];

const SUBTREE_CONTROL: &str = "cgroup.subtree_control";
/// Below the root of a container's tree: what was in the root before. systemd's name for the group of process 1, which
/// programs that look for the root by that process know to leave out (lxcfs).
const REST: &str = "init.scope";
/// Processes of the root start others while they are moved, and a thread that is ending cannot be moved: it keeps the root busy
/// until it has ended, with all it takes down (mounts). About a second.
const HAND_OUT_TRIES: u32 = 100;
const HAND_OUT_PAUSE: Duration = Duration::from_millis(10);

/// Groups that a sandbox may have below its own. Its agent makes one for each command and terminal, which is there for as long as
/// a process in it, and of these there can be 4096.
const MOST_GROUPS: u32 = 4352;
const DEEPEST_GROUP: u32 = 32;

/// What a sandbox may use.
#[derive(Debug, Clone)]
pub struct Limits {
    pub cpu_count: u32,
    /// CPUs it may run on; empty = all.
    pub cpus: Vec<u32>,
    pub memory_bytes: u64,
    pub pids: u32,
    /// The block device of its disk, as `major:minor`.
    pub disk_device: Option<String>,
    /// Bytes per second it may read and write on its disk, each.
    pub io_bytes_per_second: u64,
    /// Operations per second it may read and write on its disk, each.
    pub io_operations_per_second: u64,
}

/// Where this host keeps its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Mount point of the version 2 tree.
    pub unified: PathBuf,
    /// Controllers of the version 2 tree.
    pub unified_controllers: Vec<String>,
    /// Mount points of version 1 controllers, by the version 2 name (`io`, not `blkio`).
    pub legacy: BTreeMap<String, PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "this host has no cgroup version 2 tree; mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    NoUnifiedTree,
    #[error("could not read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("could not write {value:?} to {path}")]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("could not make the cgroup {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("could not remove the cgroup {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("{used} bytes of memory are in use, more than the limit of {limit} that was asked for")]
    InUse { used: u64, limit: u64 },
    #[error("the change was interrupted: {0}")]
    Interrupted(String),
}

type Result<T> = std::result::Result<T, CgroupError>;

impl Hierarchies {
    /// Finds them among this process's mounts.
    pub fn detect() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let text =
            fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.into(), source })?;
        let (unified, legacy) = parse_mounts(&text);
        let unified = unified.ok_or(CgroupError::NoUnifiedTree)?;
        let controllers = read(&unified.join("cgroup.controllers"))?;
        Ok(Self {
            unified,
            unified_controllers: controllers.split_whitespace().map(Into::into).collect(),
            legacy,
        })
    }

    /// Makes the group that all sandboxes of a node live under and lets it hand out its controllers.
    pub fn ensure_parent(&self, parent: &str) -> Result<()> {
        let wanted: Vec<String> = CONTROLLERS
            .iter()
            .filter(|name| self.unified_controllers.iter().any(|have| have == *name))
            .map(|name| format!("+{name}"))
            .collect();
        let group = self.unified.join(parent);
        create(&group)?;
        if !wanted.is_empty() {
            self.hand_out(&group, &wanted.join(" "))?;
        }
        for (controller, root) in &self.legacy {
            let group = root.join(parent);
            create(&group)?;
            if controller == "cpuset" {
                // A new version 1 cpuset is empty and admits nobody.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    write(&group.join(file), read(&root.join(file))?.trim())?;
                }
            }
        }
        Ok(())
    }

    /// Has the version 2 tree give `controllers` to `group` and `group` to those below it.
    fn hand_out(&self, group: &Path, controllers: &str) -> Result<()> {
        let mut tries = 0;
        loop {
            if tries > 1 {
                std::thread::sleep(HAND_OUT_PAUSE);
            }
            let handed = write(&self.unified.join(SUBTREE_CONTROL), controllers)
                .and_then(|()| write(&group.join(SUBTREE_CONTROL), controllers));
            tries += 1;
            match handed {
                Err(CgroupError::Write { source, path, .. }) if tries < HAND_OUT_TRIES => {
                    match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                        Some(rustix::io::Errno::BUSY) if path.parent() == Some(&self.unified) => {
                            self.clear_root()?;
                        }
                        // Whoever else looks after the root (systemd) took them back in between. Once they are given on
                        // below it, that is refused.
                        Some(rustix::io::Errno::NOENT) => {}
                        _ => return Err(CgroupError::Write { path, value: controllers.into(), source }),
                    }
                }
                other => return other,
            }
        }
    }

    /// Moves the processes of the tree's root into a group of their own. In a container the root is a group like any other, and
    /// such a group has processes or gives controllers on, not both.
    fn clear_root(&self) -> Result<()> {
        let rest = self.unified.join(REST);
        create(&rest)?;
        for pid in read(&self.unified.join("cgroup.procs"))?.lines() {
            match write(&rest.join("cgroup.procs"), pid) {
                // It has ended since.
                Err(CgroupError::Write { source, .. })
                    if source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                moved => moved?,
            }
        }
        Ok(())
    }

    /// The options the version 2 tree is mounted with. There is one set for the whole host, however often it is mounted.
    pub fn options(&self) -> Result<Vec<String>> {
        let path = Path::new("/proc/self/mountinfo");
        let text =
            fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.into(), source })?;
        Ok(unified_options(&text))
    }

    /// Makes moving processes between groups quick at the price of slightly slower forks: without it, the first move
    /// after a pause waits tens of milliseconds for every CPU of the host (Linux 6.1 and later have the choice).
    pub fn favour_moves(&self) -> Result<()> {
        self.keep_options(&["favordynmods".to_owned()])
    }

    /// Sees to it that the tree has these options beside those it has.
    pub fn keep_options(&self, wanted: &[String]) -> Result<()> {
        use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};
        use std::os::fd::AsFd;
        let mut options = self.options()?;
        let missing: Vec<String> =
            wanted.iter().filter(|option| !options.contains(option)).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let value = missing.join(",");
        options.extend(missing);
        let reconfigure = || {
            let picked = fspick(rustix::fs::CWD, &self.unified, FsPickFlags::FSPICK_CLOEXEC)?;
            // What is not named again would be switched off.
            options.iter().try_for_each(|option| fsconfig_set_flag(picked.as_fd(), option.as_str()))?;
            fsconfig_reconfigure(picked.as_fd())
        };
        reconfigure().map_err(|error: rustix::io::Errno| CgroupError::Write {
            path: self.unified.clone(),
            value,
            source: error.into(),
        })
    }

    /// Names of the groups under `parent`, in whichever hierarchy they are left.
    pub fn list(&self, parent: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for root in self.roots() {
            let folder = root.join(parent);
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(CgroupError::Read { path: folder, source }),
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && let Ok(name) = entry.file_name().into_string()
                {
                    names.push(name);
                }
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Removes the group made by [`Self::ensure_parent`]; it must have no children left.
    pub fn remove_parent(&self, parent: &str) -> Result<()> {
        self.roots().try_for_each(|root| remove(&root.join(parent)))
    }

    #[must_use]
    pub fn group(&self, parent: &str, name: &str) -> Cgroup {
        Cgroup { hierarchies: self.clone(), path: Path::new(parent).join(name) }
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.unified).chain(self.legacy.values())
    }

    /// The folder and the name prefix of a controller's files, wherever it is.
    fn controller(&self, name: &str, group: &Path) -> Option<(Version, PathBuf)> {
        if let Some(root) = self.legacy.get(name) {
            return Some((Version::One, root.join(group)));
        }
        self.unified_controllers
            .iter()
            .any(|have| have == name)
            .then(|| (Version::Two, self.unified.join(group)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The group of one sandbox.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    path: PathBuf,
}

impl Cgroup {
    /// Name of the group of all sandboxes of its node, and its own in there.
    #[must_use]
    pub fn names(&self) -> (String, String) {
        let name = |path: Option<&std::ffi::OsStr>| path.unwrap_or_default().to_string_lossy().into_owned();
        (name(self.path.parent().map(Path::as_os_str)), name(self.path.file_name()))
    }

    /// Makes the group and sets its limits.
    pub fn create(&self, limits: &Limits) -> Result<()> {
        for root in self.hierarchies.roots() {
            create(&root.join(&self.path))?;
        }
        self.limit_cpu(limits.cpu_count, &limits.cpus)?;
        self.limit_memory(limits.memory_bytes)?;
        if let Some((_, folder)) = self.hierarchies.controller("pids", &self.path) {
            write(&folder.join("pids.max"), &limits.pids.to_string())?;
        }
        self.limit_io(limits)
    }

    fn limit_io(&self, limits: &Limits) -> Result<()> {
        let Some(device) = &limits.disk_device else { return Ok(()) };
        let (bytes, operations) = (limits.io_bytes_per_second, limits.io_operations_per_second);
        match self.hierarchies.controller("io", &self.path) {
            Some((Version::Two, folder)) => write(
                &folder.join("io.max"),
                &format!("{device} rbps={bytes} wbps={bytes} riops={operations} wiops={operations}"),
            ),
            Some((Version::One, folder)) => {
                for (file, value) in [
                    ("blkio.throttle.read_bps_device", bytes),
                    ("blkio.throttle.write_bps_device", bytes),
                    ("blkio.throttle.read_iops_device", operations),
                    ("blkio.throttle.write_iops_device", operations),
                ] {
                    write_if_there(&folder.join(file), &format!("{device} {value}"))?;
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Moves a process into the group, in every hierarchy; children that it has later follow.
    pub fn admit(&self, pid: i32) -> Result<()> {
        let pid = pid.to_string();
        self.hierarchies.roots().try_for_each(|root| write(&root.join(&self.path).join("cgroup.procs"), &pid))
    }

    /// Moves this process into the group.
    pub fn enter(&self) -> Result<()> {
        self.admit(0)
    }

    /// Makes the group in the version 2 tree alone, without limits, and moves a process there: out of the group of the service
    /// that started it, which would end it with itself.
    pub fn shelter(&self, pid: i32) -> Result<()> {
        let folder = self.hierarchies.unified.join(&self.path);
        create(&folder)?;
        write(&folder.join("cgroup.procs"), &pid.to_string())
    }

    /// Lets host id `id` make groups below this one and move processes among them. The limits stay ours, that of groups too:
    /// each takes memory of the host, which in version 1 counts nowhere.
    pub fn delegate(&self, id: u32) -> Result<()> {
        let folder = self.hierarchies.unified.join(&self.path);
        write_if_there(&folder.join("cgroup.max.descendants"), &MOST_GROUPS.to_string())?;
        write_if_there(&folder.join("cgroup.max.depth"), &DEEPEST_GROUP.to_string())?;
        for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            let path = folder.join(name);
            std::os::unix::fs::chown(&path, Some(id), Some(id)).map_err(|source| CgroupError::Write {
                path,
                value: format!("owner {id}"),
                source,
            })?;
        }
        Ok(())
    }

    /// Ends every process of the group and of those below it.
    pub fn kill(&self) -> Result<()> {
        write_if_there(&self.hierarchies.unified.join(&self.path).join("cgroup.kill"), "1")
    }

    /// Asks every process of the group and of those below it to stop where it is; [`Self::is_frozen`] says when all have.
    pub fn freeze(&self) -> Result<()> {
        write(&self.freezer(), "1")
    }

    /// Lets them go on. One that was not frozen, or is gone, stays as it is.
    pub fn thaw(&self) -> Result<()> {
        write_if_there(&self.freezer(), "0")
    }

    /// Whether every process of the group and of those below it stands still.
    pub fn is_frozen(&self) -> Result<bool> {
        is_frozen(&self.hierarchies.unified.join(&self.path))
    }

    fn freezer(&self) -> PathBuf {
        self.hierarchies.unified.join(&self.path).join("cgroup.freeze")
    }

    /// Whether a process is left in the group or below it.
    pub fn is_populated(&self) -> Result<bool> {
        let path = self.hierarchies.unified.join(&self.path).join("cgroup.events");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }

    /// Processes of the groups below this one: what commands and terminals have started.
    pub fn processes_below(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for folder in children(&self.hierarchies.unified.join(&self.path))? {
            collect_processes(&folder, &mut pids)?;
        }
        Ok(pids)
    }

    /// How often the kernel ended one of its processes for want of memory.
    #[must_use]
    pub fn out_of_memory_kills(&self) -> u64 {
        let file = match self.hierarchies.controller("memory", &self.path) {
            Some((Version::Two, folder)) => folder.join("memory.events"),
            Some((Version::One, folder)) => folder.join("memory.oom_control"),
            None => return 0,
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Processes and threads in it, those of the groups below included. 0 when the group is gone.
    #[must_use]
    pub fn processes(&self) -> u64 {
        let Some((_, folder)) = self.hierarchies.controller("pids", &self.path) else { return 0 };
        let count = fs::read_to_string(folder.join("pids.current"));
        count.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether `pid` is in this group or below it.
    #[must_use]
    pub fn contains(&self, pid: i32) -> bool {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
        let wanted = Path::new("/").join(&self.path);
        text.lines()
            .filter_map(|line| line.strip_prefix("0::"))
            .any(|path| Path::new(path).starts_with(&wanted))
    }

    /// Removes the group and those below it from every hierarchy. Nothing may be running in it.
    pub fn remove(&self) -> Result<()> {
        self.hierarchies.roots().try_for_each(|root| remove(&root.join(&self.path)))
    }
}

/// Looks at every group itself: of one that has both processes and groups below it, the kernel says `frozen 1` as soon as
/// its own processes stand still, and again as soon as the groups below do. The agent stands still at once, while a command
/// below it may still be in the middle of a write.
fn is_frozen(folder: &Path) -> Result<bool> {
    let path = folder.join("cgroup.events");
    match fs::read_to_string(&path) {
        Ok(events) if events.lines().any(|line| line == "frozen 1") => {}
        Ok(_) => return Ok(false),
        // Gone since it was listed, and everybody in it.
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_removed(&error) => return Ok(true),
        Err(source) => return Err(CgroupError::Read { path, source }),
    }
    for child in children(folder)? {
        if !is_frozen(&child)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What reading a file of a group says that was removed after the file was opened.
fn is_removed(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn collect_processes(folder: &Path, pids: &mut Vec<i32>) -> Result<()> {
    match fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // Gone since it was listed, or a threaded group: its processes are listed above it.
        Err(_) => return Ok(()),
    }
    children(folder)?.iter().try_for_each(|child| collect_processes(child, pids))
}

fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(CgroupError::Read { path: folder.into(), source }),
    };
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

/// Removes a group from the leaves up; the guest may have made any tree below its own.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for child in children(folder)? {
        remove(&child)?;
    }
    match fs::remove_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CgroupError::Remove { path: folder.into(), source }),
    }
}

fn create(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(CgroupError::Create { path: path.into(), source }),
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.into(), source })
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| CgroupError::Write { path: path.into(), value: value.into(), source })
}

/// For files that not every kernel configuration has.
fn write_if_there(path: &Path, value: &str) -> Result<()> {
    match write(path, value) {
        Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads `/proc/self/mountinfo`: the version 2 mount point, and version 1 mount points by controller.
fn parse_mounts(text: &str) -> (Option<PathBuf>, BTreeMap<String, PathBuf>) {
    let mut unified = None;
    let mut legacy = BTreeMap::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount_point) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        let (Some(kind), _, options) = (after.next(), after.next(), after.next().unwrap_or_default()) else {
            continue;
        };
        match kind {
            "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(mount_point)),
            "cgroup" => {
                for option in options.split(',') {
                    let name = if option == "blkio" { "io" } else { option };
                    if CONTROLLERS.contains(&name) {
                        legacy.entry(name.to_owned()).or_insert_with(|| PathBuf::from(mount_point));
                    }
                }
            }
            _ => {}
        }
    }
    (unified, legacy)
}

/// The options the version 2 tree is mounted with, but for `rw`, each once.
fn unified_options(mountinfo: &str) -> Vec<String> {
    let options: std::collections::BTreeSet<&str> = mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - ")?.1.strip_prefix("cgroup2 "))
        .filter_map(|rest| rest.split(' ').nth(1))
        .flat_map(|options| options.split(','))
        .filter(|option| !matches!(*option, "rw" | "ro"))
        .collect();
    options.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_version_2_is_found() {
        let text = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let (unified, legacy) = parse_mounts(text);
        assert_eq!(unified.as_deref(), Some(Path::new("/sys/fs/cgroup")));
        assert!(legacy.is_empty());
        assert_eq!(unified_options(text), ["nsdelegate"]);
    }

    #[test]
    fn a_mixed_host_keeps_each_controller_where_it_is() {
        let text = "40 30 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    41 30 0:36 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    42 30 0:37 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
                    43 30 0:38 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let (unified, legacy) = parse_mounts(text);
        assert_eq!(unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(legacy.get("cpu").map(PathBuf::as_path), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(legacy.get("io").map(PathBuf::as_path), Some(Path::new("/sys/fs/cgroup/blkio")));
        assert_eq!(legacy.len(), 2);
    }

    #[test]
    fn options_are_found_once_however_often_the_tree_is_mounted() {
        let text = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n\
                    88 22 0:26 / /run/lxcfs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(unified_options(text), ["memory_recursiveprot", "nsdelegate"]);
    }

    /// Folders in the place of a tree: the kernel's part of it is played where it matters.
    fn tree(name: &str, controllers: &[&str]) -> (Hierarchies, PathBuf) {
        let root = std::env::temp_dir().join(format!("warren-cgroup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("nodes")).unwrap();
        for folder in [root.clone(), root.join("nodes")] {
            fs::write(folder.join(SUBTREE_CONTROL), "").unwrap();
            fs::write(folder.join("cgroup.procs"), "").unwrap();
        }
        let unified_controllers = controllers.iter().map(|&name| name.to_owned()).collect();
        (Hierarchies { unified: root.clone(), unified_controllers, legacy: BTreeMap::new() }, root)
    }

    #[test]
    fn the_controllers_there_are_are_handed_out_on_both_levels() {
        let (hierarchies, root) = tree("handed", &["cpu", "memory", "rdma"]);
        hierarchies.ensure_parent("nodes").unwrap();
        for folder in [root.clone(), root.join("nodes")] {
            assert_eq!(fs::read_to_string(folder.join(SUBTREE_CONTROL)).unwrap(), "+cpu +memory");
        }
        assert!(!root.join(REST).exists(), "nobody is moved where nothing is in the way");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_cannot_be_handed_out_is_said_in_the_end() {
        let (hierarchies, root) = tree("refused", &["cpu"]);
        fs::remove_file(root.join("nodes").join(SUBTREE_CONTROL)).unwrap();
        let refused = hierarchies.ensure_parent("nodes").unwrap_err();
        assert!(matches!(refused, CgroupError::Write { .. }), "{refused}");
        fs::remove_dir_all(&root).unwrap();
    }
}
