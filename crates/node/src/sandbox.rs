//! One sandbox: its actor, what is written down of it, and how it is used.
//!
//! - [`record`]: the file that a restarted node reads.
//! - [`machine`]: the running part: processes, network slot, CPUs, connection to the agent. Started, adopted, ended.
//! - [`stock`]: roots prepared ahead, for the machines of the next sandboxes.
//! - [`actor`]: the one owner; it decides what happens in which order. What it does, by subject:
//!   [`start`] (make, wake, the gate), [`hibernate`], [`restore`] (and reboot), [`capture`], [`patch`], [`resize`].
//! - [`activity`]: when the sandbox was last used, for its idle time-out.
//! - [`log`]: what it has logged, also while it does not run.
//!
//! ```text
//!   <volume>/sandboxes/<id>/record.json    see `record`
//!                          /disk.img       what it writes to
//!                          /next.img       what it is being restored to; becomes disk.img
//!                          /previous.img   its disk as it was before it last woke
//!                          /patches.json   how patches went in it
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

mod hibernate;
mod resize;
mod start;

pub(crate) use actor::Handle;

/// Files of a sandbox's folder.
pub(crate) const DISK: &str = "disk.img";
pub(crate) const NEXT_DISK: &str = "next.img";
const PREVIOUS_DISK: &str = "previous.img";
