//! Create: what is answered, what is passed to the node, what is left after a failure.

use std::time::Duration;

use http::Method;
use serde_json::json;
use warren_types::{EgressMode, Error, ErrorKind, SandboxState};

use crate::harness::{Server, eventually, send};

#[tokio::test]
async fn a_create_returns_the_whole_sandbox_once_it_runs() {
    let server = Server::start().await;
    let request = server.acme.request(Method::POST, "/api/sandboxes").json(&json!({
        "templateID": "base", "timeout": 300, "envs": {"A": "1"}, "metadata": {"team": "x"}, "alias": "mine",
        "cpuCount": 2, "memoryMB": 8192, "diskMB": 20480, "networkEnabled": false, "tags": {"k": "v"},
        "somethingNew": [1, 2]
    }));
    let answer = send(request).await.is(201);
    let timing = answer.headers["server-timing"].to_str().unwrap();
    assert!(timing.contains("node;dur=") && timing.contains("store;dur="), "{timing}");
    let sandbox = answer.json();
    let id = sandbox["sandboxID"].as_str().unwrap();
    for (field, value) in [
        ("status", json!("running")),
        ("templateID", json!("base")),
        ("alias", json!("mine")),
        ("cpuCount", json!(2)),
        ("memoryMB", json!(8192)),
        ("diskMB", json!(20480)),
        ("timeout", json!(300)),
        ("workerID", json!("sim-node")),
        ("metadata", json!({"team": "x"})),
        ("tags", json!({"k": "v"})),
        ("isolation", json!("container")),
        ("connectURL", json!(format!("http://{}/api", server.address))),
        ("region", json!("local")),
    ] {
        assert_eq!(sandbox[field], value, "{field}");
    }
    assert_eq!(sandbox.get("endAt"), None);
    assert!(!answer.text.contains("envs"), "environments are not shown");
    let same = server.acme.get(&format!("/api/sandboxes/{id}")).await.json();
    assert_eq!(same, sandbox, "get shows what create returned");

    let state = server.node.state();
    let spec = &state.sandboxes[&id.parse().unwrap()].spec;
    assert_eq!(
        (spec.timeout_seconds, spec.egress.mode, spec.envs["A"].as_str()),
        (300, EgressMode::None, "1")
    );
}

#[tokio::test]
async fn public_urls_follow_the_proxy_in_front() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let request = server.acme.request(Method::GET, &format!("/api/sandboxes/{id}"));
    let proxied =
        request.header("x-forwarded-proto", "https").header("x-forwarded-host", "warren.example, inner");
    assert_eq!(send(proxied).await.json()["connectURL"], "https://warren.example/api");
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing() {
    let server = Server::start().await;
    let unknown = server.acme.post("/api/sandboxes", json!({"templateID": "nope"})).await.is(404);
    assert_eq!(unknown.error(), "template not found: nope");
    for (kind, status) in
        [(ErrorKind::Unavailable, 503), (ErrorKind::SandboxFailed, 502), (ErrorKind::Internal, 502)]
    {
        server.node.state().create_errors.push(Error::new(kind, "the disk is on fire"));
        let failed = server.acme.post("/api/sandboxes", json!({})).await.is(status);
        assert_eq!(failed.error(), "the disk is on fire");
        assert_eq!(failed.headers.contains_key("retry-after"), status == 503);
    }
    eventually("the node is tidied", async || server.node.state().sandboxes.is_empty().then_some(())).await;
    assert_eq!(server.acme.get("/api/sandboxes").await.json(), json!([]));
    server.acme.sandbox().await;
}

#[tokio::test]
async fn fields_of_later_abilities_are_refused_by_name() {
    let server = Server::start().await;
    for (field, value) in
        [("webhooks", json!([{}])), ("webhooks", json!({})), ("webhooks", json!("")), ("webhooks", json!(0))]
    {
        let error = server.acme.post("/api/sandboxes", json!({field: value})).await.is(400).error();
        assert!(error.starts_with(&format!("{field} is not supported by this server yet")), "{error}");
    }
    server
        .acme
        .post(
            "/api/sandboxes",
            json!({"image": null, "snapshot": "", "webhooks": [], "secretStore": "", "egressAllowlist": null}),
        )
        .await
        .is(201);
    assert_eq!(server.node.state().creates, 1);
}

