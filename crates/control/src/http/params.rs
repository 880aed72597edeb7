//! Ids in paths. Text that is no id cannot name anything, so it is answered like an id nobody has.

use std::str::FromStr;

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use warren_types::{CheckpointId, Error, ExecId, PtyId, SandboxId};

use super::errors::ApiError;
use crate::app::agents::agent_not_found;
use crate::app::auth::sandbox_not_found;
use crate::app::checkpoints::checkpoint_not_found;
use crate::app::exec::exec_not_found;
use crate::app::images::{image_not_found, snapshot_not_found};
use crate::app::pty::pty_not_found;
use crate::app::secrets::{secret_not_found, store_not_found};
use crate::store::secrets::SecretStoreId;

/// Of `{id}`.
#[derive(Debug, Clone)]
pub(super) struct SandboxPath(pub SandboxId);

/// Of `{sid}` on routes of commands.
#[derive(Debug, Clone)]
pub(super) struct ExecPath(pub ExecId);

/// Of `{sid}` on routes of agent sessions.
#[derive(Debug, Clone)]
pub(super) struct AgentPath(pub ExecId);

/// Of `{sid}` on routes of terminals.
#[derive(Debug, Clone)]
pub(super) struct PtyPath(pub PtyId);

/// Of `{store}`.
#[derive(Debug, Clone)]
pub(super) struct SecretStorePath(pub SecretStoreId);

/// Of `{name}`, as it stands there.
#[derive(Debug, Clone)]
pub(super) struct NamePath(pub String);

/// Of `{snapshot}`, as it stands there.
#[derive(Debug, Clone)]
pub(super) struct SnapshotPath(pub String);

/// Of `{image}`, as it stands there.
#[derive(Debug, Clone)]
pub(super) struct ImagePath(pub String);

/// Of `{template}`, as it stands there.
#[derive(Debug, Clone)]
pub(super) struct TemplatePath(pub String);

/// Of `{cid}`. What is no id is told so, where it is looked at: after whoever asks was found to be allowed to.
#[derive(Debug, Clone)]
pub(super) struct CheckpointPath(String);

impl CheckpointPath {
    pub(super) fn parse(&self) -> Result<CheckpointId, Error> {
        self.0.parse().map_err(|_| Error::invalid("invalid checkpoint ID: it must be a UUID"))
    }
}

async fn param<T: FromStr, S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    name: &str,
    absent: fn() -> Error,
) -> Result<T, ApiError> {
    let params = RawPathParams::from_request_parts(parts, state).await.ok();
    params
        .as_ref()
        .and_then(|params| params.iter().find(|(found, _)| *found == name))
        .and_then(|(_, value)| value.parse().ok())
        .ok_or_else(|| absent().into())
}

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "id", sandbox_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ExecPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "sid", exec_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AgentPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "sid", agent_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PtyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "sid", pty_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SecretStorePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "store", store_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NamePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "name", secret_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SnapshotPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "snapshot", snapshot_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ImagePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "image", image_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TemplatePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "template", || Error::not_found("template not found")).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for CheckpointPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        param(parts, state, "cid", checkpoint_not_found).await.map(Self)
    }
}
