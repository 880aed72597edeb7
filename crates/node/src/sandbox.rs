//! One sandbox: its actor, what is written down of it, and how it is used.
//!
//! - [`record`]: the file that a restarted node reads.
//! - [`machine`]: the running part: processes, network slot, CPUs, connection to the agent. Started, adopted, ended.
//! - [`stock`]: roots prepared ahead, for the machines of the next sandboxes.
//! - [`actor`]: the one owner; it decides what happens in which order.
//! - [`activity`]: when the sandbox was last used, for its idle time-out.

pub(crate) mod activity;
pub(crate) mod actor;
pub(crate) mod machine;
pub(crate) mod record;
pub(crate) mod stock;

pub(crate) use actor::Handle;
