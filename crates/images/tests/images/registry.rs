//! Registries that do as they should.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use futures_util::StreamExt;
use serde_json::json;
use warren_images::{ImageError, Limits, Registries};

use crate::layout::{Image, bytes, digest};
use crate::server::{Seen, Server, login};
use crate::tars::{Item, tar};

fn image() -> Image {
    let shared = tar(&[Item::file("shared", "x".repeat(100_000))]);
    Image::new(&[tar(&[Item::file("a", "one")]), shared.clone(), tar(&[Item::file("b", "two")]), shared])
}

fn basic() -> String {
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode("me:hunter2"))
}

/// Asks for a token of its own service, which wants `wanted`, and lets only those with the token in.
fn with_tokens(seen: &Seen, wanted: Option<&str>) -> Option<Response> {
    let host = seen.headers[header::HOST].to_str().unwrap();
    if seen.path == "/token" {
        let is_right = seen.authorization() == wanted;
        return Some(if is_right {
            axum::Json(json!({ "token": "secret-token" })).into_response()
        } else {
            StatusCode::UNAUTHORIZED.into_response()
        });
    }
    let challenge =
        format!(r#"Bearer realm="http://{host}/token",service="r",scope="repository:team/image:pull""#);
    (seen.authorization() != Some("Bearer secret-token"))
        .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response())
}

#[tokio::test]
async fn an_image_is_fetched_and_unpacked() {
    let server = Server::start(image()).await;
    let registries = server.registries();
    let resolved = registries.resolve(&server.reference(), None).await.unwrap();
    assert_eq!(resolved.digest, server.image.blobs().1);
    assert_eq!(resolved.config().user, "node");
    let folder = tempfile::tempdir().unwrap();
    let steps = Mutex::new(Vec::new());
    let progress =
        |step: warren_images::Step| steps.lock().unwrap().push((step.done_bytes, step.total_bytes));
    let source = registries.fetch(&resolved, folder.path(), &Limits::default(), progress).await.unwrap();
    assert_eq!(source.reference, Some(server.reference().to_string()));
    assert_eq!(source.layers(), 4);
    let last = *steps.lock().unwrap().last().unwrap();
    assert_eq!(Some(last.0), last.1, "all of it came");
    let root = tempfile::tempdir().unwrap();
    source.unpack(root.path(), &Limits::default(), &AtomicBool::new(false), &|_| {}).unwrap();
    assert_eq!(crate::layout::paths(root.path()), ["a", "b", "shared"]);
    let blobs = server.seen().iter().filter(|seen| seen.path.contains("/blobs/")).count();
    assert_eq!(blobs, 4, "the configuration and three layers: one is there twice");
}

#[tokio::test]
async fn it_may_be_asked_for_by_digest() {
    let server = Server::start(image()).await;
    let manifest = server.image.blobs().1;
    let reference = format!("{}/team/image@{manifest}", server.host).parse().unwrap();
    assert_eq!(server.registries().resolve(&reference, None).await.unwrap().digest, manifest);
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_kept() {
    let server = Server::answering(image(), |seen| with_tokens(seen, None)).await;
    server.fetch().await.unwrap();
    let tokens: Vec<Seen> = server.seen().into_iter().filter(|seen| seen.path == "/token").collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].query, "service=r&scope=repository%3Ateam%2Fimage%3Apull");
}

#[tokio::test]
async fn a_login_is_for_the_token_service_and_the_token_for_the_registry() {
    let server = Server::answering(image(), |seen| with_tokens(seen, Some(&basic()))).await;
    server.fetch_as(Some(&login())).await.unwrap();
    for seen in server.seen() {
        let is_login = seen.authorization() == Some(&basic());
        assert_eq!(is_login, seen.path == "/token", "{}", seen.path);
    }
    let error = server.fetch().await.unwrap_err();
    assert!(matches!(&error, ImageError::Denied { why, .. } if why.contains("none was given")), "{error}");
}

#[tokio::test]
async fn a_registry_may_want_the_login_itself() {
    let server = Server::answering(image(), |seen| {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"here\"")];
        (seen.authorization() != Some(&basic()))
            .then(|| (StatusCode::UNAUTHORIZED, challenge).into_response())
    })
    .await;
    server.fetch_as(Some(&login())).await.unwrap();
    assert!(server.refused().await.contains("it wants a login, and none was given"));
}

#[tokio::test]
async fn the_operators_logins_are_used_where_none_is_given() {
    let server = Server::answering(image(), |seen| with_tokens(seen, Some(&basic()))).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let auth = base64::prelude::BASE64_STANDARD.encode("me:hunter2");
    std::fs::write(file.path(), bytes(&json!({ "auths": { &server.host: { "auth": auth } } }))).unwrap();
    let registries = Registries::new(
        std::sync::Arc::new(|_| false),
        vec![server.host.clone()],
        Some(file.path().to_owned()),
    )
    .unwrap();
    server.fetch_with(&registries, None, &Limits::default()).await.unwrap();
}

