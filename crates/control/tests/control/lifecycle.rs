//! Get, delete, time-outs, hibernate, wake, tags.

use serde_json::json;
use warren_types::SandboxState;

use crate::harness::{Server, eventually};

#[tokio::test]
async fn deleting_is_at_once_for_ever_and_repeatable() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}");
    server.acme.delete(&format!("{path}?deleteSecretStore=true")).await.is(204);
    assert!(!server.node.has(&id));
    server.acme.delete(&path).await.is(204);
    let stopped = server.acme.get(&path).await.is(200).json();
    assert_eq!(stopped["status"], "stopped");
    assert!(stopped["endAt"].is_string());
    assert_eq!(
        (stopped.get("token"), stopped.get("connectURL"), stopped.get("workerID")),
        (None, None, None)
    );
    server.acme.delete("/api/sandboxes/sb-00000000").await.is(404);
    for (verb, status) in [
        ("timeout", 410),
        ("hibernate", 400),
        ("wake", 410),
        ("reboot", 410),
        ("power-cycle", 410),
        ("scale", 410),
    ] {
        server.acme.post(&format!("{path}/{verb}"), json!({"timeout": 5})).await.is(status).error();
    }
    server.acme.get(&format!("{path}/tags")).await.is(200);
    server.acme.put(&format!("{path}/tags"), json!({"a": "b"})).await.is(200);
}

#[tokio::test]
async fn a_delete_that_the_node_misses_is_finished_later() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    server.node.state().unreachable = true;
    server.anonymous().get("/readyz").await.is(503);
    server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    assert_eq!(server.acme.status(&id).await, "stopped");
    assert!(server.node.has(&id));
    server.node.state().unreachable = false;
    server.anonymous().get("/readyz").await.is(200);
    let (node, dir) = server.stop().await;
    let server = Server::start_with(node, dir, |_| {}).await;
    assert!(!server.node.has(&id));
}

#[tokio::test]
async fn sleeping_and_waking_keep_the_settings() {
    let server = Server::start().await;
    let id = server.acme.create(json!({"timeout": 300})).await["sandboxID"].as_str().unwrap().to_owned();
    let path = format!("/api/sandboxes/{id}");
    let asleep = server.acme.post(&format!("{path}/hibernate"), json!({})).await.is(200).json();
    assert_eq!(asleep, json!({"sandboxID": id, "status": "hibernated", "keeps": "disk"}));
    server.acme.post(&format!("{path}/hibernate"), json!({})).await.is(200);
    let seen = server.acme.get(&path).await.json();
    assert_eq!((&seen["status"], seen.get("token")), (&json!("hibernated"), None));

    // Use wakes it, and the node's report is all that tells.
    server.acme.get(&format!("{path}/exec")).await.is(200);
    eventually("it is seen awake", async || (server.acme.status(&id).await == "running").then_some(())).await;

    server.acme.post(&format!("{path}/hibernate"), json!({})).await.is(200);
    let awake = server.acme.post(&format!("{path}/wake"), json!({})).await.is(200).json();
    assert_eq!(
        (&awake["status"], &awake["timeout"], awake["token"].is_string()),
        (&json!("running"), &json!(300), true)
    );
    assert!(awake["connectURL"].is_string());
    let awake = server.acme.post(&format!("{path}/wake"), json!({"timeout": 0})).await.is(200).json();
    assert_eq!(awake["timeout"], 0);
    server.acme.post(&format!("{path}/timeout"), json!({"timeout": 42})).await.is(204);
    assert_eq!(server.acme.get(&path).await.json()["timeout"], 42);
    assert_eq!(server.node.state().sandboxes[&id.parse().unwrap()].spec.timeout_seconds, 42);
    for bad in [json!({"timeout": -1}), json!({}), json!({"timeout": 1_000_000_000}), json!({"timeout": "1"})]
    {
        server.acme.post(&format!("{path}/timeout"), bad).await.is(400).error();
    }
    server.acme.post(&format!("{path}/wake"), json!({"timeout": -1})).await.is(400);
    assert_eq!(server.acme.get(&path).await.json()["timeout"], 42);
}

#[tokio::test]
async fn what_a_node_reports_is_seen_and_an_older_report_is_not() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let first = server.node.change(&id, SandboxState::Hibernated, None);
    eventually("seen asleep", async || (server.acme.status(&id).await == "hibernated").then_some(())).await;
    server.node.change(&id, SandboxState::Error, Some("its disk is full"));
    eventually("seen failed", async || (server.acme.status(&id).await == "error").then_some(())).await;
    server.node.send(first);
    let marker = server.acme.sandbox().await;
    server.node.change(&marker, SandboxState::Hibernated, None);
    eventually("the watch has gone on", async || {
        (server.acme.status(&marker).await == "hibernated").then_some(())
    })
    .await;
    let failed = server.acme.get(&format!("/api/sandboxes/{id}")).await.json();
    assert_eq!((&failed["status"], &failed["statusReason"]), (&json!("error"), &json!("its disk is full")));
    let gone = server.acme.get(&format!("/api/sandboxes/{id}/exec")).await.is(410).error();
    assert_eq!(gone, format!("sandbox {id} has been stopped: its disk is full"));
}

