//! Images from a registry and from archives, hostile ones among them.

#![expect(clippy::unwrap_used, reason = "a test that meets anything else has failed")]

mod archives;
mod attacks;
mod canary;
mod layout;
mod registry;
mod registry_attacks;
mod server;
mod tars;
mod unpacking;
