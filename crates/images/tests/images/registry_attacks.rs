//! Registries that lie, stall, and lead elsewhere.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_images::{ImageError, Limits};

use crate::layout::{CONFIG, GZIP, Image, MANIFEST, bytes, descriptor, digest};
use crate::server::{Seen, Server, login, registries};
use crate::tars::{Item, tar};

fn image() -> Image {
    Image::new(&[tar(&[Item::file("a", "x".repeat(50_000))])])
}

fn is_manifest(seen: &Seen) -> bool {
    seen.path.contains("/manifests/")
}

fn layer_path(image: &Image) -> String {
    format!("/v2/team/image/blobs/{}", digest(&image.layers[0]))
}

/// The registry answers the manifest's request with this.
async fn with_manifest(manifest: Value) -> String {
    let manifest = bytes(&manifest);
    let server =
        Server::answering(image(), move |seen| is_manifest(seen).then(|| manifest.clone().into_response()))
            .await;
    server.refused().await
}

/// The registry answers the layer's request with this.
async fn with_layer(answer: impl Fn(Vec<u8>) -> Response + Send + Sync + 'static) -> ImageError {
    let image = image();
    let (path, layer) = (layer_path(&image), image.layers[0].clone());
    let server =
        Server::answering(image, move |seen| (seen.path == path).then(|| answer(layer.clone()))).await;
    let limits = Limits { stall: Duration::from_millis(300), ..Limits::default() };
    server.fetch_with(&server.registries(), None, &limits).await.unwrap_err()
}

/// Whatever is redirected to ends up with this.
async fn redirecting(to: impl Fn(&Seen) -> String + Send + Sync + 'static) -> Server {
    Server::answering(image(), move |seen| {
        Some((StatusCode::FOUND, [(header::LOCATION, to(seen))]).into_response())
    })
    .await
}

#[tokio::test]
async fn private_addresses_are_refused_unless_they_are_listed() {
    let server = Server::start(image()).await;
    let (_, port) = server.host.split_once(':').unwrap();
    let none = registries(&[]);
    for host in [
        server.host.clone(),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("2130706433:{port}"),
        format!("127.1:{port}"),
        "169.254.169.254".to_owned(),
        "10.0.0.1:443".to_owned(),
    ] {
        let Ok(reference) = format!("{host}/team/image:tag").parse() else { panic!("{host}") };
        let error = none.resolve(&reference, None).await.unwrap_err();
        assert!(matches!(&error, ImageError::Unreachable { .. }), "{host}: {error:?}");
        assert!(error.to_string().contains("private"), "{error}");
    }
    assert!(server.seen().is_empty(), "it was not even asked");
    // Listed with another port is not listed.
    let other = registries(&["127.0.0.1:1"]);
    assert!(other.resolve(&server.reference(), None).await.is_err());
    server.fetch().await.unwrap();
}

