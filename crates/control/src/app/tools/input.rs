//! From checked input to what the operations take.

use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_types::{Error, ExecId};

use crate::app::files::FilePath;

/// Input that [`super::schema`] has let through.
pub(super) fn decode<T: DeserializeOwned>(input: Value) -> Result<T, Error> {
    serde_json::from_value(input)
        .map_err(|error| Error::invalid(format!("the input cannot be read: {error}")))
}

pub(super) fn path(path: &str) -> Result<FilePath, Error> {
    FilePath::from_query(Some(path.as_bytes().to_vec()))
}

/// The id of a command, as one of the tools gave it.
pub(super) fn exec_id(field: &str, text: &str) -> Result<ExecId, Error> {
    text.parse().map_err(|_| {
        Error::invalid(format!(
            "{field} must be an id of 8 hexadecimal digits, as sandbox_exec or sandbox_start_process gave it"
        ))
    })
}

/// That there is no such command, in words that say what to do.
pub(super) fn explain_absent(error: Error, id: &ExecId) -> Error {
    match error.kind {
        warren_types::ErrorKind::NotFound => Error::not_found(format!(
            "there is no command {id}: a command and its output are kept for 10 minutes after it has ended, and go when its \
             sandbox hibernates as a container; sandbox_list_processes shows what there is"
        )),
        _ => error,
    }
}
