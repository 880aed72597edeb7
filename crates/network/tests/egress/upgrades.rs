//! WebSockets.

use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use warren_node_api::{Place, SecretGrant};

use crate::harness::*;

/// The server's side: says everything it is told again; `leak` is answered with the value, `split` with the value in
/// two frames.
pub(crate) fn accept(request: &mut Request<Incoming>, seen: &Arc<Mutex<Vec<Seen>>>) -> Response<Sent> {
    seen.lock().unwrap().push(Seen {
        version: request.version(),
        method: request.method().clone(),
        uri: request.uri().clone(),
        headers: request.headers().clone(),
        body: bytes::Bytes::new(),
        trailers: None,
    });
    let key = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let stream = TokioIo::new(upgrade.await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            let answer = match message {
                Message::Text(text) if text == "leak" => Message::text(format!("it is {VALUE}")),
                Message::Close(_) => return,
                message @ (Message::Text(_) | Message::Binary(_)) => message,
                _ => continue,
            };
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    });
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", key)
        .body(full(""))
        .unwrap()
}

async fn socket(world: &World) -> WebSocketStream<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> {
    let stream = world.tls("api.test", &[]).await;
    let request = Request::get("wss://api.test/socket")
        .header("host", "api.test")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-extensions", "permessage-deflate")
        .header("authorization", format!("Bearer {}", token(1)))
        .body(())
        .unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

#[tokio::test]
async fn messages_go_both_ways_after_a_request_with_a_secret() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let mut socket = socket(&world).await;
    for message in ["hello".to_owned(), "x".repeat(200_000), "s".to_owned()] {
        socket.send(Message::text(message.clone())).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), message);
    }
    let seen = world.last();
    assert_eq!(seen.header("authorization"), format!("Bearer {VALUE}"));
    assert_eq!(seen.header("sec-websocket-extensions"), "");
    assert_eq!(world.uses()[0].name, "KEY1");
}

#[tokio::test]
async fn a_message_with_the_value_ends_it() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let mut socket = socket(&world).await;
    socket.send(Message::text("leak")).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        assert!(!message.to_string().contains("sk-live"), "{message}");
    }
    assert!(world.session.report().blocked[0].reason.contains("WebSocket"));
}

#[tokio::test]
async fn an_open_one_is_read_for_the_values_of_the_moment() {
    for (said, then) in [
        ("the-second-value-2", grant("the-second-value-2", &["api.test"], &[Place::Header])),
        (VALUE, grant("the-second-value-2", &["api.test"], &[Place::Header])),
        (VALUE, SecretGrant::default()),
    ] {
        let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
        let mut socket = socket(&world).await;
        socket.send(Message::text("hello")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), "hello");
        world.session.set_grant(then);
        socket.send(Message::text(said)).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            assert!(!message.to_string().contains(said), "{message}");
        }
        assert!(world.session.report().blocked[0].reason.contains("WebSocket"));
    }
}

#[tokio::test]
async fn it_ends_with_the_policy_that_allowed_it() {
    let world = World::new(Setting { sealed: false, ..Setting::default() }).await;
    let rule = |path: &str| {
        allowlist(&format!(r#"{{"host":"api.test","ports":[{}],"paths":["{path}"]}}"#, world.port))
    };
    world.session.set_policy(rule("/"));
    let mut socket = socket(&world).await;
    socket.send(Message::text("hello")).await.unwrap();
    assert!(socket.next().await.unwrap().is_ok());
    world.session.set_policy(rule("/else"));
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(std::time::Duration::from_secs(5), ended).await.expect("it is closed");
}
