//! One file for each command: what it takes, and what it does.

pub(crate) mod checkpoint;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod execs;
pub(crate) mod files;
pub(crate) mod fork;
pub(crate) mod get;
pub(crate) mod hibernate;
pub(crate) mod keys;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod preview;
pub(crate) mod reboot;
pub(crate) mod scale;
pub(crate) mod shell;
pub(crate) mod tags;
pub(crate) mod timeout;
pub(crate) mod version;
pub(crate) mod wake;
