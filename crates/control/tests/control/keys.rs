//! API keys beside a running server.

use std::time::Instant;

use serde_json::json;
use warren_control::keys::{self, KeysError};

use crate::harness::{Api, Server};

#[tokio::test]
async fn a_key_counts_and_stops_counting_at_once() {
    let server = Server::start().await;
    // As another process would: its own connections to the same file.
    let keys = keys::open(server.dir.path()).await.unwrap();
    let (key, info) = keys.create("acme", Some("ci")).await.unwrap();
    assert_eq!(key.expose().len(), 68);
    assert_eq!(info.prefix, key.expose()[..8]);
    let api = Api::new(&server.address, Some(key.expose().clone()));
    let me = api.get("/api/whoami").await.is(200).json();
    assert_eq!(
        (&me["org_name"], &me["org_id"], &me["email"]),
        (&json!("acme"), &json!(info.org_id.as_str()), &json!(null))
    );
    let id = server.acme.sandbox().await;
    assert_eq!(api.status(&id).await, "running", "keys of one organisation see the same");

    keys.revoke(&info.prefix).await.unwrap();
    api.get("/api/whoami").await.is(401);
    server.acme.get("/api/whoami").await.is(200);

    let listed = keys.list().await.unwrap();
    assert_eq!(listed.len(), 3);
    let revoked = listed.iter().find(|key| key.id == info.id).unwrap();
    assert_eq!((revoked.label.as_deref(), revoked.revoked_at.is_some()), (Some("ci"), true));
    let again = keys.revoke(&info.id).await.unwrap();
    assert_eq!(again.revoked_at, revoked.revoked_at, "revoking twice changes nothing");
    assert!(matches!(keys.revoke("osb_none").await, Err(KeysError::NotFound(_))));
    assert!(matches!(keys.create(" ", None).await, Err(KeysError::BadName { .. })));

    let file = std::fs::read(server.dir.path().join("control.sqlite")).unwrap();
    let wal = std::fs::read(server.dir.path().join("control.sqlite-wal")).unwrap_or_default();
    let holds = |bytes: &[u8]| bytes.windows(68).any(|window| window == key.expose().as_bytes());
    assert!(!holds(&file) && !holds(&wal), "the key itself is not stored");
}

#[tokio::test]
async fn a_log_in_through_a_browser_is_refused_by_the_name_clients_know() {
    let server = Server::start().await;
    for path in ["/auth/cli/device", "/auth/cli/device/exchange"] {
        let refused = server.anonymous().post(path, json!({})).await.is(503);
        assert_eq!(refused.error(), "cli_login_unavailable");
    }
}

/// Not a limit, a figure: `cargo nextest run -p warren-control figure --run-ignored all --no-capture --release`.
#[tokio::test]
#[ignore = "measures; run by hand"]
async fn figure_of_an_authenticated_request() {
    let server = Server::start().await;
    for (what, path) in [("healthz", "/healthz"), ("whoami", "/api/whoami")] {
        let mut took = Vec::new();
        for _ in 0..3000 {
            let started = Instant::now();
            server.acme.get(path).await.is(200);
            took.push(started.elapsed());
        }
        took.sort();
        println!("{what}: p50 {:?} p99 {:?}", took[1500], took[2970]);
    }
    let mut took = Vec::new();
    for _ in 0..300 {
        let started = Instant::now();
        let id = server.acme.sandbox().await;
        took.push(started.elapsed());
        server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    }
    took.sort();
    println!("create over a node that takes no time: p50 {:?} p99 {:?}", took[150], took[297]);
    let started = Instant::now();
    futures_util::future::join_all((0..100).map(|_| server.acme.sandbox())).await;
    println!("100 creates at once: {:?}", started.elapsed());
}
