//! Agent sessions over commands: the lines they are told, and whose they are. The simulated wrapper says its input.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::Server;
use crate::web_socket::open;

/// Lines of a session until there are so many.
async fn lines(server: &Server, path: &str, count: usize) -> Vec<Value> {
    let (mut socket, _) = open(server, path, server.acme.key.as_deref()).await.unwrap();
    let mut text = Vec::new();
    let reading = async {
        while text.iter().filter(|byte| **byte == b'}').count() < count {
            if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap()
                && bytes.first() == Some(&1)
            {
                text.extend_from_slice(&bytes[1..]);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("in time");
    let text = String::from_utf8(text).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_session_is_told_who_it_is_its_options_and_its_prompt() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let agents = format!("/api/sandboxes/{id}/agent");
    let body = json!({"prompt": "Do it.", "model": "m", "resume": "r", "allowedTools": [], "maxTurns": 0, "agent": "codex"});
    let session = server.acme.post(&agents, body).await.is(201).json();
    assert_eq!((session["running"].as_bool(), session["agent"].as_str()), (Some(true), Some("codex")));
    let session = session["sessionID"].as_str().unwrap().to_owned();
    server.acme.post(&format!("{agents}/{session}/prompt"), json!({"text": "More."})).await.is(204);
    server.acme.post(&format!("{agents}/{session}/interrupt"), json!({})).await.is(204);
    server.acme.post(&format!("{agents}/{session}/configure"), json!({"endWhenIdle": true})).await.is(204);
    let answer = json!({"id": "p", "behavior": "deny", "message": "no"});
    server.acme.post(&format!("{agents}/{session}/permission"), answer).await.is(204);
    for path in [format!("{agents}/{session}"), format!("/sandboxes/{id}/exec/{session}")] {
        assert_eq!(
            lines(&server, &path, 7).await,
            [
                json!({"type": "session", "id": session}),
                json!({"type": "configure", "model": "m", "resume": "r"}),
                json!({"type": "prompt", "text": "Do it.", "resume": "r"}),
                json!({"type": "prompt", "text": "More."}),
                json!({"type": "interrupt"}),
                json!({"type": "configure", "endWhenIdle": true}),
                json!({"type": "permission_response", "id": "p", "behavior": "deny", "message": "no"}),
            ]
        );
    }
    let listed = server.acme.get(&agents).await.is(200).json();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["sessionID"]), (1, &json!(session)));
    server.acme.post(&format!("{agents}/{session}/kill"), json!({})).await.is(204);
    let late = server.acme.post(&format!("{agents}/{session}/prompt"), json!({"text": "x"})).await;
    assert_eq!(late.status, 409, "{late:?}");

    // Nobody was there when it ended; who lists it sees it.
    for _ in 0..2 {
        server.acme.get(&agents).await.is(200);
    }
    let records = server.acme.get(&format!("/api/sandboxes/{id}/audit?limit=1000")).await.is(200).json();
    let records = records.as_array().unwrap();
    let of = |name: &str, value: &str| {
        records
            .iter()
            .filter(|record| record["detail"][name] == value)
            .map(|record| &record["detail"])
            .collect::<Vec<_>>()
    };
    assert_eq!(of("outcome", "ended"), [&json!({"outcome": "ended", "exec": session, "exitCode": 137})]);
    // The wrapper is twelve files and one record, which has an end.
    assert_eq!(of("action", "install").len(), 1, "{records:?}");
    assert!(records.iter().all(|record| record["kind"] != "file.write"), "{records:?}");
}

#[tokio::test]
async fn what_an_agent_has_nothing_for_is_refused_by_name() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let agents = format!("/api/sandboxes/{id}/agent");
    let refused =
        server.acme.post(&agents, json!({"agent": "codex", "allowedTools": ["Bash"]})).await.is(400);
    assert!(refused.error().starts_with("allowedTools: codex has no list"), "{refused:?}");
    assert_eq!(server.acme.get(&agents).await.is(200).json(), json!([]));
    let session = server.acme.post(&agents, json!({"agent": "codex"})).await.is(201).json();
    let configure = format!("{agents}/{}/configure", session["sessionID"].as_str().unwrap());
    let refused =
        server.acme.post(&configure, json!({"disallowedTools": ["Bash"], "model": "m"})).await.is(400);
    assert!(refused.error().starts_with("disallowedTools: codex has no list"), "{refused:?}");
    server.acme.post(&configure, json!({"model": "m"})).await.is(204);
}

#[tokio::test]
async fn commands_that_are_no_sessions_are_not_found() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let exec =
        server.acme.post(&format!("/api/sandboxes/{id}/exec"), json!({"cmd": "cat"})).await.is(201).json();
    let exec = exec["sessionID"].as_str().unwrap();
    for what in ["prompt", "interrupt", "configure", "permission", "kill"] {
        let body = json!({"text": "x", "model": "m", "id": "p", "behavior": "allow"});
        let refused = server.acme.post(&format!("/api/sandboxes/{id}/agent/{exec}/{what}"), body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.error().as_str()),
            (404, "agent session not found"),
            "{what}"
        );
    }
    assert_eq!(server.acme.get(&format!("/api/sandboxes/{id}/agent")).await.is(200).json(), json!([]));
}
