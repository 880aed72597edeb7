//! The real router, store and tasks on a port of their own, over a simulated node (see `sim`).

#![expect(clippy::unwrap_used, reason = "a test that meets anything else has failed")]

mod agents;
mod audit;
mod authorisation;
mod bad_input;
mod checkpoints;
mod create;
mod egress;
mod exec;
mod files;
mod forks;
mod harness;
mod idempotency;
mod identity;
mod images;
mod keys;
mod lifecycle;
mod list;
mod listener;
mod logs;
mod openapi;
mod preview_endings;
mod previews;
mod pty;
mod reconcile;
mod scaling;
mod secrets;
mod sim;
mod snapshots;
mod usage;
mod web_socket;
