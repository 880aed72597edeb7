//! The real agent program, driven over its socket as a node does it.
//!
//! These tests start processes as another user and use cgroups where the machine has version 2 mounted, so they need
//! root and say so when they are skipped.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod account;
mod client;
mod exec;
mod files;
mod init;
mod input;
mod limits;
mod logs;
mod ports;
mod pty;
