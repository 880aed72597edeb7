//! Terminals.

use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::{Server, send};
use crate::web_socket::{closed, next, open};

#[tokio::test]
async fn a_terminal_is_raw_bytes_both_ways() {
    let server = Server::start().await;
    let sandbox = server.acme.create(json!({})).await;
    let (id, token) = (sandbox["sandboxID"].as_str().unwrap(), sandbox["token"].as_str().unwrap());
    let path = format!("/sandboxes/{id}/pty");
    let session = send(server.acme.request(http::Method::POST, &path)).await.is(201).json();
    assert_eq!(session["sandboxID"], *id);
    let terminal = format!("{path}/{}", session["sessionID"].as_str().unwrap());

    // As the Python SDK does: the token in header and query, at the root.
    let (mut socket, _) = open(&server, &format!("{terminal}?api_key={token}"), Some(token)).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::binary(&b"$ "[..]));
    socket.send(Message::text("hé")).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::binary("hé".as_bytes()));
    socket.send(Message::binary(&b"\x00\x03"[..])).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::binary(&b"\x00\x03"[..]));

    let resized =
        server.acme.post(&format!("/api{terminal}/resize"), json!({"cols": 120, "rows": 40})).await.is(200);
    assert_eq!(resized.text, "");
    let size = {
        let state = server.node.state();
        let pty = &state.sandboxes[&id.parse().unwrap()].ptys[session["sessionID"].as_str().unwrap()];
        *pty.size.lock().unwrap()
    };
    assert_eq!(size, (120, 40));
    for bad in
        [json!({"cols": 0, "rows": 1}), json!({"cols": 1001, "rows": 1}), json!({"cols": 80}), json!({})]
    {
        server.acme.post(&format!("{terminal}/resize"), bad).await.is(400).error();
    }
    server.acme.post(&path, json!({"cols": -1})).await.is(400).error();
    socket.send(Message::binary(&b"exit\n"[..])).await.unwrap();
    assert_eq!(closed(&mut socket).await, CloseCode::Normal);
    server.acme.delete(&terminal).await.is(204);
    server.acme.delete(&terminal).await.is(404);
    server.acme.post(&format!("{path}/00000000/resize"), json!({"cols": 1, "rows": 1})).await.is(404);
}
