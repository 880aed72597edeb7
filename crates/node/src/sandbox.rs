//! One sandbox: its actor, what is written down of it, and how it is used.
//!
//! - [`record`]: the file that a restarted node reads.
//! - [`machine`]: the running part: processes, network slot, CPUs, connection to the agent. Started, adopted, ended.
//! - [`actor`]: the one owner; it decides what happens in which order.
//! - [`activity`]: when the sandbox was last used, for its idle time-out.
//! - [`log`]: what it has logged, also while it does not run.

pub(crate) mod activity;
pub(crate) mod actor;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod record;

pub(crate) use actor::Handle;
