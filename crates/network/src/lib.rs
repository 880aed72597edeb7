//! What of the network stands between a sandbox and everything else.
//!
//! - [`slots`] are the namespaces sandboxes sit in, prepared ahead, and the firewall around them.
//! - [`dns`] answers questions for names.
//! - [`egress`], the gateway: what passes, and secrets put in on the way.
//! - [`names`] finds addresses, and [`reach`] says which of them no sandbox may reach.

mod dns;
pub mod egress;
mod names;
mod reach;
mod slots;

pub use egress::{Authority, Gateway, GatewaySettings, Session};
pub use names::Names;
pub use reach::Reach;
pub use slots::{Claim, Gate, Limits, Listeners, Plan, Pool, SLOTS, Slot, first_choice, mtu};
