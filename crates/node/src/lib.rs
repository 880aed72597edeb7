//! A node: runs sandboxes on this machine and reports what is.
//!
//! ```text
//!   http ──▶ registry ──▶ sandbox actor ──▶ container runtime, disk, network slot
//!                             │
//!                             └──▶ guest: one connection to the agent inside, relayed to whoever asks
//! ```
//!
//! Each sandbox is owned by one actor task; every change goes through it and every report it makes carries a
//! generation. What a node needs to know after a crash is in one record file per sandbox, on the volume beside the
//! sandbox's disk; [`Node::start`] re-adopts what runs, and undoes what is half made.

mod agent;
mod checkpoint;
mod config;
mod cpus;
mod disk;
pub mod doctor;
mod document;
mod guest;
mod http;
mod kernel_limits;
mod lately;
mod lxcfs;
mod metadata;
mod registry;
mod sandbox;
mod space;
pub mod template;
mod templates;
mod vm;

use std::sync::Arc;

use axum::Router;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, ImagesConfig, NetworkConfig, StartError};
pub use kernel_limits::raise_open_files;
pub use registry::Shutdown;

/// A running node.
pub struct Node {
    registry: Arc<registry::Registry>,
}

impl Node {
    /// Makes or finds everything a node needs, adopts the sandboxes that are running, and removes what is half made.
    pub async fn start(
        config: Config,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<Self, StartError> {
        registry::Registry::start(config, stop, tasks).await.map(|registry| Self { registry })
    }

    /// The node API of `warren-node-api`.
    pub fn router(&self) -> Router {
        http::router(self.registry.clone())
    }

    /// Lets go of the machine. With [`Shutdown::StopSandboxes`] every sandbox is hibernated first; otherwise they run on
    /// and the next start adopts them.
    pub async fn shutdown(self, how: Shutdown) {
        self.registry.shutdown(how).await;
    }
}
