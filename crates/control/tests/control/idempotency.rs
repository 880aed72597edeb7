//! `Idempotency-Key`.

use http::Method;
use serde_json::{Value, json};
use warren_types::{Error, ErrorKind};

use crate::harness::{Answer, Api, Server, send};

async fn create(api: &Api, key: &str, body: Value) -> Answer {
    send(api.request(Method::POST, "/api/sandboxes").header("idempotency-key", key).json(&body)).await
}

fn id(answer: &Answer) -> String {
    answer.json()["sandboxID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_same_key_is_the_same_sandbox() {
    let server = Server::start().await;
    let body = json!({"metadata": {"a": "1", "b": "2"}});
    let first = create(&server.acme, "k", body.clone()).await.is(201);
    let again = create(&server.acme, "k", json!({"metadata": {"b": "2", "a": "1"}})).await.is(201);
    assert_eq!(first.json(), again.json());
    let other = create(&server.acme, "k", json!({"metadata": {"a": "2"}})).await.is(409);
    assert_eq!(other.json()["code"], "idempotency_key_conflict");
    assert_ne!(id(&create(&server.acme, "k2", body.clone()).await.is(201)), id(&first));
    assert_ne!(
        id(&create(&server.rival, "k", body.clone()).await.is(201)),
        id(&first),
        "keys belong to an organisation"
    );
    assert_eq!(server.node.state().creates, 3);

    let (node, dir) = server.stop().await;
    let server = Server::start_with(node, dir, |_| {}).await;
    let restarted = create(&server.acme, "k", body).await.is(201);
    assert_eq!(id(&restarted), id(&first), "a key outlives a restart");
}

#[tokio::test]
async fn creates_at_once_with_one_key_are_one() {
    let server = Server::start().await;
    let held = server.node.hold_creates();
    let creates: Vec<_> = (0..8)
        .map(|_| {
            let acme = server.acme.clone();
            tokio::spawn(async move { create(&acme, "k", json!({})).await })
        })
        .collect();
    crate::harness::eventually("one is at the node", async || {
        (server.node.state().creates == 1).then_some(())
    })
    .await;
    drop(held);
    let answers = futures_util::future::join_all(creates).await;
    let ids: std::collections::BTreeSet<String> =
        answers.into_iter().map(|answer| id(&answer.unwrap().is(201))).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(server.node.state().creates, 1);
}

#[tokio::test]
async fn a_failed_create_frees_its_key() {
    let server = Server::start().await;
    server.node.state().create_errors.push(Error::new(ErrorKind::SandboxFailed, "no"));
    create(&server.acme, "k", json!({})).await.is(502);
    create(&server.acme, "k", json!({"timeout": 5})).await.is(201);
}

#[tokio::test]
async fn keys_that_cannot_be_are_refused() {
    let server = Server::start().await;
    for bad in ["a b", "é", "", &"k".repeat(256)] {
        create(&server.acme, bad, json!({})).await.is(400).error();
    }
    create(&server.acme, &"k".repeat(255), json!({})).await.is(201);
    assert_eq!(server.node.state().creates, 1);
}
