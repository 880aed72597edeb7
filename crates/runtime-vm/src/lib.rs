//! Starts sandboxes as virtual machines.

pub mod initramfs;
pub mod kernel;
pub mod qmp;

mod modules;