#[tokio::test]
async fn a_token_that_ran_out_is_renewed_once() {
    let uses = Mutex::new(0);
    let server = Server::answering(image(), move |seen| {
        let mut uses = uses.lock().unwrap();
        if seen.path.contains("/blobs/") {
            *uses += 1;
        }
        let runs_out = *uses == 2;
        if runs_out && seen.authorization() == Some("Bearer secret-token") && seen.path.contains("/blobs/") {
            let mut renewed = seen.clone();
            renewed.headers.remove(header::AUTHORIZATION);
            return with_tokens(&renewed, None);
        }
        with_tokens(seen, None)
    })
    .await;
    server.fetch().await.unwrap();
    assert_eq!(server.seen().iter().filter(|seen| seen.path == "/token").count(), 2);
}

#[tokio::test]
async fn blobs_may_be_elsewhere() {
    let image = image();
    let (blobs, _) = image.blobs();
    let elsewhere = Server::answering(image.clone(), move |seen| {
        let blob = blobs.get(seen.path.strip_prefix("/signed/")?)?;
        Some(blob.clone().into_response())
    })
    .await;
    let host = elsewhere.host.clone();
    let server = Server::answering(image, move |seen| {
        let granted = with_tokens(seen, Some(&basic()));
        let digest = seen.path.strip_prefix("/v2/team/image/blobs/");
        granted.or_else(|| {
            Some(
                (
                    StatusCode::TEMPORARY_REDIRECT,
                    [(header::LOCATION, format!("http://{host}/signed/{}?X-Signature=s", digest?))],
                )
                    .into_response(),
            )
        })
    })
    .await;
    let registries = crate::server::registries(&[&server.host, &elsewhere.host]);
    server.fetch_with(&registries, Some(&login()), &Limits::default()).await.unwrap();
    let seen = elsewhere.seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|seen| seen.authorization().is_none()),
        "credentials are the registry's"
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::start(image()).await;
    let reference = format!("{}/team/image:other", server.host).parse().unwrap();
    let error = server.registries().resolve(&reference, None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error:?}");
    let sentence = error.to_string();
    assert!(sentence.contains("team/image:other") && sentence.contains("`manifest unknown`"), "{sentence}");
    let reference = format!("{}/team/image@{}", server.host, digest(b"other")).parse().unwrap();
    let error = server.registries().resolve(&reference, None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error:?}");
}

/// A layer in pieces: each connection ends after `each` bytes. Without `parts` it always begins at the beginning.
fn cut_off(blob: &[u8], seen: &Seen, each: usize, parts: bool) -> Response {
    let range = seen.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let begin = from.filter(|_| parts).unwrap_or(0);
    let end = blob.len().min(from.unwrap_or(0) + each);
    let mut pieces = vec![Ok(blob[begin..end].to_vec())];
    if end < blob.len() {
        pieces.push(Err(std::io::Error::other("cut off")));
    }
    // What is there has to be on its way before the connection is cut.
    let pieces = futures_util::stream::iter(pieces).then(|piece| async move {
        if piece.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        piece
    });
    let body = Body::from_stream(pieces);
    let length = blob.len() - begin;
    let response = Response::builder().header(header::CONTENT_LENGTH, length);
    let response = match begin {
        0 => response,
        _ => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {begin}-{}/{}", blob.len() - 1, blob.len())),
    };
    response.body(body).unwrap()
}

#[tokio::test]
async fn a_download_that_is_cut_off_goes_on_where_it_was() {
    for parts in [true, false] {
        let image = image();
        let (blobs, _) = image.blobs();
        let large = blobs.values().map(Vec::len).max().unwrap();
        let server = Server::answering(image, move |seen| {
            let blob = blobs.get(seen.path.strip_prefix("/v2/team/image/blobs/")?)?;
            (blob.len() == large).then(|| cut_off(blob, seen, large / 3, parts))
        })
        .await;
        server.fetch().await.unwrap();
        let ranges = server.seen().iter().filter(|seen| seen.headers.contains_key(header::RANGE)).count();
        assert!(ranges >= 2, "it was asked for the rest: {ranges}");
    }
}

#[tokio::test]
async fn a_download_that_gets_no_further_is_given_up() {
    let image = image();
    let (blobs, _) = image.blobs();
    let large = blobs.values().map(Vec::len).max().unwrap();
    let server = Server::answering(image, move |seen| {
        let blob = blobs.get(seen.path.strip_prefix("/v2/team/image/blobs/")?)?;
        let first = Seen { headers: Default::default(), ..seen.clone() };
        (blob.len() == large).then(|| cut_off(blob, &first, large / 3, false))
    })
    .await;
    let error = server.fetch().await.unwrap_err();
    assert!(matches!(error, ImageError::Network { .. }), "{error:?}");
}

