//! Checkpoints, forks, restores, patches.

use http::Method;
use serde_json::{Value, json};
use warren_types::{EgressMode, Error, SandboxState};

use crate::harness::{Api, Server, eventually, send};

const NOBODYS: &str = "01234567-89ab-4def-8123-456789abcdef";

async fn checkpoint(api: &Api, sandbox: &str, body: Value) -> String {
    let made = api.post(&format!("/api/sandboxes/{sandbox}/checkpoints"), body).await.is(201).json();
    made["id"].as_str().unwrap().to_owned()
}

/// The checkpoint as the list shows it.
async fn listed(api: &Api, sandbox: &str, id: &str) -> Option<Value> {
    let list = api.get(&format!("/api/sandboxes/{sandbox}/checkpoints")).await.is(200).json();
    list.as_array().unwrap().iter().find(|one| one["id"] == id).cloned()
}

async fn wait_for(api: &Api, sandbox: &str, id: &str, status: &str) -> Value {
    eventually(&format!("{id} is {status}"), async || {
        listed(api, sandbox, id).await.filter(|one| one["status"] == status)
    })
    .await
}

async fn write(api: &Api, sandbox: &str, text: &str) {
    let path = format!("/api/sandboxes/{sandbox}/files?path=/f");
    send(api.request(Method::PUT, &path).body(text.to_owned())).await.is(204);
}

async fn read(api: &Api, sandbox: &str) -> String {
    api.get(&format!("/api/sandboxes/{sandbox}/files?path=/f")).await.is(200).text
}

async fn fork(api: &Api, id: &str, body: Value) -> Value {
    api.post(&format!("/api/sandboxes/from-checkpoint/{id}"), body).await.is(201).json()
}

#[tokio::test]
async fn a_checkpoint_goes_from_processing_to_ready_and_says_what_it_holds() {
    let server = Server::start().await;
    let (acme, node) = (&server.acme, &server.node);
    let made = acme
        .create(json!({"envs": {"A": "1"}, "metadata": {"m": "x"}, "timeout": 9, "alias": "box", "memoryMB": 8192}))
        .await;
    let sandbox = made["sandboxID"].as_str().unwrap();
    node.state().hold_checkpoints = true;
    let path = format!("/api/sandboxes/{sandbox}/checkpoints");
    assert_eq!(acme.get(&path).await.json(), json!([]));
    let new = acme.post(&path, json!({"name": "one"})).await.is(201).json();
    let id = new["id"].as_str().unwrap();
    assert_eq!(
        (&new["status"], &new["kind"], &new["holds"], &new["captured"], &new["durable"], &new["sizeBytes"]),
        (&json!("processing"), &json!("full"), &json!("disk"), &json!(true), &json!(false), &json!(0))
    );
    assert_eq!(
        new["sandboxConfig"],
        json!({
            "templateID": "base", "timeout": 9, "envs": {"A": "1"}, "metadata": {"m": "x"}, "alias": "box",
            "cpuCount": 2, "memoryMB": 8192, "diskMB": 20480, "networkEnabled": true
        })
    );
    assert_eq!((&new["sandboxId"], &new["isPublic"]), (&json!(sandbox), &json!(false)));
    node.finish(id, None);
    let ready = wait_for(acme, sandbox, id, "ready").await;
    assert_eq!((&ready["sizeBytes"], &ready["pauseMs"]), (&json!(4096), &json!(1.5)));

    let failing = checkpoint(acme, sandbox, json!({"name": "two", "kind": "disk_only"})).await;
    node.finish(&failing, Some("the drive is full"));
    let failed = wait_for(acme, sandbox, &failing, "failed").await;
    assert_eq!((&failed["errorMsg"], &failed["kind"]), (&json!("the drive is full"), &json!("disk_only")));
    assert!(failed["failedAt"].is_string());
    let list = acme.get(&path).await.json();
    assert_eq!((&list[0]["id"], &list[1]["id"]), (&json!(failing), &json!(id)), "newest first");
}