#[tokio::test]
async fn redirects_to_where_we_do_not_go_are_not_followed() {
    let elsewhere = Server::start(image()).await;
    let (_, port) = elsewhere.host.split_once(':').unwrap();
    for target in [
        format!("http://{}/", elsewhere.host),
        format!("https://{}/", elsewhere.host),
        format!("https://localhost:{port}/"),
        "http://example.com/".to_owned(),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "file:///etc/passwd".to_owned(),
        "https://u:p@example.com/".to_owned(),
    ] {
        let to = target.clone();
        let server = redirecting(move |_| to.clone()).await;
        let error = server.fetch().await.unwrap_err();
        assert!(matches!(&error, ImageError::Unreachable { .. }), "{target}: {error:?}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn redirects_end() {
    let server = redirecting(|seen| format!("{}x", seen.path)).await;
    assert!(server.refused().await.contains("redirects more than 5 times"));
    assert_eq!(server.seen().len(), 6);
    let server = Server::answering(image(), |_| Some(StatusCode::FOUND.into_response())).await;
    assert!(server.refused().await.contains("redirects to no address"));
}

#[tokio::test]
async fn a_registry_that_asks_for_credentials_for_ever_is_left() {
    let server = Server::answering(image(), |seen| {
        let host = seen.headers[header::HOST].to_str().unwrap();
        if seen.path == "/token" {
            return Some(axum::Json(json!({ "token": format!("t{}", seen.query.len()) })).into_response());
        }
        let challenge = format!(r#"Bearer realm="http://{host}/token""#);
        Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response())
    })
    .await;
    let error = server.fetch_as(Some(&login())).await.unwrap_err();
    assert!(matches!(&error, ImageError::Denied { .. }), "{error:?}");
    assert_eq!(server.seen().len(), 3, "asked, got a token, asked again");
    for challenge in ["", "Negotiate", "Bearer service=\"x\"", "Bearer realm=\"::\""] {
        let server = Server::answering(image(), move |_| {
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response())
        })
        .await;
        let error = server.fetch_as(Some(&login())).await.unwrap_err();
        assert!(matches!(&error, ImageError::Denied { .. }), "{error:?}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn credentials_do_not_go_where_they_do_not_belong() {
    let thief =
        Server::answering(image(), |_| Some(axum::Json(json!({ "token": "t" })).into_response())).await;
    // A realm without TLS, on a host that is not listed.
    let realm = format!("http://{}/token", thief.host);
    let challenge = format!("Bearer realm=\"{realm}\"");
    let server = Server::answering(image(), move |_| {
        Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response())
    })
    .await;
    let error = server.fetch_as(Some(&login())).await.unwrap_err();
    assert!(matches!(&error, ImageError::Unreachable { .. }), "{error:?}");
    // A token service that sends one on.
    let thiefs = realm.clone();
    let server = Server::answering(image(), move |seen| {
        let host = seen.headers[header::HOST].to_str().unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\"");
        Some(match seen.path.as_str() {
            "/token" => (StatusCode::FOUND, [(header::LOCATION, thiefs.clone())]).into_response(),
            _ => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response(),
        })
    })
    .await;
    let listed = registries(&[&server.host, &thief.host]);
    let error = server.fetch_with(&listed, Some(&login()), &Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains("asked for a token"), "{error}");
    assert!(thief.seen().is_empty());
    // A challenge of whom a redirect leads to.
    let challenging = Server::answering(image(), |seen| {
        let host = seen.headers[header::HOST].to_str().unwrap();
        Some(
            (
                StatusCode::UNAUTHORIZED,
                [(header::WWW_AUTHENTICATE, format!("Bearer realm=\"http://{host}/token\""))],
            )
                .into_response(),
        )
    })
    .await;
    let target = format!("http://{}/x", challenging.host);
    let server = redirecting(move |_| target.clone()).await;
    let listed = registries(&[&server.host, &challenging.host]);
    let error = server.fetch_with(&listed, Some(&login()), &Limits::default()).await.unwrap_err();
    assert!(matches!(&error, ImageError::Denied { .. }), "{error:?}");
    assert!(challenging.seen().iter().all(|seen| seen.path != "/token" && seen.authorization().is_none()));
}

#[tokio::test]
async fn passwords_and_signatures_are_in_no_error() {
    let server = Server::answering(image(), |seen| {
        Some(if seen.authorization().is_some() {
            (StatusCode::FOUND, [(header::LOCATION, "https://127.0.0.1:1/blob?signature=hunter3".to_owned())])
                .into_response()
        } else {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic".to_owned())]).into_response()
        })
    })
    .await;
    let error = server.fetch_as(Some(&login())).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter") && !text.contains("aHVudGVy"), "{text}");
    let debug = format!("{:?}", login());
    assert!(!debug.contains("hunter2"), "{debug}");
}

#[tokio::test]
async fn wrong_manifests_are_refused_by_name() {
    let good = image().manifest();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest
    };
    let layer = |media_type: &str| json!([{ "mediaType": media_type, "digest": digest(b""), "size": 0 }]);
    for (manifest, words) in [
        (with(&|manifest| manifest["schemaVersion"] = json!(1)), "schema 1"),
        (with(&|manifest| manifest["schemaVersion"] = json!(3)), "schemaVersion is 3"),
        (
            with(&|manifest| {
                manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v1+prettyjws");
            }),
            "schema 1",
        ),
        (with(&|manifest| manifest["mediaType"] = json!("text/plain")), "the media type `text/plain`"),
        (with(&|manifest| manifest["manifests"] = json!([])), "neither a manifest nor an index"),
        (
            with(&|manifest| {
                manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
            }),
            "helm",
        ),
        (
            with(&|manifest| manifest["layers"] = layer("application/vnd.oci.image.layer.v1.tar+encrypted")),
            "tar+encrypted",
        ),
        (with(&|manifest| manifest["layers"] = json!(vec![layer(GZIP)[0].clone(); 129])), "129 layers"),
        (
            with(&|manifest| manifest["layers"][0]["size"] = json!(1_u64 << 50)),
            "a layer has 1125899906842624 bytes",
        ),
        (with(&|manifest| manifest["layers"][0]["size"] = json!(-1)), "cannot be read"),
        (with(&|manifest| manifest["layers"][0]["digest"] = json!("sha512:00")), "only sha256"),
        (with(&|manifest| manifest["layers"][0]["digest"] = json!("../../x")), "cannot be read"),
        (with(&|manifest| manifest["config"] = descriptor(CONFIG, b"{}")), "was not found"),
        (
            with(&|manifest| manifest["config"]["size"] = json!(1)),
            "its configuration does not have the digest",
        ),
        (json!("manifest"), "cannot be read"),
        (json!({ "schemaVersion": 2, "manifests": [] }), "nothing for linux"),
    ] {
        let error = with_manifest(manifest).await;
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[tokio::test]
async fn manifests_that_are_not_what_was_asked_for_are_refused() {
    let server = Server::answering(image(), |seen| {
        is_manifest(seen).then(|| bytes(&Image::new(&[]).manifest()).into_response())
    })
    .await;
    let reference = format!("{}/team/image@{}", server.host, digest(b"asked")).parse().unwrap();
    let error = server.registries().resolve(&reference, None).await.unwrap_err();
    assert!(error.to_string().contains("its manifest does not have the digest"), "{error}");
    let manifest = bytes(&image().manifest());
    let server = Server::answering(image(), move |seen| {
        is_manifest(seen)
            .then(|| ([("docker-content-digest", digest(b"other"))], manifest.clone()).into_response())
    })
    .await;
    assert!(server.refused().await.contains("the digest that the registry says"));
    // Of an index that names itself there is none, so it names what is not an end.
    let inner = bytes(&json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFEST, b"x")] }));
    let index = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": MANIFEST, "digest": digest(&inner), "size": 1 }] });
    let server = Server::answering(image(), move |seen| {
        is_manifest(seen).then(|| {
            if seen.path.ends_with(":tag") || seen.path.ends_with("/tag") {
                bytes(&index)
            } else {
                inner.clone()
            }
            .into_response()
        })
    })
    .await;
    assert!(server.refused().await.contains("the size that its index says"));
}

