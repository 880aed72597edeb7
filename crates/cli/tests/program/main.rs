//! Runs the real binary and looks at all it prints, sends and leaves behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod checkpoints;
mod cp;
mod exec;
mod harness;
mod help;
mod images;
mod keys;
mod logs;
mod previews;
mod sandboxes;
mod secrets;
mod server;
mod settings;
mod shell;
mod told;
mod usage;
