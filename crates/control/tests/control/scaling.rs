//! Scaling by hand, by itself, and the lock.

use std::time::Duration;

use serde_json::json;
use warren_node_api::{Answer, Subject};
use warren_types::ErrorKind;

use crate::harness::{Server, eventually};
use crate::sim::SimNode;

#[tokio::test]
async fn scaling_changes_the_size_until_further_notice() {
    let server = Server::start().await;
    let acme = &server.acme;
    let id = acme.create(json!({"memoryMB": 1024})).await["sandboxID"].as_str().unwrap().to_owned();
    let path = format!("/api/sandboxes/{id}");
    let scaled = acme.post(&format!("{path}/scale"), json!({"memoryMB": 8192})).await.is(200).json();
    assert_eq!(
        scaled,
        json!({
            "sandboxID": id, "workerID": "sim-node", "memoryMB": 8192, "cpuPercent": 200, "migrated": false, "ok": true,
            "autoscaleDisabled": false
        })
    );
    let seen = acme.get(&path).await.json();
    assert_eq!((&seen["memoryMB"], &seen["cpuCount"]), (&json!(8192), &json!(2)));
    for (body, says) in [
        (json!({}), "memoryMB is required and must be positive"),
        (json!({"memoryMB": 0}), "memoryMB is required and must be positive"),
        (json!({"memoryMB": -1}), "memoryMB is required and must be positive"),
        (json!({"memoryMB": 2048}), "must be one of"),
        (json!({"memoryMB": 32768}), "exceeds the largest"),
        (json!({"memoryMB": "4096"}), "invalid type"),
    ] {
        let refused = acme.post(&format!("{path}/scale"), body).await.is(400).error();
        assert!(refused.contains(says), "{refused}");
    }
    server.node.state().usage.insert(id.parse().unwrap(), 3 << 30);
    let refused = acme.post(&format!("{path}/scale"), json!({"memoryMB": 1024})).await.is(409).json();
    assert_eq!(refused["code"], "oom_floor");
    assert_eq!(refused["details"], json!({"usedBytes": 3_u64 << 30, "limitBytes": 1_u64 << 30}));
    acme.post(&format!("{path}/scale"), json!({"memoryMB": 4096})).await.is(200);

    acme.post(&format!("{path}/hibernate"), json!({})).await.is(200);
    let asleep = acme.post(&format!("{path}/scale"), json!({"memoryMB": 1024})).await.is(400).error();
    assert!(asleep.contains("not running"), "{asleep}");
    acme.post(&format!("{path}/wake"), json!({})).await.is(200);
    assert_eq!(acme.get(&path).await.json()["memoryMB"], 4096, "a wake keeps the size");
    acme.post("/api/sandboxes/sb-00000000/scale", json!({"memoryMB": 1024})).await.is(404);
}

#[tokio::test]
async fn a_lock_forbids_both_ways_of_scaling() {
    let server = Server::start().await;
    let acme = &server.acme;
    let path = format!("/api/sandboxes/{}", acme.sandbox().await);
    let (lock, autoscale) = (format!("{path}/scaling-lock"), format!("{path}/autoscale"));
    assert_eq!(acme.get(&lock).await.is(200).json()["locked"], false);
    let never = acme.get(&autoscale).await.is(200).json();
    assert_eq!(
        (&never["enabled"], &never["minMemoryMB"], &never["maxMemoryMB"]),
        (&json!(false), &json!(0), &json!(0))
    );
    let on = json!({"enabled": true, "minMemoryMB": 1024, "maxMemoryMB": 8192});
    let set = acme.put(&autoscale, on.clone()).await.is(200).json();
    assert_eq!(
        (&set["enabled"], &set["minMemoryMB"], &set["maxMemoryMB"]),
        (&json!(true), &json!(1024), &json!(8192))
    );

    assert_eq!(acme.put(&lock, json!({"locked": true})).await.is(200).json()["locked"], true);
    assert_eq!(acme.get(&autoscale).await.json()["enabled"], false, "locking ends it");
    for refused in [
        acme.post(&format!("{path}/scale"), json!({"memoryMB": 8192})).await,
        acme.put(&autoscale, on.clone()).await,
    ] {
        assert_eq!(refused.is(403).json()["code"], "scaling_locked");
    }
    acme.put(&autoscale, json!({"enabled": false})).await.is(200);
    acme.put(&lock, json!({"locked": false})).await.is(200);
    assert_eq!(acme.get(&autoscale).await.json()["enabled"], false, "unlocking does not bring it back");
    acme.put(&autoscale, on).await.is(200);
    let scaled = acme.post(&format!("{path}/scale"), json!({"memoryMB": 8192})).await.is(200).json();
    assert_eq!(scaled["autoscaleDisabled"], true);
    assert_eq!(acme.get(&autoscale).await.json()["enabled"], false, "scaling by hand ends it");

    for bad in [
        json!({}),
        json!({"enabled": true, "minMemoryMB": 8192, "maxMemoryMB": 1024}),
        json!({"enabled": true, "minMemoryMB": 2048}),
        json!({"enabled": 1}),
    ] {
        acme.put(&autoscale, bad).await.is(400).error();
    }
    acme.put(&lock, json!({})).await.is(400).error();
    assert_eq!(acme.put(&autoscale, json!({"enabled": true})).await.is(200).json()["maxMemoryMB"], 16384);
}

