//! Images: a base and steps, built once into a checkpoint; sandboxes are forks of that.
//!
//! ```text
//!   manifest ─▶ row of that content? ─ ready ──────────────────────────────────────▶ fork
//!                    │ none, or failed
//!                    ▼
//!   one build for all who ask ─▶ base ─▶ deepest layer ─▶ the steps after it ─▶ checkpoint of the image
//!                                                          └─ a layer after each
//! ```
//!
//! A build runs in a sandbox that has no row: its id is held in [`crate::app::in_flight`], so that the reconciler keeps off
//! while the build goes on and removes the sandbox if this server dies. Layers and images are checkpoints with rows of their
//! own, [`crate::store::checkpoints::change::MadeFor`]. A layer is found by a hash of everything that led to it, within its organisation.
//!
//! A snapshot is a name for an image, with versions.

pub(crate) mod archive;
pub(crate) mod build;
mod canonical;
pub(crate) mod create;
mod ensure;
pub(crate) mod manifest;
pub(crate) mod names;
pub(crate) mod patches;
mod resume;
pub(crate) mod snapshots;
mod steps;
pub(crate) mod templates;
mod uploads;
mod view;

use warren_types::Error;

pub(crate) use build::log::{Next, Reader};

pub(crate) fn snapshot_not_found() -> Error {
    Error::not_found("snapshot not found")
}

pub(crate) fn image_not_found() -> Error {
    Error::not_found("image not found")
}
