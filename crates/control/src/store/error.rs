//! What can go wrong with the store. Nothing of it is for clients: they hear that the store failed, the log says how.

use std::path::PathBuf;

use warren_types::Error;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("could not make {}", path.display())]
    Prepare { path: PathBuf, source: std::io::Error },
    #[error("could not open {}", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("could not bring {} up to date", path.display())]
    Migrate { path: PathBuf, source: sqlx::migrate::MigrateError },
    #[error("could not {action}")]
    Query { action: &'static str, source: sqlx::Error },
    #[error("{column} in the store is not what we wrote there")]
    Column { column: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

impl StoreError {
    /// For `map_err`: says what the query was for.
    pub(crate) fn query(action: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::Query { action, source }
    }

    /// Whether the statement failed because a row with that key is there already.
    pub(crate) fn is_taken(&self) -> bool {
        match self {
            Self::Query { source: sqlx::Error::Database(error), .. } => error.is_unique_violation(),
            Self::Query { .. }
            | Self::Prepare { .. }
            | Self::Open { .. }
            | Self::Migrate { .. }
            | Self::Column { .. } => false,
        }
    }

    /// Whether the statement failed because a row that it refers to is gone.
    pub(crate) fn refers_to_nothing(&self) -> bool {
        match self {
            Self::Query { source: sqlx::Error::Database(error), .. } => error.is_foreign_key_violation(),
            Self::Query { .. }
            | Self::Prepare { .. }
            | Self::Open { .. }
            | Self::Migrate { .. }
            | Self::Column { .. } => false,
        }
    }
}

/// The one place where a failure of the store is logged.
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
        Self::internal("the server could not read or write its store; its log says why")
    }
}