#[tokio::test]
async fn the_limit_of_an_organisation_is_its_own_and_exact() {
    let server = Server::start_with(crate::sim::SimNode::new(), tempfile::tempdir().unwrap(), |c| {
        c.max_running_per_org = 3;
    })
    .await;
    let creates = (0..10).map(|_| server.acme.post("/api/sandboxes", json!({})));
    let answers = futures_util::future::join_all(creates).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 3);
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap().json();
    assert_eq!((&refused["active"], &refused["limit"]), (&json!(3), &json!(3)));
    server.rival.sandbox().await;
    eventually("nothing is left of the refused", async || {
        (server.node.state().sandboxes.len() == 4).then_some(())
    })
    .await;

    let list = server.acme.get("/api/sandboxes").await.json();
    let id = list[0]["sandboxID"].as_str().unwrap().to_owned();
    server.acme.post(&format!("/api/sandboxes/{id}/hibernate"), json!({})).await.is(200);
    server.acme.sandbox().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_stop_its_create_half_way() {
    let server = Server::start().await;
    let held = server.node.hold_creates();
    let request = server.acme.request(Method::POST, "/api/sandboxes").json(&json!({}));
    assert!(request.timeout(Duration::from_millis(100)).send().await.is_err());
    let list = server.acme.get("/api/sandboxes").await.json();
    assert_eq!(list[0]["status"], "creating");
    let id = list[0]["sandboxID"].as_str().unwrap();
    let early = server.acme.get(&format!("/api/sandboxes/{id}/exec")).await.is(503);
    assert!(early.headers.contains_key("retry-after"));
    drop(held);
    eventually("the create ends", async || (server.acme.status(id).await == "running").then_some(())).await;
}

#[tokio::test]
async fn a_sandbox_deleted_while_it_is_made_is_gone() {
    let server = Server::start().await;
    let held = server.node.hold_creates();
    let creating = tokio::spawn({
        let acme = server.acme.clone();
        async move { acme.post("/api/sandboxes", json!({})).await }
    });
    let id = eventually("it is listed", async || {
        let list = server.acme.get("/api/sandboxes?status=creating").await.json();
        list[0]["sandboxID"].as_str().map(str::to_owned)
    })
    .await;
    server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    drop(held);
    creating.await.unwrap().is(410).error();
    eventually("the node is tidied", async || (!server.node.has(&id)).then_some(())).await;
    assert_eq!(server.acme.status(&id).await, "stopped");
}

#[tokio::test]
async fn a_report_that_overtakes_the_create_is_not_lost() {
    let server = Server::start().await;
    let marker = server.acme.sandbox().await;
    let held = server.node.hold_creates();
    let creating = tokio::spawn({
        let acme = server.acme.clone();
        async move { acme.create(json!({})).await }
    });
    let id = eventually("it is listed", async || {
        let list = server.acme.get("/api/sandboxes?status=creating").await.json();
        list[0]["sandboxID"].as_str().map(str::to_owned)
    })
    .await;
    // The node's answer to the create will say generation 1; the report about generation 9 comes first.
    let report = warren_node_api::Report {
        reason: Some("its agent died".into()),
        ..warren_node_api::Report::new(id.parse().unwrap(), SandboxState::Error, 9)
    };
    server.node.send(report);
    // The watch reads in order: once a later report is seen, this one was.
    server.node.change(&marker, SandboxState::Hibernated, None);
    eventually("the watch has gone on", async || {
        (server.acme.status(&marker).await == "hibernated").then_some(())
    })
    .await;
    drop(held);
    creating.await.unwrap();
    eventually("the report counts", async || (server.acme.status(&id).await == "error").then_some(())).await;
}
