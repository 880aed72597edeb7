//! What can go wrong with the store. Nothing of it is for clients: they hear that the store failed, the log says how.

use std::path::PathBuf;

use sqlx::migrate::MigrateError;
use warren_types::Error;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("could not make {}", path.display())]
    Prepare { path: PathBuf, source: std::io::Error },
    #[error("could not open {}", path.display())]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("could not bring {} up to date", path.display())]
    Migrate { path: PathBuf, source: MigrateError },
    #[error(
        "{} was made by a newer version of Warren: start that one, or use a copy from before it was",
        path.display()
    )]
    Newer { path: PathBuf },
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

    /// For `map_err`: what kept the store at that path from being brought up to date.
    pub(crate) fn migrating(path: PathBuf) -> impl FnOnce(MigrateError) -> Self {
        |source| match source {
            // It has one that this program does not know.
            MigrateError::VersionMissing(_) => Self::Newer { path },
            source => Self::Migrate { path, source },
        }
    }

    /// Whether the statement failed because a row with that key is there already.
    pub(crate) fn is_taken(&self) -> bool {
        match self {
            Self::Query { source: sqlx::Error::Database(error), .. } => error.is_unique_violation(),
            Self::Query { .. }
            | Self::Prepare { .. }
            | Self::Open { .. }
            | Self::Migrate { .. }
            | Self::Newer { .. }
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
            | Self::Newer { .. }
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

#[cfg(test)]
mod tests {
    use crate::store::Store;

    #[tokio::test]
    async fn a_store_of_a_newer_version_is_left_alone_and_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
            VALUES (99990101000000, 'what is not known yet', TRUE, x'00', 0)";
        sqlx::query(newer).execute(&store.writer).await.unwrap();
        let error = Store::open(dir.path()).await.err().unwrap().to_string();
        assert!(error.ends_with(
            "was made by a newer version of Warren: start that one, or use a copy from before it was"
        ));
    }
}
