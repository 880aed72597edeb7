//! Several tasks, one sandbox each, all from one prepared tree.

mod read;
mod run;
mod view;

pub(crate) use read::{Task, read};
pub(crate) use run::{Batch, run};
