//! OCI images: fetched from registries, read from archives, and flattened into a directory.
//!
//! ```text
//!   Reference ──▶ Registries::resolve ──▶ Resolved ──▶ Registries::fetch ─┐
//!                                                                        ├──▶ Source ──▶ Source::unpack ──▶ directory
//!   tar of an OCI layout, or of `docker save` ──▶ read_archive ──────────┘
//! ```
//!
//! A [`Source`] is an image whose layers lie as files in a folder of the caller's, their digests checked. Unpacking it
//! is a separate, blocking step. Nothing here is kept: folder and directory are the caller's, and after an error he
//! throws both away.
//!
//! Everything read here is written by strangers, and what unpacks it is the host's root. So: every document, stream,
//! name and count is bounded ([`Limits`]), no path is resolved outside the directory ([`Source::unpack`]), and no
//! connection goes where the node does not let it ([`Registries`]). Errors are sentences for whoever asked for the
//! image.

mod archive;
mod config;
mod decode;
mod digest;
mod error;
mod limits;
mod manifest;
mod reference;
mod registry;
mod source;
mod tar;
mod unpack;
mod user;

pub use archive::read_archive;
pub use config::Config;
pub use error::ImageError;
pub use limits::{Limits, Step};
pub use reference::Reference;
pub use registry::{Login, Registries, Resolved};
pub use source::Source;
pub use unpack::Unpacked;
pub use user::find_user;
