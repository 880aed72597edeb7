//! The exec WebSocket, frame by frame.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::harness::{Server, eventually};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(crate) async fn open(
    server: &Server,
    path: &str,
    key: Option<&str>,
) -> Result<(Socket, http::HeaderMap), StatusCode> {
    let mut request = format!("ws://{}{path}", server.address).into_client_request().unwrap();
    if let Some(key) = key {
        request.headers_mut().insert("x-api-key", key.parse().unwrap());
    }
    match connect_async(request).await {
        Ok((socket, response)) => Ok((socket, response.headers().clone())),
        Err(Error::Http(response)) => {
            let body: serde_json::Value =
                serde_json::from_slice(response.body().as_deref().unwrap()).unwrap();
            assert!(body["error"].is_string());
            Err(response.status())
        }
        Err(error) => panic!("{error}"),
    }
}

/// The next message that says something.
pub(crate) async fn next(socket: &mut Socket) -> Message {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("in time");
        match message.expect("not closed").unwrap() {
            Message::Binary(bytes) if bytes.is_empty() => {}
            Message::Ping(_) => {}
            message => return message,
        }
    }
}

async fn bytes(socket: &mut Socket) -> Vec<u8> {
    match next(socket).await {
        Message::Binary(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn closed(socket: &mut Socket) -> CloseCode {
    match next(socket).await {
        Message::Close(frame) => frame.expect("a code").code,
        other => panic!("{other:?}"),
    }
}

async fn session(server: &Server, id: &str, cmd: &str) -> String {
    let session =
        server.acme.post(&format!("/api/sandboxes/{id}/exec"), json!({"cmd": cmd})).await.is(201).json();
    format!("/sandboxes/{id}/exec/{}", session["sessionID"].as_str().unwrap())
}

#[tokio::test]
async fn output_input_and_exit_have_their_exact_frames() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let key = server.acme.key.as_deref();
    let path = session(&server, &id, "out hi;err e;cat;out bye;exit 130").await;
    eventually("it has spoken", async || {
        let state = server.node.state();
        let exec = state.sandboxes[&id.parse().unwrap()].execs.values().next().unwrap().clone();
        let spoken = exec.log.lock().unwrap().pieces.len() == 2;
        spoken.then_some(())
    })
    .await;
    let (mut socket, headers) = open(&server, &format!("/api{path}"), key).await.unwrap();
    assert_eq!(headers["x-warren-exec-offset"], "0");
    assert!(headers.contains_key("x-request-id"));
    assert_eq!(bytes(&mut socket).await, b"\x01hi");
    assert_eq!(bytes(&mut socket).await, b"\x02e");
    assert_eq!(bytes(&mut socket).await, b"\x04");
    let (mut second, _) = open(&server, &path, key).await.unwrap();
    let listed = server.acme.get(&format!("/api/sandboxes/{id}/exec")).await.json();
    assert_eq!(listed[0]["attachedClients"], 2);

    for ignored in [&b""[..], b"\x00", b"\x07x", b"\x01x"] {
        socket.send(Message::binary(ignored.to_vec())).await.unwrap();
    }
    socket.send(Message::text("ignored")).await.unwrap();
    socket.send(Message::binary(&b"\x00ls\n"[..])).await.unwrap();
    assert_eq!(bytes(&mut socket).await, b"\x01ls\n");
    second.send(Message::binary(&b"\x00again"[..])).await.unwrap();
    assert_eq!(bytes(&mut socket).await, b"\x01again");
    socket.send(Message::binary(&b"\x05"[..])).await.unwrap();
    for frame in [&b"\x01bye"[..], b"\x03\0\0\0\x82"] {
        assert_eq!(bytes(&mut socket).await, frame);
    }
    assert_eq!(closed(&mut socket).await, CloseCode::Normal);

    let mut seen = Vec::new();
    loop {
        match next(&mut second).await {
            Message::Binary(bytes) => seen.push(bytes.to_vec()),
            Message::Close(frame) => break assert_eq!(frame.unwrap().code, CloseCode::Normal),
            other => panic!("{other:?}"),
        }
    }
    let expected: [&[u8]; 7] =
        [b"\x01hi", b"\x02e", b"\x04", b"\x01ls\n", b"\x01again", b"\x01bye", b"\x03\0\0\0\x82"];
    assert_eq!(seen, expected, "every client sees the same");

    let (mut late, headers) = open(&server, &format!("{path}?offset=3"), key).await.unwrap();
    assert_eq!(headers["x-warren-exec-offset"], "3");
    for frame in [&b"\x01ls\n"[..], b"\x01again", b"\x01bye", b"\x04", b"\x03\0\0\0\x82"] {
        assert_eq!(bytes(&mut late).await, frame, "after the exit: replay, end of it, exit");
    }
    assert_eq!(closed(&mut late).await, CloseCode::Normal);
}

#[tokio::test]
async fn a_lost_stream_closes_without_an_exit_code() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = session(&server, &id, "out a;cat;lose").await;
    let (mut socket, _) = open(&server, &path, server.acme.key.as_deref()).await.unwrap();
    socket.send(Message::binary(&b"\x05"[..])).await.unwrap();
    loop {
        match next(&mut socket).await {
            Message::Binary(bytes) => assert_ne!(bytes[0], 3, "no code is invented"),
            Message::Close(frame) => break assert_eq!(frame.unwrap().code, CloseCode::Error),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_before_the_upgrade() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = session(&server, &id, "hold").await;
    let (acme, rival) = (server.acme.key.clone().unwrap(), server.rival.key.clone().unwrap());
    let other = server.acme.create(json!({})).await["token"].as_str().unwrap().to_owned();
    let own =
        server.acme.get(&format!("/api/sandboxes/{id}")).await.json()["token"].as_str().unwrap().to_owned();
    for prefix in ["", "/api"] {
        let path = format!("{prefix}{path}");
        assert_eq!(open(&server, &path, None).await.unwrap_err(), 401);
        assert_eq!(open(&server, &path, Some(&rival)).await.unwrap_err(), 404);
        assert_eq!(open(&server, &format!("{path}?api_key={rival}"), None).await.unwrap_err(), 404);
        assert_eq!(open(&server, &format!("{path}?token={other}"), None).await.unwrap_err(), 403);
        assert_eq!(open(&server, &format!("{path}?offset=x"), Some(&acme)).await.unwrap_err(), 400);
        let unknown = format!("{prefix}/sandboxes/{id}/exec/00000000");
        assert_eq!(open(&server, &unknown, Some(&acme)).await.unwrap_err(), 404);
        let unknown = format!("{prefix}/sandboxes/{id}/pty/00000000");
        assert_eq!(open(&server, &unknown, Some(&acme)).await.unwrap_err(), 404);
        for good in [format!("?api_key={acme}"), format!("?api_key={own}"), format!("?token={own}")] {
            open(&server, &format!("{path}{good}"), None).await.unwrap();
        }
        let plain = server.acme.get(&path).await.is(426).error();
        assert!(plain.contains("WebSocket"), "{plain}");
    }
}

#[tokio::test]
async fn much_output_arrives_whole_and_a_slow_reader_is_waited_for() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = session(&server, &id, "cat;big 30000000;exit 0").await;
    let (mut socket, _) = open(&server, &path, server.acme.key.as_deref()).await.unwrap();
    assert_eq!(bytes(&mut socket).await, b"\x04");
    socket.send(Message::binary(&b"\x05"[..])).await.unwrap();
    let mut length = 0;
    loop {
        match next(&mut socket).await {
            Message::Binary(bytes) if bytes[0] == 1 => length += bytes.len() - 1,
            Message::Binary(bytes) => break assert_eq!(&bytes[..], b"\x03\0\0\0\0"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(length, 30_000_000);
}

#[tokio::test]
async fn a_message_that_is_too_large_closes_and_a_large_one_passes() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = session(&server, &id, "cat").await;
    let (mut socket, _) = open(&server, &path, server.acme.key.as_deref()).await.unwrap();
    assert_eq!(bytes(&mut socket).await, b"\x04");
    let mut message = vec![b'x'; 15 << 20];
    message[0] = 0;
    socket.send(Message::binary(message)).await.unwrap();
    let mut length = 0;
    while length < (15 << 20) - 1 {
        length += bytes(&mut socket).await.len() - 1;
    }
    let _ = socket.send(Message::binary(vec![0; (16 << 20) + 1])).await;
    assert_eq!(closed(&mut socket).await, CloseCode::Size);
}

#[tokio::test]
async fn a_stopping_server_says_so_and_the_command_goes_on() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = session(&server, &id, "hold").await;
    let (mut socket, _) = open(&server, &path, server.acme.key.as_deref()).await.unwrap();
    assert_eq!(bytes(&mut socket).await, b"\x04");
    server.shut_down();
    assert_eq!(closed(&mut socket).await, CloseCode::Away);
    drop(socket);
    let (node, _dir) = server.stop().await;
    let state = node.state();
    let exec = state.sandboxes[&id.parse().unwrap()].execs.values().next().unwrap();
    assert!(exec.log.lock().unwrap().exit.is_none());
}

#[tokio::test]
async fn a_client_is_heard_while_its_input_waits() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = session(&server, &id, "hold").await;
    let (mut socket, _) = open(&server, &path, server.acme.key.as_deref()).await.unwrap();
    assert_eq!(bytes(&mut socket).await, b"\x04");
    for _ in 0..20 {
        socket.send(Message::binary(vec![0; 100_000])).await.unwrap();
    }
    socket.send(Message::Ping("there?".into())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong("there?".into()));
    drop(socket);
    eventually("it is detached", async || {
        let listed = server.acme.get(&format!("/api/sandboxes/{id}/exec")).await.json();
        (listed[0]["attachedClients"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn input_of_a_client_that_leaves_at_once_arrives() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = session(&server, &id, "cat;exit 0").await;
    let (mut socket, _) = open(&server, &path, server.acme.key.as_deref()).await.unwrap();
    for _ in 0..30 {
        socket.send(Message::binary(&b"\x00line\n"[..])).await.unwrap();
    }
    socket.send(Message::binary(&b"\x05"[..])).await.unwrap();
    socket.close(None).await.unwrap();
    eventually("it has read its input to the end", async || {
        let listed = server.acme.get(&format!("/api/sandboxes/{id}/exec")).await.json();
        (listed[0]["exitCode"] == 0).then_some(())
    })
    .await;
}
