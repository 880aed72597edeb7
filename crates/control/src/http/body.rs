//! JSON bodies, read with a limit and refused with a sentence that names the field.
//!
//! The content type is not looked at: clients send JSON without saying so. Unknown fields are ignored.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use warren_api::sandboxes::SandboxCreate;
use warren_types::{Error, ErrorKind};

use super::errors::ApiError;
use crate::app::images::create::is_from_image;

const MAX_BYTES: usize = 1024 * 1024;
/// Commands carry scripts and input.
const MAX_EXEC_BYTES: usize = 4 * 1024 * 1024;
/// Calls of tools carry files.
pub(super) const MAX_TOOL_BYTES: usize = 16 * 1024 * 1024;
/// Manifests carry files.
const MAX_IMAGE_BYTES: usize = 64 * 1024 * 1024;
/// How long a client may take to send one.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
/// For one of more than [`MAX_EXEC_BYTES`].
const LARGE_ARRIVES_WITHIN: Duration = Duration::from_secs(10 * 60);

/// A JSON object. With `EMPTY_OK` no body at all counts as an empty one.
#[derive(Debug)]
pub(super) struct JsonObject<T, const MAX: usize, const EMPTY_OK: bool>(pub T);

/// A body whose fields are all optional.
pub(super) type Body<T> = JsonObject<T, MAX_BYTES, true>;
/// A body that must be there, because leaving it out would mean something.
pub(super) type RequiredBody<T> = JsonObject<T, MAX_BYTES, false>;
/// A command.
pub(super) type ExecBody<T> = JsonObject<T, MAX_EXEC_BYTES, true>;
/// Input of a tool.
pub(super) type ToolBody<T> = JsonObject<T, MAX_TOOL_BYTES, true>;

/// Any JSON, of the size that calls of tools may have.
#[derive(Debug)]
pub(super) struct AnyJson(pub serde_json::Value);

/// A manifest of an image, or what holds one.
pub(super) type ImageBody<T> = JsonObject<T, MAX_IMAGE_BYTES, true>;

/// A create: as large as a manifest may be where it has one, and as any other body where not.
#[derive(Debug)]
pub(super) struct CreateBody(pub SandboxCreate);

impl<S, T, const MAX: usize, const EMPTY_OK: bool> FromRequest<S> for JsonObject<T, MAX, EMPTY_OK>
where
    S: Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read_in_time(request, MAX).await?;
        let bytes: &[u8] = if bytes.is_empty() && EMPTY_OK { b"{}" } else { &bytes };
        Ok(Self(parse(bytes)?))
    }
}

impl<S: Sync> FromRequest<S> for CreateBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read_in_time(request, MAX_IMAGE_BYTES).await?;
        let body = parse(if bytes.is_empty() { b"{}" } else { &bytes })?;
        if bytes.len() > MAX_BYTES && !is_from_image(&body) {
            return Err(too_large(MAX_BYTES).into());
        }
        Ok(Self(body))
    }
}

impl<S: Sync> FromRequest<S> for AnyJson {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read_in_time(request, MAX_TOOL_BYTES).await?;
        let json = serde_json::from_slice(&bytes);
        Ok(Self(json.map_err(|error| Error::invalid(format!("the body is not valid JSON: {error}")))?))
    }
}

pub(super) async fn read_in_time(request: Request, max: usize) -> Result<Bytes, ApiError> {
    let within = if max > MAX_EXEC_BYTES { LARGE_ARRIVES_WITHIN } else { ARRIVES_WITHIN };
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
    Ok(tokio::time::timeout(within, read(request.into_body(), max)).await.map_err(late)??)
}

fn too_large(max: usize) -> Error {
    Error::new(ErrorKind::TooLarge, format!("the body is larger than {max} bytes"))
}

async fn read(body: axum::body::Body, max: usize) -> Result<Bytes, Error> {
    let read = Limited::new(body, max).collect().await;
    read.map(http_body_util::Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large(max)
        } else {
            Error::invalid("the body broke off before its end")
        }
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.is_empty() {
        return Err(Error::invalid("a JSON object is required as the body"));
    }
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::invalid("the body must be a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        if error.is_data() && field != "." {
            Error::invalid(format!("{field}: {error}"))
        } else if error.is_data() {
            Error::invalid(format!("the body cannot be used: {error}"))
        } else {
            Error::invalid(format!("the body is not valid JSON: {error}"))
        }
    })?;
    deserializer.end().map_err(|error| Error::invalid(format!("the body is not valid JSON: {error}")))?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (body, says) in [
            ("", "a JSON object is required"),
            ("[]", "must be a JSON object"),
            ("null", "must be a JSON object"),
            ("{", "not valid JSON"),
            ("{} x", "not valid JSON"),
            (r#"{"timeout": "x"}"#, "timeout: invalid type: string \"x\""),
            (r#"{"envs": {"A": 1}}"#, "envs.A: invalid type: integer `1`"),
            (r#"{"cpuCount": 1.5}"#, "cpuCount: invalid type: floating point `1.5`, expected a whole number"),
            (r#"{"burst": "yes"}"#, "burst: invalid type: string \"yes\", expected a boolean"),
            (r#"{"cellId": 5}"#, "cellId: invalid type"),
            (r#"{"sandboxFamily": true}"#, "sandboxFamily: invalid type"),
            (r#"{"port": "80"}"#, "port: invalid type"),
            (r#"{"egress": []}"#, "egress: invalid type: sequence, expected an object"),
            (r#"{"egress": {"mode": "wide"}}"#, "egress.mode: unknown variant"),
            (r#"{"previewAuth": []}"#, "previewAuth: invalid type: sequence, expected an object"),
            (
                r#"{"registryAuth": ["me", "secret"]}"#,
                "registryAuth: invalid type: sequence, expected an object",
            ),
            (r#"{"imageRef": {}}"#, "imageRef: invalid type"),
            (r#"{"template": "a", "templateID": "b"}"#, "cannot be used: duplicate field `templateID`"),
        ] {
            let error = parse::<SandboxCreate>(body.as_bytes()).unwrap_err();
            assert!(error.message.contains(says), "{body}: {}", error.message);
        }
        assert!(parse::<SandboxCreate>(br#" {"unknown": [1], "timeout": null, "burst": true}"#).is_ok());
        let whole = parse::<SandboxCreate>(br#"{"memoryMB": 4096.0, "timeout": 1e2}"#).unwrap();
        assert_eq!((whole.memory_mb, whole.timeout), (Some(4096), Some(100)));
        let error = parse::<warren_api::scaling::Scale>(br#"{"burst": "yes"}"#).unwrap_err();
        assert!(error.message.starts_with("burst: invalid type"), "{}", error.message);
    }
}