#[tokio::test]
async fn documents_without_end_are_cut_short() {
    let endless = || {
        let pieces = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 64 << 10])));
        Response::new(Body::from_stream(pieces))
    };
    let server = Server::answering(image(), move |seen| is_manifest(seen).then(endless)).await;
    assert!(server.refused().await.contains("its manifest has more than 4194304 bytes"));
    let server = Server::answering(image(), move |seen| {
        is_manifest(seen).then(|| {
            let mut error = endless();
            *error.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            error
        })
    })
    .await;
    assert!(server.refused().await.contains("answered 500"));
    let error = with_layer(move |_| endless()).await;
    assert!(error.to_string().contains("sent more than"), "{error}");
}

#[tokio::test]
async fn layers_that_are_not_what_was_promised_are_refused() {
    let error = with_layer(|layer| layer[1..].to_vec().into_response()).await;
    assert!(error.to_string().contains("its manifest says"), "{error}");
    let error = with_layer(|mut layer| {
        layer[20] ^= 1;
        layer.into_response()
    })
    .await;
    assert!(matches!(&error, ImageError::Broken(why) if why.contains("sent as sha256:")), "{error:?}");
    let streamed =
        |layer: Vec<u8>| Response::new(Body::from_stream(stream::iter([Ok::<_, std::io::Error>(layer)])));
    let error = with_layer(move |layer| streamed(layer[..layer.len() - 1].to_vec())).await;
    assert!(error.to_string().contains("its manifest says"), "{error}");
    let error = with_layer(move |layer| streamed([layer.as_slice(), b"more"].concat())).await;
    assert!(error.to_string().contains("sent more than"), "{error}");
    let error = with_layer(|_| StatusCode::NOT_FOUND.into_response()).await;
    assert!(matches!(error, ImageError::NotFound { .. }), "{error:?}");
    let error = with_layer(|_| StatusCode::PARTIAL_CONTENT.into_response()).await;
    assert!(matches!(error, ImageError::Registry { .. }), "{error:?}");
    let error = with_layer(|_| StatusCode::TOO_MANY_REQUESTS.into_response()).await;
    assert!(matches!(error, ImageError::Busy { .. }), "{error:?}");
    assert!(error.to_string().contains("try again later"), "{error}");
}

#[tokio::test]
async fn stalls_are_given_up() {
    let begun = Instant::now();
    let error = with_layer(|layer| {
        let pieces = stream::iter([Ok::<_, std::io::Error>(layer[..10].to_vec())]).chain(stream::pending());
        Response::new(Body::from_stream(pieces))
    })
    .await;
    assert!(matches!(error, ImageError::Stalled { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_connection_that_is_cut_off_is_said_to_be_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let _ = connection.read(&mut [0; 4096]).await;
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{").await.unwrap();
    });
    let reference = format!("{host}/team/image:tag").parse().unwrap();
    let error = registries(&[&host]).resolve(&reference, None).await.unwrap_err();
    assert!(matches!(error, ImageError::Network { .. }), "{error:?}");
    let error =
        registries(&["127.0.0.1:1"]).resolve(&"127.0.0.1:1/x".parse().unwrap(), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Network { .. }), "{error:?}");
}