/// A registry the large layer of which is cut off after a third, and then asked for with answers of `status`, `times` of them.
async fn with_bad_answers(status: StatusCode, times: usize) -> Server {
    let image = image();
    let (blobs, _) = image.blobs();
    let large = blobs.values().map(Vec::len).max().unwrap();
    let asked = Mutex::new(0);
    Server::answering(image, move |seen| {
        let blob = blobs.get(seen.path.strip_prefix("/v2/team/image/blobs/")?)?;
        if blob.len() < large {
            return None;
        }
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        let error = r#"{"errors":[{"code":"SOME","message":"a reason"}]}"#;
        Some(match *asked {
            1 => cut_off(blob, seen, large / 3, true),
            now if now - 1 <= times => (status, error).into_response(),
            _ => cut_off(blob, seen, large, true),
        })
    })
    .await
}

fn asked_for_the_rest(server: &Server) -> usize {
    server.seen().iter().filter(|seen| seen.headers.contains_key(header::RANGE)).count()
}

#[tokio::test]
async fn a_registry_that_cannot_answer_for_the_moment_is_asked_again() {
    for status in [503, 500, 502, 504, 429] {
        let server = with_bad_answers(StatusCode::from_u16(status).unwrap(), 1).await;
        server.fetch().await.unwrap();
        assert_eq!(asked_for_the_rest(&server), 2, "{status}");
    }
    let server = with_bad_answers(StatusCode::SERVICE_UNAVAILABLE, usize::MAX).await;
    let sentence = server.refused().await;
    assert!(sentence.contains("503") && sentence.contains("`a reason`"), "{sentence}");
    assert_eq!(asked_for_the_rest(&server), 5, "not for ever");
}

/// A registry that answers with `status` so many times, whenever it is asked for what `is_it` says.
async fn with_bad_documents(
    is_it: impl Fn(&str) -> bool + Send + Sync + 'static,
    status: StatusCode,
    times: usize,
) -> Server {
    let asked = Mutex::new(0);
    Server::answering(image(), move |seen| {
        if !is_it(&seen.path) {
            // All but the token itself is for those who have one.
            return with_tokens(seen, None);
        }
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        let error = r#"{"errors":[{"code":"SOME","message":"a reason"}]}"#;
        (*asked <= times).then(|| (status, error).into_response()).or_else(|| with_tokens(seen, None))
    })
    .await
}

#[tokio::test]
async fn documents_and_tokens_are_asked_for_again_as_layers_are() {
    let config = digest(&bytes(&image().config));
    let documents = ["/v2/team/image/manifests/tag".to_owned(), format!("/v2/team/image/blobs/{config}")];
    for path in documents.into_iter().chain(["/token".to_owned()]) {
        for status in [500, 502, 503, 504, 429] {
            let (wanted, status) = (path.clone(), StatusCode::from_u16(status).unwrap());
            let server = with_bad_documents(move |path| path == wanted, status, 1).await;
            server.fetch().await.unwrap_or_else(|error| panic!("{status} at {path}: {error}"));
        }
    }
    let down = StatusCode::SERVICE_UNAVAILABLE;
    let server = with_bad_documents(|path| path.ends_with("/tag"), down, usize::MAX).await;
    let sentence = server.refused().await;
    assert!(sentence.contains("503") && sentence.contains("`a reason`"), "{sentence}");
    assert_eq!(server.seen().len(), 5, "not for ever");
    for status in [403, 404, 418] {
        let status = StatusCode::from_u16(status).unwrap();
        let server = with_bad_documents(|path| path.ends_with("/tag"), status, 1).await;
        server.refused().await;
        assert_eq!(server.seen().len(), 1, "{status} is an answer");
    }
}

#[tokio::test]
async fn a_registry_that_refuses_the_rest_is_not_asked_again() {
    for (status, words) in [(401, "login"), (403, "login"), (404, "not found"), (418, "418")] {
        let server = with_bad_answers(StatusCode::from_u16(status).unwrap(), 1).await;
        let sentence = server.refused().await;
        assert!(sentence.contains(words), "{status}: {sentence}");
        assert_eq!(asked_for_the_rest(&server), 1, "{status}");
    }
}

#[tokio::test]
async fn another_part_than_the_one_asked_for_is_refused() {
    let image = image();
    let (blobs, _) = image.blobs();
    let large = blobs.values().map(Vec::len).max().unwrap();
    let server = Server::answering(image, move |seen| {
        let blob = blobs.get(seen.path.strip_prefix("/v2/team/image/blobs/")?)?;
        let mut response = cut_off(blob, seen, large / 3, true);
        if blob.len() == large && seen.headers.contains_key(header::RANGE) {
            response.headers_mut().insert(header::CONTENT_RANGE, "bytes 0-9/10".parse().unwrap());
        }
        (blob.len() == large).then_some(response)
    })
    .await;
    assert!(server.refused().await.contains("another part than was asked for"));
}
