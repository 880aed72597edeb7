//! Secret stores and the secrets in them.
//!
//! A change is answered once the nodes of the sandboxes it concerns have it, or after a while with what is still to be
//! told; see [`super::access`].

mod entries;
mod request;
mod stores;
mod uses;

use warren_types::Error;

pub(crate) use uses::{KEPT_USES, KEPT_USES_MICROS};

pub(crate) fn store_not_found() -> Error {
    Error::not_found("secret store not found")
}

pub(crate) fn secret_not_found() -> Error {
    Error::not_found("secret not found")
}
