//! After a crash at any point, what is stored and what the node has agree again.

use std::time::Duration;

use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warren_control::{Config, Control, StartError};

use crate::harness::{Server, eventually};

/// Changes a stopped server's store, as a crash at a certain point would have left it.
async fn edit(dir: &std::path::Path, sql: &'static str, id: &str) {
    let mut file = SqliteConnectOptions::new().filename(dir.join("control.sqlite")).connect().await.unwrap();
    assert_eq!(sqlx::query(sql).bind(id).execute(&mut file).await.unwrap().rows_affected(), 1);
    file.close().await.unwrap();
}

#[tokio::test]
async fn a_restart_makes_both_sides_agree() {
    let server = Server::start().await;
    let keyed = server
        .acme
        .request(http::Method::POST, "/api/sandboxes")
        .header("idempotency-key", "k")
        .json(&json!({}));
    let interrupted =
        crate::harness::send(keyed).await.is(201).json()["sandboxID"].as_str().unwrap().to_owned();
    let kept = server.acme.sandbox().await;
    let asleep = server.acme.sandbox().await;
    let lost = server.acme.sandbox().await;
    let deleted = server.acme.sandbox().await;
    let (node, dir) = server.stop().await;

    // A create that was cut off has taken nothing yet.
    edit(dir.path(), "DELETE FROM usage_spans WHERE sandbox_id = $1", &interrupted).await;
    edit(
        dir.path(),
        "UPDATE sandboxes SET observed = 'creating', generation = 0 WHERE id = $1",
        &interrupted,
    )
    .await;
    edit(dir.path(), "UPDATE sandboxes SET observed = 'stopped', intent = 'deleted' WHERE id = $1", &deleted)
        .await;
    node.change(&asleep, warren_types::SandboxState::Hibernated, None);
    let taken = node.state().sandboxes.remove(&lost.parse().unwrap()).unwrap();
    node.plant("sb-00000001");

    let server = Server::start_with(node, dir, |_| {}).await;
    assert!(!server.node.has(&interrupted) && !server.node.has(&deleted) && !server.node.has("sb-00000001"));
    assert!(server.node.has(&kept) && server.node.has(&asleep));
    let acme = &server.acme;
    acme.get(&format!("/api/sandboxes/{interrupted}")).await.is(404);
    assert_eq!(acme.status(&kept).await, "running");
    assert_eq!(acme.status(&asleep).await, "hibernated");
    let row = acme.get(&format!("/api/sandboxes/{lost}")).await.json();
    assert_eq!(
        (&row["status"], &row["statusReason"]),
        (&json!("error"), &json!("its node no longer has it"))
    );
    assert!(row["endAt"].is_string());
    let records = acme.get(&format!("/api/sandboxes/{lost}/audit?kind=sandbox.state")).await.is(200).json();
    assert_eq!(
        (&records[0]["actor"], &records[0]["detail"]),
        (&json!("server"), &json!({"state": "error", "reason": "its node no longer has it"}))
    );
    let slept = acme.get(&format!("/api/sandboxes/{asleep}/audit?kind=sandbox.state")).await.is(200).json();
    assert_eq!(
        slept[0]["detail"]["state"], "hibernated",
        "what it became while there was no server: {slept}"
    );
    let keyed = acme
        .request(http::Method::POST, "/api/sandboxes")
        .header("idempotency-key", "k")
        .json(&json!({"timeout": 1}));
    crate::harness::send(keyed).await.is(201);

    // It was only away: what the node says about it counts again.
    server.node.state().sandboxes.insert(lost.parse().unwrap(), taken);
    let (node, dir) = server.stop().await;
    let server = Server::start_with(node, dir, |_| {}).await;
    let row = server.acme.get(&format!("/api/sandboxes/{lost}")).await.json();
    assert_eq!((&row["status"], row.get("statusReason"), row.get("endAt")), (&json!("running"), None, None));
}

#[tokio::test]
async fn the_sweep_leaves_creates_and_deletes_under_way_alone() {
    let server = Server::start().await;
    let held = server.node.hold_creates();
    let creating = tokio::spawn({
        let acme = server.acme.clone();
        async move { acme.create(json!({})).await }
    });
    eventually("it is at the node", async || (server.node.state().creates == 1).then_some(())).await;
    for _ in 0..3 {
        server.control.reconcile().await.unwrap();
    }
    assert!(server.node.state().absents.is_empty(), "a create under way is nobody else's");
    drop(held);
    let made = creating.await.unwrap();
    server.control.reconcile().await.unwrap();
    assert_eq!(server.acme.status(made["sandboxID"].as_str().unwrap()).await, "running");
}

#[tokio::test]
async fn sweeps_during_a_storm_of_creates_and_deletes_lose_and_leak_nothing() {
    let server = Server::start().await;
    let sweeping = tokio::spawn({
        let control = server.control.clone();
        async move {
            loop {
                control.reconcile().await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let storm = (0..60).map(|n| {
        let acme = server.acme.clone();
        async move {
            let id = acme.sandbox().await;
            if n % 2 == 0 {
                acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
            }
            (id, n % 2 != 0)
        }
    });
    let made = futures_util::future::join_all(storm).await;
    sweeping.abort();
    for (id, lives) in made {
        assert_eq!(server.acme.status(&id).await, if lives { "running" } else { "stopped" }, "{id}");
        assert_eq!(server.node.has(&id), lives, "{id}");
    }
}

#[tokio::test]
async fn a_server_does_not_start_without_its_node() {
    let node = crate::sim::SimNode::new();
    node.state().unreachable = true;
    let dir = tempfile::tempdir().unwrap();
    let config = warren_control::Config::new(dir.path());
    let started =
        warren_control::Control::start(config, node.client(), Default::default(), Default::default()).await;
    assert!(matches!(started, Err(warren_control::StartError::Node(_))));
}

#[tokio::test]
async fn a_lost_database_does_not_cost_the_sandboxes() {
    let server = Server::start().await;
    let kept = server.acme.sandbox().await;
    server.acme.post(&format!("/api/sandboxes/{kept}/checkpoints"), json!({"name": "one"})).await.is(201);
    let (node, dir) = server.stop().await;
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.path().join(format!("control.sqlite{suffix}")));
    }
    for _ in 0..2 {
        let config = Config::new(dir.path().to_owned());
        let started =
            Control::start(config, node.client(), CancellationToken::new(), TaskTracker::new()).await;
        assert!(matches!(started.map(drop), Err(StartError::Orphans { sandboxes: 1, checkpoints: 1, .. })));
        assert!(node.has(&kept));
    }
}
