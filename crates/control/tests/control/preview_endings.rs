//! What is under way to a preview ends with what let it in.

use std::time::Duration;

use futures_util::StreamExt;
use http::{Method, StatusCode};
use serde_json::json;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::harness::{Answer, Server};
use crate::previews::{PORT, ask, asked_at, host, listen};
use crate::sim::SimNode;

const TOKEN: &str = "0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(10);

type Events = reqwest::Response;
type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// A stream that has begun, and never ends by itself.
async fn events(server: &Server, at: &str, header: (&str, &str)) -> Events {
    let request = asked_at(server, Method::GET, at, "/events").header(header.0, header.1);
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.chunk().await.unwrap().is_some());
    answer
}

async fn socket(server: &Server, at: &str, token: &str) -> Socket {
    let mut request = format!("ws://{}/socket", server.address).into_client_request().unwrap();
    request.headers_mut().insert("host", at.parse().unwrap());
    request.headers_mut().insert("x-oc-preview-token", token.parse().unwrap());
    let (mut socket, _) = connect_async(request).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Text(_)))));
    socket
}

async fn breaks_off(mut events: Events) {
    let end = async { while let Ok(Some(_)) = events.chunk().await {} };
    tokio::time::timeout(PATIENCE, end).await.expect("it ends");
}

async fn goes_on(events: &mut Events) {
    let end = async { while let Ok(Some(_)) = events.chunk().await {} };
    assert!(tokio::time::timeout(Duration::from_millis(300), end).await.is_err(), "it ends");
}

async fn rotate(server: &Server, id: &str) -> String {
    let rotated = server.acme.post(&format!("/api/sandboxes/{id}/preview/rotate"), json!({})).await;
    rotated.is(200).json()["previewAuthToken"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn another_token_ends_what_was_opened_before_it() {
    let server = Server::start().await;
    let made = server.acme.create(json!({"previewAuth": {"token": TOKEN}})).await;
    let id = made["sandboxID"].as_str().unwrap();
    let other = server.acme.sandbox().await;
    listen(&server, id, PORT).await;
    listen(&server, &other, PORT).await;
    let mut others = events(&server, &host(&other, PORT), ("x-own", "")).await;
    let stream = events(&server, &host(id, PORT), ("x-oc-preview-token", TOKEN)).await;
    let mut socket = socket(&server, &host(id, PORT), TOKEN).await;

    let token = rotate(&server, id).await;
    breaks_off(stream).await;
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.expect("it ends");
    assert!(!matches!(end, Some(Ok(Message::Text(_) | Message::Binary(_)))), "{end:?}");
    assert!(!matches!(end, Some(Err(SocketError::AlreadyClosed))), "{end:?}");
    // What is opened with the new one stays, and what is of another sandbox.
    let mut fresh = events(&server, &host(id, PORT), ("x-oc-preview-token", &token)).await;
    goes_on(&mut fresh).await;
    goes_on(&mut others).await;

    // Previews that were open to everybody are closed by a first token.
    rotate(&server, &other).await;
    breaks_off(others).await;
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_told() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let program = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    server.node.state().listeners.insert((id.parse().unwrap(), PORT), program.local_addr().unwrap());
    let (answer, ()): (Answer, ()) = tokio::join!(ask(&server, &id, "/", &[]), async {
        let (_silent, _) = program.accept().await.unwrap();
        rotate(&server, &id).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    let error = answer.is(401).error();
    assert!(error.contains("no longer good"), "{error}");
}

#[tokio::test]
async fn a_link_ends_what_it_opened_when_it_expires() {
    let server = Server::start().await;
    let made = server.acme.create(json!({"previewAuth": {"token": TOKEN}})).await;
    let id = made["sandboxID"].as_str().unwrap();
    listen(&server, id, PORT).await;
    let share = format!("/api/sandboxes/{id}/preview/{PORT}/share");
    let link = server.acme.post(&share, json!({"expiresIn": 2})).await.is(200).json();
    let query = link["url"].as_str().unwrap().split_once('?').unwrap().1;
    let opened = ask(&server, id, &format!("/?{query}"), &[]).await.is(303);
    let cookie = opened.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap();
    let of_the_link = events(&server, &host(id, PORT), ("cookie", cookie)).await;
    let mut of_the_token = events(&server, &host(id, PORT), ("x-oc-preview-token", TOKEN)).await;
    breaks_off(of_the_link).await;
    goes_on(&mut of_the_token).await;
}

#[tokio::test]
async fn a_name_that_is_taken_back_ends_what_came_by_it() {
    let server = Server::start_with(SimNode::new(), tempfile::tempdir().unwrap(), |config| {
        config.custom_domains = vec!["acme=apps.acme.example".parse().unwrap()];
    })
    .await;
    let id = server.acme.sandbox().await;
    listen(&server, &id, PORT).await;
    let path = format!("/api/sandboxes/{id}/preview");
    server.acme.post(&path, json!({"port": PORT, "domain": "apps.acme.example"})).await.is(201);
    let named = format!("{id}-p{PORT}.apps.acme.example");
    let by_name = events(&server, &named, ("x-own", "")).await;
    let mut by_id = events(&server, &host(&id, PORT), ("x-own", "")).await;
    server.acme.delete(&format!("{path}/{PORT}")).await.is(204);
    breaks_off(by_name).await;
    // Every port can be opened without being registered.
    goes_on(&mut by_id).await;
}
