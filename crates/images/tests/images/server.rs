//! A registry on this host that answers as it is told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use warren_images::{ImageError, Limits, Login, Reference, Registries, Source};
use warren_types::Secret;

use crate::layout::{Image, MANIFEST};

/// Answers a request, or lets the registry do it.
pub(crate) type Answer = Arc<dyn Fn(&Seen) -> Option<Response> + Send + Sync>;

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn authorization(&self) -> Option<&str> {
        self.headers.get(header::AUTHORIZATION)?.to_str().ok()
    }
}

/// Serves the image as `HOST/team/image:tag`.
pub(crate) struct Server {
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
    pub(crate) image: Image,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Clone)]
struct Shared {
    blobs: Arc<BTreeMap<String, Vec<u8>>>,
    manifest: String,
    media_type: String,
    answer: Answer,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) async fn start(image: Image) -> Self {
        Self::answering(image, |_| None).await
    }

    pub(crate) async fn answering(
        image: Image,
        answer: impl Fn(&Seen) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (blobs, manifest) = image.blobs();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Shared {
            blobs: Arc::new(blobs),
            manifest,
            media_type: MANIFEST.to_owned(),
            answer: Arc::new(answer),
            seen: seen.clone(),
        };
        let router = Router::new().fallback(reply).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { host, image, seen }
    }

    pub(crate) fn reference(&self) -> Reference {
        format!("{}/team/image:tag", self.host).parse().unwrap()
    }

    /// Registries of which this one is listed, and no private address is reached but this.
    pub(crate) fn registries(&self) -> Registries {
        registries(&[&self.host])
    }

    pub(crate) async fn fetch(&self) -> Result<Source, ImageError> {
        self.fetch_as(None).await
    }

    pub(crate) async fn fetch_as(&self, login: Option<&Login>) -> Result<Source, ImageError> {
        self.fetch_with(&self.registries(), login, &Limits::default()).await
    }

    pub(crate) async fn fetch_with(
        &self,
        registries: &Registries,
        login: Option<&Login>,
        limits: &Limits,
    ) -> Result<Source, ImageError> {
        let folder = tempfile::tempdir().unwrap();
        let resolved = registries.resolve(&self.reference(), login).await?;
        registries.fetch(&resolved, folder.path(), limits, |_| {}).await
    }

    /// The sentence an image is refused with.
    pub(crate) async fn refused(&self) -> String {
        self.fetch().await.expect_err("it is refused").to_string()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

pub(crate) fn registries(insecure: &[&str]) -> Registries {
    let reach = |address: IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_private() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback(),
    };
    let insecure = insecure.iter().map(|host| (*host).to_owned()).collect();
    Registries::new(Arc::new(reach), insecure, None).unwrap()
}

pub(crate) fn login() -> Login {
    Login { username: "me".to_owned(), password: Secret::new("hunter2".to_owned()) }
}

async fn reply(State(shared): State<Shared>, request: Request) -> Response {
    let seen = Seen {
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().clone(),
    };
    shared.seen.lock().unwrap().push(seen.clone());
    if let Some(answer) = (shared.answer)(&seen) {
        return answer;
    }
    let Some(path) = seen.path.strip_prefix("/v2/team/image/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (media_type, digest) = match path.split_once('/') {
        Some(("manifests", "tag")) => (shared.media_type.as_str(), shared.manifest.as_str()),
        Some(("manifests", digest)) => (shared.media_type.as_str(), digest),
        Some(("blobs", digest)) => ("application/octet-stream", digest),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    match shared.blobs.get(digest) {
        Some(blob) => ([(header::CONTENT_TYPE, media_type)], blob.clone()).into_response(),
        None => {
            let error = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            (StatusCode::NOT_FOUND, error).into_response()
        }
    }
}