#[tokio::test]
async fn what_is_wrong_with_a_checkpoint_is_told_and_leaves_nothing() {
    let server = Server::start().await;
    let acme = &server.acme;
    let sandbox = acme.sandbox().await;
    let path = format!("/api/sandboxes/{sandbox}/checkpoints");
    for (body, says) in [
        (json!({}), "name is required"),
        (json!({"name": "a", "kind": "x"}), "kind must be full or disk_only"),
        (json!({"name": "a", "promoteToFull": true}), "promoteToFull is only supported"),
        (json!({"name": "a", "retentionPolicy": {"mode": "x"}}), "unsupported checkpoint retention policy"),
        (
            json!({"name": "a", "kind": "disk_only", "retentionPolicy": {"mode": "delete_oldest", "maxCount": 101}}),
            "retentionPolicy.maxCount must be between 1 and 100 for disk_only checkpoints",
        ),
        (json!({"name": 1}), "name: invalid type"),
    ] {
        let refused = acme.post(&path, body).await.is(400).error();
        assert!(refused.contains(says), "{refused}");
    }
    server.rival.post(&path, json!({"name": "a"})).await.is(404);
    server.rival.get(&path).await.is(404);
    checkpoint(acme, &sandbox, json!({"name": "a"})).await;
    let taken = acme.post(&path, json!({"name": "a"})).await.is(409).error();
    assert!(taken.contains("checkpoint name already exists for this sandbox"), "{taken}");
    let other = acme.sandbox().await;
    checkpoint(acme, &other, json!({"name": "a"})).await;

    server.node.state().checkpoint_error = Some(Error::unavailable("the volume is nearly full"));
    acme.post(&path, json!({"name": "b"})).await.is(503);
    assert_eq!(
        acme.get(&path).await.json().as_array().unwrap().len(),
        1,
        "nothing is left of the one that failed"
    );
    checkpoint(acme, &sandbox, json!({"name": "b"})).await;

    acme.post(&format!("/api/sandboxes/{sandbox}/hibernate"), json!({})).await.is(200);
    checkpoint(acme, &sandbox, json!({"name": "asleep"})).await;
    assert_eq!(acme.status(&sandbox).await, "hibernated", "a checkpoint wakes nobody");
    acme.delete(&format!("/api/sandboxes/{sandbox}")).await.is(204);
    let stopped = acme.post(&path, json!({"name": "c"})).await.is(400).error();
    assert!(stopped.contains("sandbox must be running to create a checkpoint"), "{stopped}");
    assert_eq!(
        acme.get(&path).await.json().as_array().unwrap().len(),
        3,
        "checkpoints outlive their sandbox"
    );
}

#[tokio::test]
async fn an_idempotency_key_makes_one_checkpoint_and_one_fork() {
    let server = Server::start().await;
    let sandbox = server.acme.sandbox().await;
    let keyed = async |path: String, key: &str, body: Value| {
        send(server.acme.request(Method::POST, &path).header("idempotency-key", key).json(&body)).await
    };
    let path = format!("/api/sandboxes/{sandbox}/checkpoints");
    let one = keyed(path.clone(), "k", json!({"name": "a"})).await.is(201).json();
    let again = keyed(path.clone(), "k", json!({"name": "a"})).await.is(201).json();
    assert_eq!(one["id"], again["id"]);
    keyed(path.clone(), "k", json!({"name": "b"})).await.is(409);
    keyed(path, "a b", json!({"name": "b"})).await.is(400);

    let path = format!("/api/sandboxes/from-checkpoint/{}", one["id"].as_str().unwrap());
    let one = keyed(path.clone(), "f", json!({})).await.is(201).json();
    let again = keyed(path.clone(), "f", json!({})).await.is(201).json();
    assert_eq!(one["sandboxID"], again["sandboxID"]);
    keyed(path, "f", json!({"timeout": 1})).await.is(409);
}