#[tokio::test]
async fn a_sandbox_scales_itself_under_the_same_conditions() {
    let server = Server::start().await;
    let acme = &server.acme;
    let id = acme.create(json!({"memoryMB": 1024})).await["sandboxID"].as_str().unwrap().to_owned();
    let path = format!("/api/sandboxes/{id}");
    let template = acme.get(&path).await.json()["templateID"].as_str().unwrap().to_owned();
    let about = server.node.ask(&id, Subject::About).await;
    assert_eq!(about, Answer::About { region: "local".into(), template });
    let on = json!({"enabled": true, "minMemoryMB": 1024, "maxMemoryMB": 8192});
    acme.put(&format!("{path}/autoscale"), on).await.is(200);
    let scale = |memory_mb| server.node.ask(&id, Subject::Scale { memory_mb });
    assert_eq!(scale(Some(8192)).await, Answer::Scaled { memory_mb: 8192, cpu_percent: 200 });
    assert_eq!(acme.get(&path).await.json()["memoryMB"], 8192);
    assert_eq!(acme.get(&format!("{path}/autoscale")).await.json()["enabled"], false);

    let refused = async |memory_mb| match scale(memory_mb).await {
        Answer::Refused(error) => error,
        other => panic!("{memory_mb:?}: {other:?}"),
    };
    for (memory_mb, says) in [
        (None, "memoryMB is required and must be positive"),
        (Some(-1), "memoryMB is required and must be positive"),
        (Some(2048), "must be one of"),
        (Some(i64::MAX), "exceeds the largest"),
    ] {
        let error = refused(memory_mb).await;
        assert!(error.kind == ErrorKind::Invalid && error.message.contains(says), "{error:?}");
    }
    acme.put(&format!("{path}/scaling-lock"), json!({"locked": true})).await.is(200);
    assert_eq!(refused(Some(1024)).await.code.as_deref(), Some("scaling_locked"));
    acme.put(&format!("{path}/scaling-lock"), json!({"locked": false})).await.is(200);
    server.node.state().usage.insert(id.parse().unwrap(), 3 << 30);
    assert_eq!(refused(Some(1024)).await.code.as_deref(), Some("oom_floor"));
    assert_eq!(acme.get(&path).await.json()["memoryMB"], 8192);
    match server.node.ask("sb-00000000", Subject::Scale { memory_mb: Some(1024) }).await {
        Answer::Refused(error) => assert_eq!(error.kind, ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
    let audit = acme.get(&format!("/api/sandboxes/{id}/audit")).await.is(200).json().to_string();
    assert!(audit.contains("\"sandbox.scale\"") && audit.contains("\"actor\":\"sandbox\""), "{audit}");
}

#[tokio::test]
async fn a_sandbox_that_needs_memory_gets_it_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(SimNode::new(), dir, |config| {
        config.autoscale_every = Duration::from_millis(20);
        config.autoscale_minute = Duration::from_millis(100);
    })
    .await;
    let acme = &server.acme;
    let id = acme.create(json!({"memoryMB": 1024})).await["sandboxID"].as_str().unwrap().to_owned();
    let calm = acme.create(json!({"memoryMB": 1024})).await["sandboxID"].as_str().unwrap().to_owned();
    for id in [&id, &calm] {
        let on = json!({"enabled": true, "minMemoryMB": 1024, "maxMemoryMB": 4096});
        acme.put(&format!("/api/sandboxes/{id}/autoscale"), on).await.is(200);
    }
    server.node.state().usage.insert(id.parse().unwrap(), 1000 << 20);
    server.node.state().usage.insert(calm.parse().unwrap(), 10 << 20);
    let memory = async |id: &str| acme.get(&format!("/api/sandboxes/{id}")).await.json()["memoryMB"].clone();
    eventually("it has grown", async || (memory(&id).await == 4096).then_some(())).await;
    server.node.state().usage.insert(id.parse().unwrap(), 10 << 20);
    eventually("it has shrunk", async || (memory(&id).await == 1024).then_some(())).await;
    assert_eq!(memory(&calm).await, 1024);
}
