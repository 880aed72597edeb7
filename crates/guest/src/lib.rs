//! The agent inside every sandbox: commands, terminals and files, over one byte stream to its node.
//!
//! The contract is `warren_guest_api`; this crate is the whole of what the sandbox does with it. Everything runs on one
//! thread ([`server`], [`routes`] and below), except waiting for disks ([`workers`], [`archive`]). Nothing here trusts
//! what runs in the sandbox, and a connection that misbehaves costs itself at most.
//!
//! What is public is the program's start, and the parsers that the fuzz targets run.

mod account;
mod accounts;
mod agent;
mod archive;
mod buffer;
mod cgroup;
mod characters;
mod clock;
mod environment;
mod exec;
mod files;
mod init;
pub mod intake;
mod journal;
mod log;
mod machine;
mod machine_id;
mod notice;
mod output;
pub mod paths;
mod ports;
mod pty;
pub mod query;
mod reply;
mod request;
mod rest;
mod routes;
mod server;
mod spawn;
mod sys;
mod usage;
mod workers;

pub use agent::Places;
pub use archive::fuzz_entries;
pub use init::{init, serve};
pub use machine::machine;
