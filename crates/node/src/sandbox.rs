//! One sandbox: its actor, what is written down of it, and how it is used.
//!
//! - [`record`]: the file that a restarted node reads.
//! - [`machine`]: the running part: processes, network slot, CPUs, connection to the agent. Started, adopted, ended.
//! - [`stock`]: roots prepared ahead, for the machines of the next sandboxes.
//! - [`actor`]: the one owner; it decides what happens in which order. What it does, by subject:
//!   [`start`] (make, wake, the gate), [`hibernate`], [`restore`] (and reboot), [`capture`], [`patch`], [`resize`], [`room`], [`egress`].
//! - [`activity`]: when the sandbox was last used, for its idle time-out.
//! - [`log`]: what it has logged, also while it does not run. [`results`]: what its commands have come to, beyond their agent.
//!
//! ```text
//!   <volume>/sandboxes/<id>/record.json    see `record`
//!                          /record.durable.json  an older one, for when a loss of power takes that
//!                          /disk.img       what it writes to
//!                          /memory, state  of a virtual machine: its memory; its devices, at rest
//!                          /next.*         what it is being restored to; becomes disk.img, memory and state
//!                          /previous.*     the same as they were before it last woke
//!                          /patches.json   how patches went in it
//!                          /execs.kept     what its commands have come to, while there is no agent who knows
//!                          /agent.sock     its agent
//! ```

pub(crate) mod activity;
pub(crate) mod actor;
pub(crate) mod capture;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod patch;
pub(crate) mod record;
pub(crate) mod restore;
pub(crate) mod stock;

mod egress;
mod hibernate;
mod resize;
pub(crate) mod results;
mod room;
mod start;

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::disk;

pub(crate) use actor::Handle;

/// Files of a sandbox's folder.
pub(crate) const DISK: &str = "disk.img";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const STATE: &str = "state";

/// What a sandbox is at rest: names of its files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Files {
    pub(crate) disk: &'static str,
    pub(crate) memory: &'static str,
    pub(crate) state: &'static str,
}

pub(crate) const CURRENT: Files = Files { disk: DISK, memory: MEMORY, state: STATE };
pub(crate) const NEXT: Files = Files { disk: "next.img", memory: "next.memory", state: "next.state" };
pub(crate) const PREVIOUS: Files =
    Files { disk: "previous.img", memory: "previous.memory", state: "previous.state" };

impl Files {
    /// All of them, or with the disk alone.
    fn names(self, with_memory: bool) -> impl Iterator<Item = &'static str> {
        [self.disk, self.memory, self.state].into_iter().take(if with_memory { 3 } else { 1 })
    }

    /// Makes the files `to` share all blocks of these, in one step each; blocks. The disk comes last: without one there
    /// is nothing.
    pub(crate) fn share(self, folder: &Path, to: Self, with_memory: bool) -> io::Result<()> {
        let pairs: Vec<_> = self.names(with_memory).zip(to.names(with_memory)).collect();
        for (from, to) in pairs.into_iter().rev() {
            let (to, unfinished) = (folder.join(to), folder.join(format!("{to}.unfinished")));
            disk::reflink(&File::open(folder.join(from))?, &unfinished)?;
            fs::rename(unfinished, to)?;
        }
        if !with_memory {
            to.remove_memory(folder);
        }
        Ok(())
    }

    /// Gives the disk the name of `to`, whose memory goes with the disk it had. One that is not there has its name already.
    pub(crate) fn rename_disk(self, folder: &Path, to: Self) -> io::Result<()> {
        to.remove_memory(folder);
        match fs::rename(folder.join(self.disk), folder.join(to.disk)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    pub(crate) fn remove(self, folder: &Path) {
        let _ = fs::remove_file(folder.join(self.disk));
        self.remove_memory(folder);
    }

    /// The memory of one that runs is its own; the state it began with means nothing any more.
    pub(crate) fn remove_state(self, folder: &Path) {
        let _ = fs::remove_file(folder.join(self.state));
    }

    pub(crate) fn remove_memory(self, folder: &Path) {
        for name in [self.memory, self.state] {
            let _ = fs::remove_file(folder.join(name));
        }
    }
}
