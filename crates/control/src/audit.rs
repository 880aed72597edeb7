//! The audit records of a server on this machine, for the command line and for the server itself: how records hang together
//! ([`chain`]), what their ends are sealed with ([`seal`]), and whether they are whole ([`verify`]).

pub(crate) mod chain;
mod line;
pub(crate) mod seal;
pub mod verify;

pub use verify::{Finding, Verified, VerifyError, verify_data_dir, verify_file};
