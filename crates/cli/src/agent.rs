//! Agents that work in a sandbox on a tree of the user's.

pub(crate) mod kinds;
pub(crate) mod launch;
pub(crate) mod outside;
