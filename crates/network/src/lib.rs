//! What of the network stands between a sandbox and everything else.
//!
//! - [`slots`]: the namespaces sandboxes sit in, prepared ahead, and the firewall around them.
//! - [`dns`]: names.

mod dns;
mod slots;

pub use slots::{Plan, Pool, SLOTS, Slot, mtu};
