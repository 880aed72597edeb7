//! Starts sandboxes as virtual machines.
//!
//! A sandbox has a kernel of its own in a QEMU of its own, under KVM where that has been proved to work and software
//! emulation elsewhere. Template, writable disk, network slot and agent are those of a container; what differs is what they are
//! connected with:
//!
//! | | container | machine |
//! | --- | --- | --- |
//! | disks | loop device and mount of the host | two virtio disks, mounted by the agent |
//! | network | the slot itself | a tap in the slot ([`plan`]) |
//! | agent | a Unix socket it listens on | a serial port, behind QEMU's Unix socket |
//! | settings | a file it is started with | `POST /v1/renew`, after every boot and restore |
//!
//! The launcher (`warren_runtime::launcher`) starts QEMU ([`setup`]), [`machine`] is the node's end of it.
//!
//! Memory is a file that the machine shares with nobody. A snapshot is a clone of memory and disk and a few hundred kilobytes of
//! device state, all of one moment; a restore is a QEMU on such clones.

pub mod emulator;
pub mod hardware;
pub mod initramfs;
pub mod kernel;
pub mod machine;
pub mod plan;
pub mod proof;
pub mod qmp;
pub mod setup;
pub mod snapshot;

mod modules;
mod tap;

pub use hardware::{Accelerator, Hardware};
pub use machine::{Complaints, Machine, MachineError};
pub use plan::{Launch, Launched, Start, launch};
pub use setup::Vm;
