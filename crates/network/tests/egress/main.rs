//! The gateway between real clients and real servers, on loopback: clients trust its authority, servers are trusted by a
//! file of roots, names are asked of a small DNS server.

#![expect(clippy::unwrap_used, reason = "a test that meets anything else has failed")]

mod forms;
mod harness;
mod load;
mod plain;
mod policy;
mod replies;
mod requests;
mod upgrades;
