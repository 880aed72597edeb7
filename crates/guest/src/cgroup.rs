//! One cgroup for each command and terminal, below the sandbox's own: what a command starts, it can be ended with.
//!
//! Where there is no such hierarchy (an agent that runs on a plain machine for its tests) process groups have to do.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};

/// Groups tried in one round of removing.
const ROUND: usize = 16;

/// The folder that groups are made in.
pub(crate) struct Cgroups {
    folder: Option<PathBuf>,
    /// Ended, but something inside lived on when it was last looked at.
    leftover: RefCell<VecDeque<PathBuf>>,
}

/// One group; removed, once it is empty, after this is dropped.
pub(crate) struct Cgroup {
    owner: Rc<Cgroups>,
    path: PathBuf,
    pub(crate) folder: OwnedFd,
}

impl Cgroups {
    /// Uses `folder` if it is a version 2 hierarchy that can be written to.
    pub(crate) fn new(folder: &Path) -> Rc<Self> {
        let usable = folder.join("cgroup.kill").exists() || folder.join("cgroup.controllers").exists();
        let folder = (usable && rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok())
            .then(|| folder.to_owned());
        Rc::new(Self { folder, leftover: RefCell::default() })
    }

    /// Makes a group; `None` where there are none.
    pub(crate) fn create(self: &Rc<Self>, name: &str) -> io::Result<Option<Cgroup>> {
        self.remove_leftover();
        let Some(folder) = &self.folder else { return Ok(None) };
        let path = folder.join(name);
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
        let folder =
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Some(Cgroup { owner: Rc::clone(self), path, folder }))
    }

    /// How many processes the sandbox may have, where that can be seen.
    pub(crate) fn process_limit(&self) -> Option<u64> {
        std::fs::read_to_string(self.folder.as_ref()?.join("pids.max")).ok()?.trim().parse().ok()
    }

    /// Removes groups whose last process has ended since. Called whenever something starts or ends.
    fn remove_leftover(&self) {
        let mut leftover = self.leftover.borrow_mut();
        for _ in 0..leftover.len().min(ROUND) {
            if let Some(path) = leftover.pop_front()
                && rustix::fs::rmdir(&path) == Err(rustix::io::Errno::BUSY)
            {
                leftover.push_back(path);
            }
        }
    }
}

impl Cgroup {
    /// Ends every process in it, whatever they have started meanwhile.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let file =
            rustix::fs::openat(&self.folder, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        io::Write::write_all(&mut File::from(file), b"1")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.owner.leftover.borrow_mut().push_back(std::mem::take(&mut self.path));
        self.owner.remove_leftover();
    }
}
