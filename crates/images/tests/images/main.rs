//! Images from a registry and from archives, hostile ones among them.

mod archives;
mod attacks;
mod canary;
mod layout;
mod registry;
mod registry_attacks;
mod server;
mod tars;
mod unpacking;