#[tokio::test]
async fn limits_hold_by_kind_and_retention_makes_room_only_when_the_new_one_is_ready() {
    let server = Server::start().await;
    let (acme, node) = (&server.acme, &server.node);
    let sandbox = acme.sandbox().await;
    let path = format!("/api/sandboxes/{sandbox}/checkpoints");
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(checkpoint(acme, &sandbox, json!({"name": format!("full-{n}")})).await);
    }
    let refused = acme.post(&path, json!({"name": "eleventh"})).await.is(400).error();
    assert!(refused.contains("maximum 10 full checkpoints per sandbox"), "{refused}");
    checkpoint(acme, &sandbox, json!({"name": "disk", "kind": "disk_only"})).await;

    // The three oldest are of use to somebody: a fork that has failed can be started again.
    acme.post(&format!("/api/sandboxes/checkpoints/{}/publish", ids[0]), json!({})).await.is(200);
    let living = fork(acme, &ids[1], json!({})).await["sandboxID"].as_str().unwrap().to_owned();
    let failed = fork(acme, &ids[2], json!({})).await["sandboxID"].as_str().unwrap().to_owned();
    node.change(&failed, SandboxState::Error, Some("it ran out of luck"));
    eventually("its failure is known", async || (acme.status(&failed).await == "error").then_some(())).await;
    node.state().hold_checkpoints = true;
    let policy = json!({"mode": "delete_oldest", "maxCount": 8});
    let new = checkpoint(acme, &sandbox, json!({"name": "new", "retentionPolicy": policy})).await;
    assert_eq!(acme.get(&path).await.json().as_array().unwrap().len(), 12, "nothing goes before it is ready");
    acme.post(&path, json!({"name": "another", "retentionPolicy": {"mode": "delete_oldest"}})).await.is(400);
    node.finish(&new, None);
    let left = eventually("the oldest are gone", async || {
        let list = acme.get(&path).await.json();
        let list = list.as_array().unwrap().clone();
        (list.len() == 9).then_some(list)
    })
    .await;
    let left: Vec<&str> = left.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(left, ["new", "disk", "full-9", "full-8", "full-7", "full-6", "full-2", "full-1", "full-0"]);
    eventually("its node has forgotten them", async || (!node.has_checkpoint(&ids[3])).then_some(())).await;

    // In whichever order they become ready: the newest stays.
    let other = acme.sandbox().await;
    let keep_one = |name| json!({"name": name, "retentionPolicy": {"mode": "delete_oldest", "maxCount": 1}});
    let older = checkpoint(acme, &other, keep_one("older")).await;
    let newer = checkpoint(acme, &other, keep_one("newer")).await;
    node.finish(&newer, None);
    wait_for(acme, &other, &newer, "ready").await;
    node.finish(&older, None);
    eventually("the older one is gone", async || listed(acme, &other, &older).await.is_none().then_some(()))
        .await;
    assert_eq!(listed(acme, &other, &newer).await.unwrap()["status"], "ready");

    // One that fails replaces nothing.
    let failing = json!({"name": "failing", "retentionPolicy": {"mode": "delete_oldest", "maxCount": 1}});
    let failing = checkpoint(acme, &sandbox, failing).await;
    node.finish(&failing, Some("the drive is full"));
    wait_for(acme, &sandbox, &failing, "failed").await;
    server.control.reconcile().await.unwrap();
    assert_eq!(acme.get(&path).await.json().as_array().unwrap().len(), 10);
    for fork in [living, failed] {
        acme.delete(&format!("/api/sandboxes/{fork}")).await.is(204);
    }
}

