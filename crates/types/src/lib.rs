//! Words shared by Warren's programs. A type lives here when two crates need it; nothing here does I/O.

pub mod egress;
pub mod error;
pub mod hex;
pub mod id;
pub mod isolation;
pub mod object;
pub mod secret;
pub mod size;
pub mod state;
pub mod tags;
pub mod whole;

pub use egress::{EgressMode, EgressPolicy, EgressRule, HostPattern};
pub use error::{Error, ErrorKind};
pub use hex::hex;
pub use id::{CheckpointId, ExecId, OrgId, PtyId, SandboxId};
pub use isolation::Isolation;
pub use secret::Secret;
pub use size::Size;
pub use state::SandboxState;