#[tokio::test]
async fn tags_are_replaced_as_a_whole() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}/tags");
    assert_eq!(server.acme.get(&path).await.json(), json!({"tags": {}, "tagsLastUpdatedAt": null}));
    server.acme.put(&path, json!({"crabbox.claim": "me", "b": "1"})).await.is(200);
    let put = server.acme.put(&path, json!({"b": "2"})).await.is(200).json();
    assert_eq!(put["tags"], json!({"b": "2"}));
    assert_eq!(server.acme.get(&path).await.json(), put);
    let other = server.acme.sandbox().await;
    server.acme.put(&format!("/api/sandboxes/{other}/tags"), json!({"b": "3", "c": ""})).await.is(200);
    let keys = server.acme.get("/api/tags").await.is(200).json();
    let key = |key, sandboxes, values| json!({"key": key, "sandboxCount": sandboxes, "valueCount": values});
    assert_eq!(keys, json!({"keys": [key("b", 2, 2), key("c", 1, 1)]}));
    assert_eq!(server.rival.get("/api/tags").await.json(), json!({"keys": []}));
    for bad in [json!({"a": 1}), json!([]), json!({"oc:x": ""}), json!({"a b": ""})] {
        server.acme.put(&path, bad).await.is(400).error();
    }
    crate::harness::send(server.acme.request(http::Method::PUT, &path)).await.is(400);
    assert_eq!(server.acme.get(&path).await.json(), put, "what was refused changed nothing");
    server.acme.put(&path, json!({})).await.is(200);
    assert_eq!(server.acme.get(&path).await.json()["tags"], json!({}));
}

#[tokio::test]
async fn a_call_that_woke_it_is_seen_to_have_woken_it() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    for _ in 0..20 {
        server.acme.post(&format!("/api/sandboxes/{id}/hibernate"), json!({})).await.is(200);
        server.acme.get(&format!("/api/sandboxes/{id}/exec")).await.is(200);
        assert_eq!(server.acme.status(&id).await, "running");
    }
}

#[tokio::test]
async fn a_wake_says_what_became_of_the_processes() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}");
    let wake = async || server.acme.post(&format!("{path}/wake"), json!({})).await.is(200).json();
    assert_eq!(wake().await["processes"], "running");
    server.acme.post(&format!("{path}/hibernate"), json!({})).await.is(200);
    let awake = wake().await;
    assert_eq!((&awake["processes"], &awake["hibernationKeeps"]), (&json!("restarted"), &json!("disk")));
    server.acme.post(&format!("{path}/wake"), json!({"disk": "other"})).await.is(400).error();
}

#[tokio::test]
async fn a_damaged_disk_is_refused_with_words_and_a_way_out() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}");
    server.acme.post(&format!("{path}/hibernate"), json!({})).await.is(200);
    server.node.state().damaged.push(id.parse().unwrap());
    for (method, route) in [("wake", json!({})), ("exec/run", json!({"cmd": "out x"}))] {
        let refused = server.acme.post(&format!("{path}/{method}"), route).await.is(409).json();
        assert_eq!(refused["code"], "disk_damaged", "{method}");
    }
    assert_eq!(server.acme.status(&id).await, "hibernated");
    server.acme.post(&format!("{path}/wake"), json!({"disk": "previous"})).await.is(200);
    assert_eq!(server.acme.status(&id).await, "running");
}

#[tokio::test]
async fn a_reboot_ends_processes_and_keeps_the_rest() {
    let server = Server::start().await;
    let id = server.acme.create(json!({"timeout": 77})).await["sandboxID"].as_str().unwrap().to_owned();
    let path = format!("/api/sandboxes/{id}");
    for verb in ["reboot", "power-cycle"] {
        server.acme.post(&format!("{path}/{verb}"), json!({})).await.is(204);
        let seen = server.acme.get(&path).await.json();
        assert_eq!((&seen["status"], &seen["timeout"]), (&json!("running"), &json!(77)));
        server.acme.post(&format!("/api/sandboxes/sb-00000000/{verb}"), json!({})).await.is(404);
    }
    crate::harness::send(server.acme.request(http::Method::POST, &format!("{path}/reboot"))).await.is(204);
}

#[tokio::test]
async fn start_commands_reach_the_node_and_are_checked() {
    let server = Server::start().await;
    let id = server.acme.create(json!({"startCommands": ["serve", "watch"]})).await;
    let id = id["sandboxID"].as_str().unwrap();
    assert_eq!(server.node.state().sandboxes[&id.parse().unwrap()].spec.start_commands, ["serve", "watch"]);
    let long = "x".repeat(16 * 1024 + 1);
    for bad in [json!([""]), json!(["a\u{0}b"]), json!(vec!["x"; 33]), json!([long]), json!("x"), json!([1])]
    {
        server.acme.post("/api/sandboxes", json!({"startCommands": bad})).await.is(400).error();
    }
}