#[tokio::test]
async fn a_fork_has_the_content_and_what_was_asked_for_on_top() {
    let server = Server::start().await;
    let acme = &server.acme;
    let made = acme
        .create(json!({
            "envs": {"A": "1", "B": "1"}, "metadata": {"m": "1", "n": "1"}, "timeout": 300, "memoryMB": 4096,
            "tags": {"t": "1"}, "alias": "box", "startCommands": ["serve"], "networkEnabled": false
        }))
        .await;
    let sandbox = made["sandboxID"].as_str().unwrap();
    write(acme, sandbox, "before").await;
    let id = checkpoint(acme, sandbox, json!({"name": "one"})).await;
    write(acme, sandbox, "after").await;
    wait_for(acme, sandbox, &id, "ready").await;

    let body = json!({"envs": {"B": "2"}, "metadata": {"n": "2"}, "timeout": 60, "memoryMB": 1024});
    let forked = fork(acme, &id, body).await;
    let forked_id = forked["sandboxID"].as_str().unwrap();
    assert_ne!(forked_id, sandbox);
    assert_eq!(
        (&forked["status"], &forked["fromCheckpointId"], &forked["memoryMB"], &forked["timeout"]),
        (&json!("running"), &json!(id), &json!(4096), &json!(60))
    );
    assert!(forked["token"].is_string() && forked["connectURL"].is_string());
    assert_eq!((&forked["metadata"], &forked["tags"]), (&json!({"m": "1", "n": "2"}), &json!({})));
    assert_eq!((read(acme, forked_id).await, read(acme, sandbox).await), ("before".into(), "after".into()));
    let spec = server.node.state().sandboxes[&forked_id.parse().unwrap()].spec.clone();
    assert_eq!(spec.envs, [("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert_eq!((spec.start_commands, spec.egress.mode), (vec!["serve".to_owned()], EgressMode::None));

    for (asked, given) in
        [(json!(null), 4096), (json!(5000), 8192), (json!(16384), 16384), (json!(1_000_000), 16384)]
    {
        let forked = fork(acme, &id, json!({"memoryMB": asked})).await;
        assert_eq!((&forked["memoryMB"], &forked["timeout"]), (&json!(given), &json!(0)), "{asked}");
    }
    send(acme.request(Method::POST, &format!("/api/sandboxes/from-checkpoint/{id}"))).await.is(201);
    let route = format!("/api/sandboxes/from-checkpoint/{id}");
    for bad in
        [json!({"secretStore": "no such store"}), json!({"envs": {"A=": "1"}}), json!({"memoryMB": "1"})]
    {
        acme.post(&route, bad).await.is(400).error();
    }
    acme.post(&format!("/api/sandboxes/from-checkpoint/{NOBODYS}"), json!({})).await.is(404);
    for bad in ["x", "sb-01234567", &id[1..]] {
        let refused =
            acme.post(&format!("/api/sandboxes/from-checkpoint/{bad}"), json!({})).await.is(400).error();
        assert!(refused.contains("invalid checkpoint ID"), "{refused}");
    }
}

#[tokio::test]
async fn a_fork_waits_for_its_checkpoint() {
    let server = Server::start().await;
    let sandbox = server.acme.sandbox().await;
    server.node.state().hold_checkpoints = true;
    let id = checkpoint(&server.acme, &sandbox, json!({"name": "one"})).await;
    let forking = tokio::spawn({
        let (acme, id) = (server.acme.clone(), id.clone());
        async move { acme.post(&format!("/api/sandboxes/from-checkpoint/{id}"), json!({})).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!forking.is_finished());
    server.node.finish(&id, None);
    forking.await.unwrap().is(201);

    let id = checkpoint(&server.acme, &sandbox, json!({"name": "two"})).await;
    server.node.finish(&id, Some("the drive is full"));
    let route = format!("/api/sandboxes/from-checkpoint/{id}");
    let refused = server.acme.post(&route, json!({})).await.is(400).json();
    let said = refused["error"].as_str().unwrap();
    assert!(said.contains("the drive is full") && !said.contains(&id), "{said}");
    assert_eq!(refused["code"], "checkpoint_damaged");
}

#[tokio::test]
async fn a_damaged_checkpoint_is_not_used() {
    let server = Server::start().await;
    let sandbox = server.acme.sandbox().await;
    let good = checkpoint(&server.acme, &sandbox, json!({"name": "good"})).await;
    let id = checkpoint(&server.acme, &sandbox, json!({"name": "one"})).await;
    for each in [&good, &id] {
        wait_for(&server.acme, &sandbox, each, "ready").await;
    }
    server.node.state().checkpoints.get_mut(&id.parse().unwrap()).unwrap().damaged = true;
    let before = server.node.state().sandboxes.len();
    let fork = format!("/api/sandboxes/from-checkpoint/{id}");
    let restore = format!("/api/sandboxes/{sandbox}/checkpoints/{id}/restore");
    for route in [fork, restore] {
        let refused = server.acme.post(&route, json!({})).await.is(400).json();
        assert_eq!(refused["code"], "checkpoint_damaged", "{route}");
        // The one that was refused by the node and the one that is known to have failed are told the same.
        let said = refused["error"].as_str().unwrap();
        assert!(said.contains("it failed: it is damaged") && said.ends_with(&good), "{said}");
    }
    let said = server.acme.get(&format!("/api/sandboxes/{sandbox}/audit?kind=checkpoint.state")).await.json();
    assert_eq!(said.as_array().unwrap().len(), 1, "{said}");
    assert_eq!((&said[0]["detail"]["checkpoint"], &said[0]["detail"]["offered"]), (&json!(id), &json!(good)));
    // Whoever may fork it may not use the other one.
    server.acme.post(&format!("/api/sandboxes/checkpoints/{id}/publish"), json!({})).await.is(200);
    let foreign = server.rival.post(&format!("/api/sandboxes/from-checkpoint/{id}"), json!({})).await.is(400);
    assert!(!foreign.error().contains(&good));
    assert_eq!(server.node.state().sandboxes.len(), before);
    assert_eq!(server.acme.get("/api/sandboxes").await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn who_may_do_what_with_a_checkpoint() {
    let server = Server::start().await;
    let (acme, rival) = (&server.acme, &server.rival);
    let (mine, theirs) = (acme.sandbox().await, rival.sandbox().await);
    let id = checkpoint(acme, &mine, json!({"name": "one"})).await;
    wait_for(acme, &mine, &id, "ready").await;
    let fork = format!("/api/sandboxes/from-checkpoint/{id}");
    let of = |verb: &str| format!("/api/sandboxes/checkpoints/{id}/{verb}");

    rival.post(&fork, json!({})).await.is(403);
    for verb in ["publish", "unpublish", "patches"] {
        rival.post(&of(verb), json!({"script": "true"})).await.is(403).error();
    }
    rival.get(&of("patches")).await.is(403);
    rival.delete(&of(&format!("patches/{NOBODYS}"))).await.is(403);
    rival.post(&format!("/api/sandboxes/{theirs}/checkpoints/{id}/restore"), json!({})).await.is(403);
    rival.delete(&format!("/api/sandboxes/{theirs}/checkpoints/{id}")).await.is(403);
    rival.post(&format!("/api/sandboxes/{mine}/checkpoints/{id}/restore"), json!({})).await.is(404);
    rival.delete(&format!("/api/sandboxes/{mine}/checkpoints/{id}")).await.is(404);

    let public = acme.post(&of("publish"), json!({})).await.is(200).json();
    assert_eq!(public["isPublic"], true);
    assert_eq!(acme.post(&of("publish"), json!({})).await.is(200).json()["isPublic"], true);
    let forked = rival.post(&fork, json!({})).await.is(201).json();
    assert_eq!(rival.status(forked["sandboxID"].as_str().unwrap()).await, "running");
    acme.get(&format!("/api/sandboxes/{}", forked["sandboxID"].as_str().unwrap())).await.is(404);
    rival.post(&of("patches"), json!({"script": "true"})).await.is(403);
    rival.post(&of("unpublish"), json!({})).await.is(403);
    assert_eq!(acme.post(&of("unpublish"), json!({})).await.is(200).json()["isPublic"], false);
    rival.post(&fork, json!({})).await.is(403);
    for verb in ["publish", "unpublish"] {
        acme.post(&format!("/api/sandboxes/checkpoints/{NOBODYS}/{verb}"), json!({})).await.is(404);
        acme.post(&format!("/api/sandboxes/checkpoints/x/{verb}"), json!({})).await.is(400);
    }
}

#[tokio::test]
async fn a_restore_brings_the_content_back_and_keeps_the_rest() {
    let server = Server::start().await;
    let acme = &server.acme;
    let sandbox = acme.create(json!({"timeout": 44})).await["sandboxID"].as_str().unwrap().to_owned();
    let other = acme.sandbox().await;
    write(acme, &sandbox, "before").await;
    let id = checkpoint(acme, &sandbox, json!({"name": "one"})).await;
    write(acme, &sandbox, "after").await;
    let route = |sandbox: &str, id: &str| format!("/api/sandboxes/{sandbox}/checkpoints/{id}/restore");
    wait_for(acme, &sandbox, &id, "ready").await;
    let answer = send(acme.request(Method::POST, &route(&sandbox, &id))).await.is(200).json();
    assert_eq!(answer, json!({"sandboxId": sandbox, "checkpointId": id, "status": "restoring"}));
    assert_eq!(read(acme, &sandbox).await, "before");
    let seen = acme.get(&format!("/api/sandboxes/{sandbox}")).await.json();
    assert_eq!((&seen["status"], &seen["timeout"]), (&json!("running"), &json!(44)));

    acme.post(&route(&other, &id), json!({})).await.is(400).error();
    acme.post(&route(&sandbox, NOBODYS), json!({})).await.is(404).error();
    acme.post(&route(&sandbox, "x"), json!({})).await.is(400).error();
    acme.post(&route("sb-00000000", &id), json!({})).await.is(404).error();
    server.node.state().hold_checkpoints = true;
    let unready = checkpoint(acme, &sandbox, json!({"name": "two"})).await;
    let refused = acme.post(&route(&sandbox, &unready), json!({})).await.is(400).error();
    assert!(refused.contains("not ready"), "{refused}");

    acme.post(&format!("/api/sandboxes/{sandbox}/hibernate"), json!({})).await.is(200);
    acme.post(&route(&sandbox, &id), json!({})).await.is(200);
    assert_eq!(acme.status(&sandbox).await, "running");
    acme.delete(&format!("/api/sandboxes/{sandbox}")).await.is(204);
    acme.post(&route(&sandbox, &id), json!({})).await.is(400).error();
    fork(acme, &id, json!({})).await;
}

#[tokio::test]
async fn a_deleted_checkpoint_is_gone_and_its_name_free() {
    let server = Server::start().await;
    let acme = &server.acme;
    let (sandbox, other) = (acme.sandbox().await, acme.sandbox().await);
    let id = checkpoint(acme, &sandbox, json!({"name": "one"})).await;
    wait_for(acme, &sandbox, &id, "ready").await;
    let living = fork(acme, &id, json!({})).await["sandboxID"].as_str().unwrap().to_owned();
    let path = |sandbox: &str| format!("/api/sandboxes/{sandbox}/checkpoints/{id}");
    acme.delete(&path(&other)).await.is(400);
    acme.delete(&path("sb-00000000")).await.is(404);
    acme.delete(&format!("/api/sandboxes/{sandbox}/checkpoints/x")).await.is(400);
    acme.delete(&path(&sandbox)).await.is(204);
    acme.delete(&path(&sandbox)).await.is(404);
    assert!(!server.node.has_checkpoint(&id));
    assert_eq!(acme.status(&living).await, "running");
    acme.post(&format!("/api/sandboxes/from-checkpoint/{id}"), json!({})).await.is(404);
    let again = checkpoint(acme, &sandbox, json!({"name": "one"})).await;

    // A node that misses it is told again.
    server.node.state().unreachable = true;
    acme.delete(&format!("/api/sandboxes/{sandbox}/checkpoints/{again}")).await.is(204);
    assert!(listed(acme, &sandbox, &again).await.is_none() && server.node.has_checkpoint(&again));
    server.node.state().unreachable = false;
    server.control.reconcile().await.unwrap();
    assert!(!server.node.has_checkpoint(&again));
}

#[tokio::test]
async fn after_a_crash_rows_and_node_agree() {
    let server = Server::start().await;
    let sandbox = server.acme.sandbox().await;
    let kept = checkpoint(&server.acme, &sandbox, json!({"name": "kept"})).await;
    let lost = checkpoint(&server.acme, &sandbox, json!({"name": "lost"})).await;
    for id in [&kept, &lost] {
        wait_for(&server.acme, &sandbox, id, "ready").await;
    }
    server.node.state().hold_checkpoints = true;
    let cut_off = checkpoint(&server.acme, &sandbox, json!({"name": "cut off"})).await;
    let late = checkpoint(&server.acme, &sandbox, json!({"name": "late"})).await;
    let (node, dir) = server.stop().await;
    for id in [&lost, &cut_off] {
        node.state().checkpoints.remove(&id.parse().unwrap());
    }
    let unknown = {
        let mut state = node.state();
        let copy = &state.checkpoints[&kept.parse().unwrap()];
        let (report, origin) = (copy.report.clone(), copy.origin.clone());
        let id = warren_types::CheckpointId::generate();
        let report = warren_node_api::CheckpointReport { checkpoint_id: id.clone(), ..report };
        let patches = Vec::new();
        let files = Default::default();
        state.checkpoints.insert(
            id.clone(),
            crate::sim::Checkpoint { report, origin, files, patches, damaged: false, disk_only: false },
        );
        id.to_string()
    };
    node.finish(&late, None);

    let server = Server::start_with(node, dir, |_| {}).await;
    let status = async |id: &str| {
        let found = listed(&server.acme, &sandbox, id).await.unwrap();
        (
            found["status"].as_str().unwrap().to_owned(),
            found["errorMsg"].as_str().unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(status(&kept).await.0, "ready");
    assert_eq!(status(&late).await.0, "ready");
    assert_eq!(status(&lost).await, ("failed".into(), "its node no longer has it".into()));
    assert_eq!(status(&cut_off).await, ("failed".into(), "the server ended while it was being made".into()));
    assert!(!server.node.has_checkpoint(&unknown));
    fork(&server.acme, &late, json!({})).await;
}

#[tokio::test]
async fn patches_are_numbered_kept_and_sent_to_the_node() {
    let server = Server::start().await;
    let acme = &server.acme;
    let sandbox = acme.sandbox().await;
    server.node.state().hold_checkpoints = true;
    let id = checkpoint(acme, &sandbox, json!({"name": "one"})).await;
    let path = format!("/api/sandboxes/checkpoints/{id}/patches");
    let refused = acme.post(&path, json!({"script": "true"})).await.is(400).error();
    assert!(refused.contains("checkpoint is not ready"), "{refused}");
    server.node.finish(&id, None);
    wait_for(acme, &sandbox, &id, "ready").await;
    assert_eq!(acme.get(&path).await.is(200).json(), json!([]));
    for bad in [json!({}), json!({"script": ""}), json!({"script": " \n"})] {
        assert!(acme.post(&path, bad).await.is(400).error().contains("script is required"));
    }
    acme.post(&path, json!({"script": "a\u{0}"})).await.is(400);
    acme.post(&path, json!({"script": "x".repeat(600_000)})).await.is(400);
    let refused =
        acme.post("/api/sandboxes/checkpoints/x/patches", json!({"script": "true"})).await.is(400).error();
    assert!(refused.contains("invalid checkpoint ID"), "{refused}");
    acme.post(&format!("/api/sandboxes/checkpoints/{NOBODYS}/patches"), json!({"script": "true"}))
        .await
        .is(404);

    let first = acme.post(&path, json!({"script": "echo 1", "description": "first"})).await.is(201).json();
    let first = &first["patch"];
    assert_eq!(
        (
            &first["sequence"],
            &first["script"],
            &first["description"],
            &first["strategy"],
            &first["checkpointId"]
        ),
        (&json!(1), &json!("echo 1"), &json!("first"), &json!("on_wake"), &json!(id))
    );
    acme.post(&path, json!({"script": "echo 2"})).await.is(201);
    let sent = |node: &crate::sim::SimNode| -> Vec<(u32, String)> {
        let state = node.state();
        let patches = &state.checkpoints[&id.parse().unwrap()].patches;
        patches.iter().map(|patch| (patch.sequence, patch.script.clone())).collect()
    };
    assert_eq!(sent(&server.node), [(1, "echo 1".to_owned()), (2, "echo 2".to_owned())]);
    acme.delete(&format!("{path}/{}", first["id"].as_str().unwrap())).await.is(204);
    acme.delete(&format!("{path}/{}", first["id"].as_str().unwrap())).await.is(404);
    let third = acme.post(&path, json!({"script": "echo 3"})).await.is(201).json();
    assert_eq!(third["patch"]["sequence"], 3, "a number is never used again");
    assert_eq!(sent(&server.node).len(), 2);
    let listed = acme.get(&path).await.json();
    assert_eq!((&listed[0]["sequence"], &listed[1]["sequence"]), (&json!(2), &json!(3)));

    // However many come at once, and however long the node takes for one of them: it has all in the end.
    server.node.state().next_patches_take = std::time::Duration::from_millis(100);
    let together = (0..6).map(|_| acme.post(&path, json!({"script": "true"})));
    for made in futures_util::future::join_all(together).await {
        let made = made.is(201).json();
        assert!(sent(&server.node).iter().any(|(sequence, _)| made["patch"]["sequence"] == *sequence));
        let made = made["patch"]["id"].as_str().unwrap();
        acme.delete(&format!("{path}/{made}")).await.is(204);
    }

    // A node that is away makes no patch; one that lost its list gets it again.
    server.node.state().unreachable = true;
    acme.post(&path, json!({"script": "echo 4"})).await.is(503);
    server.node.state().unreachable = false;
    assert_eq!(acme.get(&path).await.json().as_array().unwrap().len(), 2);
    {
        let mut state = server.node.state();
        let checkpoint = state.checkpoints.get_mut(&id.parse().unwrap()).unwrap();
        checkpoint.patches.clear();
        checkpoint.report.patches.clear();
    }
    server.control.reconcile().await.unwrap();
    assert_eq!(sent(&server.node).len(), 2);

    let forked = fork(acme, &id, json!({})).await["sandboxID"].as_str().unwrap().to_owned();
    let runs = acme.get(&format!("/api/sandboxes/{forked}/patches")).await.is(200).json();
    assert_eq!((&runs[0]["exitCode"], &runs[0]["stdout"]), (&json!(0), &json!("done\n")));
    server.rival.get(&format!("/api/sandboxes/{forked}/patches")).await.is(404);
    let failing = warren_node_api::Report {
        patches: warren_node_api::PatchProgress {
            applied: 2,
            error: Some("patch 3 failed (exit code 1)".into()),
        },
        ..warren_node_api::Report::new(forked.parse().unwrap(), warren_types::SandboxState::Running, 50)
    };
    server.node.send(failing);
    eventually("the error shows", async || {
        let seen = acme.get(&format!("/api/sandboxes/{forked}")).await.json();
        (seen["patchError"] == "patch 3 failed (exit code 1)").then_some(())
    })
    .await;
}
