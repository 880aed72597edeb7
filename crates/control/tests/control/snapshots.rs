//! Snapshots: names and versions of images, templates, archives; deletes, restarts.

use http::{Method, header};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Executor, SqlitePool};

use crate::harness::{Server, eventually, send};
use crate::images::{built, events, image, nothing_is_left, run, scripts, stream};
use crate::sim::SimNode;

#[tokio::test]
async fn a_snapshot_is_made_listed_used_and_deleted() {
    let server = Server::start().await;
    let acme = &server.acme;
    assert_eq!(acme.get("/api/snapshots").await.is(200).json(), json!([]));
    let manifest = image(&[run("out x"), json!({"type": "env", "args": {"vars": {"A": "1"}}})]);
    let answer =
        stream(acme, "/api/snapshots", &json!({"name": "data science", "image": manifest})).await.is(200);
    let mut events = events(&answer);
    let (name, made) = events.pop().unwrap();
    assert_eq!(name, "result");
    assert!(events.iter().any(|(_, data)| data["message"] == "Step 1/2: run out x"), "{events:?}");
    for (field, value) in [
        ("name", json!("data science")),
        ("version", json!(1)),
        ("status", json!("ready")),
        ("isolation", json!("container")),
        ("manifest", manifest.clone()),
        ("public", json!(false)),
        ("env", json!({"A": "1"})),
        ("sizeBytes", json!(1000)),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    assert_eq!(made["contentHash"].as_str().unwrap().len(), 64);
    for path in
        ["/api/snapshots/data%20science", "/api/snapshots/data science@1", "/api/images/data%20science"]
    {
        assert_eq!(acme.get(path).await.is(200).json()["id"], made["id"], "{path}");
    }
    assert_eq!(
        acme.get(&format!("/api/images/{}", made["id"].as_str().unwrap())).await.is(200).json()["id"],
        made["id"]
    );
    assert_eq!(acme.get("/api/snapshots").await.json()[0]["name"], "data science");
    for path in
        ["/api/snapshots/nope", "/api/snapshots/data%20science@2", "/api/snapshots/%ff", "/api/images/nope"]
    {
        acme.get(path).await.is(404).error();
        acme.delete(path).await.is(404).error();
    }
    server.rival.get("/api/snapshots/data%20science").await.is(404);
    server.rival.delete("/api/snapshots/data%20science").await.is(404);
    server.rival.get(&format!("/api/images/{}", made["id"].as_str().unwrap())).await.is(404);

    let body = json!({"snapshot": "data science", "envs": {"B": "2"}, "metadata": {"m": "1"}, "timeout": 5, "memoryMB": 3000});
    let sandbox = acme.post("/api/sandboxes", body).await.is(201).json();
    assert_eq!(
        (&sandbox["templateID"], &sandbox["memoryMB"], &sandbox["timeout"]),
        (&json!("data science"), &json!(4096), &json!(5))
    );
    let id = sandbox["sandboxID"].as_str().unwrap();
    {
        let spec = &server.node.state().sandboxes[&id.parse().unwrap()].spec;
        assert_eq!((spec.envs["A"].as_str(), spec.envs["B"].as_str()), ("1", "2"));
    }
    let fork = acme
        .post(
            &format!("/api/sandboxes/from-checkpoint/{}", made["checkpointId"].as_str().unwrap()),
            json!({}),
        )
        .await;
    assert_eq!(fork.is(201).json()["memoryMB"], 4096);
    // `templateID` names it as well.
    let by_template = acme.post("/api/sandboxes", json!({"templateID": "data science"})).await.is(201).json();
    assert_eq!(by_template["fromCheckpointId"], made["checkpointId"]);

    acme.delete("/api/snapshots/data%20science").await.is(204);
    acme.delete("/api/snapshots/data%20science").await.is(404);
    assert!(!server.node.has_checkpoint(made["checkpointId"].as_str().unwrap()));
    assert_eq!(acme.get("/api/images").await.json(), json!([]));
    assert_eq!(acme.status(id).await, "running", "sandboxes live on");
    // What the steps did is still known.
    acme.post("/api/snapshots", json!({"name": "again", "image": manifest})).await.is(201);
    assert_eq!(scripts(&server.node).len(), 1);
}

#[tokio::test]
async fn names_are_checked_and_taken_ones_refused() {
    let server = Server::start().await;
    let acme = &server.acme;
    for bad in ["", " ", "a/b", "a@1", "a\nb", "..", "base", &"x".repeat(129)] {
        acme.post("/api/snapshots", json!({"name": bad, "image": image(&[])})).await.is(400).error();
    }
    acme.post("/api/snapshots", json!({"name": "n"})).await.is(400).error();
    acme.post("/api/snapshots", json!({"name": "n", "image": image(&[json!({"type": "x"})])}))
        .await
        .is(400)
        .error();
    acme.post("/api/snapshots", json!({"name": "n", "image": image(&[run("out 1")])})).await.is(201);
    for body in [
        json!({"name": "n", "image": image(&[run("out 1")])}),
        json!({"name": "n", "image": image(&[run("out 2")])}),
    ] {
        let error = stream(acme, "/api/snapshots", &body).await.is(409).error();
        assert!(error.starts_with("snapshot name already exists"), "{error}");
    }
    assert_eq!(scripts(&server.node), ["out 1"]);
    let second = json!({"name": "n", "image": image(&[run("out 2")]), "newVersion": true});
    assert_eq!(acme.post("/api/snapshots", second).await.is(201).json()["version"], 2);
    assert_eq!(acme.get("/api/snapshots/n").await.json()["version"], 2);
    assert_eq!(acme.get("/api/snapshots").await.json().as_array().unwrap().len(), 1);
    assert_eq!(acme.get("/api/snapshots?versions=all").await.json().as_array().unwrap().len(), 2);
    let first = acme.post("/api/sandboxes", json!({"snapshot": "n@1"})).await.is(201).json();
    let newest = acme.post("/api/sandboxes", json!({"snapshot": "n"})).await.is(201).json();
    assert_ne!(first["fromCheckpointId"], newest["fromCheckpointId"]);
    acme.delete("/api/snapshots/n@2").await.is(204);
    assert_eq!(acme.get("/api/snapshots/n").await.json()["version"], 1);
    // The name in a manifest makes a snapshot as well, once.
    let mut named = image(&[run("out 3")]);
    named["name"] = json!("m");
    for _ in 0..2 {
        acme.post("/api/sandboxes", json!({"image": named})).await.is(201);
    }
    assert_eq!(acme.get("/api/snapshots/m").await.is(200).json()["version"], 1);
    named["steps"] = json!([run("out 4")]);
    acme.post("/api/sandboxes", json!({"image": named})).await.is(409);
}

#[tokio::test]
async fn a_version_that_is_not_ready_takes_nothing_from_the_one_before() {
    let server = Server::start().await;
    let (acme, rival) = (&server.acme, &server.rival);
    acme.post("/api/snapshots", json!({"name": "app", "image": image(&[run("out 1")])})).await.is(201);
    acme.post("/api/snapshots/app/publish", json!({})).await.is(200);
    let from = async |api: &crate::harness::Api, body: Value| {
        api.post("/api/sandboxes", body).await.is(201).json()["fromCheckpointId"].clone()
    };
    let first = from(acme, json!({"snapshot": "app"})).await;
    let next = |script: &str| json!({"name": "app", "newVersion": true, "image": image(&[run(script)])});
    acme.post("/api/snapshots?async=1", next("hold")).await.is(202);
    assert_eq!(
        acme.get("/api/snapshots/app").await.json()["status"],
        "building",
        "what is asked for is shown"
    );
    for body in [json!({"snapshot": "app"}), json!({"templateID": "app"}), json!({"image": "snapshot:app"})] {
        acme.post("/api/sandboxes", body).await.is(201);
    }
    assert_eq!(from(acme, json!({"snapshot": "app"})).await, first);
    acme.post("/api/sandboxes", json!({"snapshot": "app@2"})).await.is(400);
    acme.post("/api/snapshots/app@2/publish", json!({})).await.is(200);
    assert_eq!(from(rival, json!({"snapshot": "app"})).await, first);
    acme.delete("/api/snapshots/app@2").await.is(204);
    acme.post("/api/snapshots", next("exit 3")).await.is(400);
    assert_eq!(acme.get("/api/snapshots/app").await.json()["status"], "failed");
    assert_eq!(from(acme, json!({"snapshot": "app"})).await, first);
    acme.post("/api/snapshots", next("out 2")).await.is(201);
    assert_ne!(from(acme, json!({"snapshot": "app"})).await, first);
}

#[tokio::test]
async fn a_published_name_stays_with_who_published_it() {
    let server = Server::start().await;
    let (acme, rival) = (&server.acme, &server.rival);
    let third = crate::harness::Api {
        key: Some(crate::harness::key(server.dir.path(), "third").await),
        ..acme.clone()
    };
    for (api, script) in [(rival, "out rival"), (acme, "out acme")] {
        api.post("/api/snapshots", json!({"name": "tools", "image": image(&[run(script)])})).await.is(201);
    }
    acme.post("/api/snapshots/tools/publish", json!({})).await.is(200);
    let from = async || {
        third.post("/api/sandboxes", json!({"snapshot": "tools"})).await.is(201).json()["fromCheckpointId"]
            .clone()
    };
    let published = from().await;
    let error = rival.post("/api/snapshots/tools/publish", json!({})).await.is(409).error();
    assert!(error.contains("another organisation has published"), "{error}");
    assert_eq!(from().await, published);
    assert_eq!(rival.get("/api/snapshots/tools").await.json()["public"], false);
    rival.post("/api/snapshots/tools/unpublish", json!({})).await.is(200);
    acme.post("/api/snapshots/tools/publish", json!({})).await.is(200);
    acme.post("/api/snapshots/tools/unpublish", json!({})).await.is(200);
    rival.post("/api/snapshots/tools/publish", json!({})).await.is(200);
    assert_ne!(from().await, published);
}

#[tokio::test]
async fn a_build_can_go_on_by_itself_and_be_cancelled() {
    let server = Server::start().await;
    let acme = &server.acme;
    let slow = json!({"name": "slow", "image": image(&[run("out begun;hold")])});
    let row = acme.post("/api/snapshots?async=1", slow).await.is(202).json();
    assert_eq!((&row["status"], row.get("checkpointId")), (&json!("building"), None));
    eventually("the step is run", async || (!scripts(&server.node).is_empty()).then_some(())).await;
    assert_eq!(acme.get("/api/snapshots/slow").await.json()["status"], "building");
    let refused = acme.post("/api/sandboxes", json!({"snapshot": "slow"})).await.is(400).error();
    assert!(refused.contains("is not ready (status: building)"), "{refused}");
    assert_eq!(acme.get("/api/sandboxes").await.json(), json!([]), "the sandbox of a build is nobody's");
    server.control.reconcile().await.unwrap();
    assert_eq!(server.node.state().sandboxes.len(), 1, "the reconciler keeps off");

    let waiting = tokio::spawn({
        let (acme, image) = (acme.clone(), image(&[run("out begun;hold")]));
        async move { acme.post("/api/snapshots", json!({"name": "slow too", "image": image})).await }
    });
    eventually("it has a second name", async || {
        (acme.get("/api/snapshots").await.json().as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    acme.delete("/api/snapshots/slow").await.is(204);
    assert_eq!(acme.get("/api/snapshots/slow%20too").await.json()["status"], "building");
    acme.delete("/api/snapshots/slow%20too").await.is(204);
    let error = waiting.await.unwrap().is(409).error();
    assert!(error.contains("cancelled"), "{error}");
    nothing_is_left(&server, 0).await;
    acme.get("/api/snapshots/slow").await.is(404);

    // One that failed shows why, and makes room for another.
    let bad = json!({"name": "bad", "image": image(&[run("err no;exit 1")])});
    acme.post("/api/snapshots?async=1", bad).await.is(202);
    let failed = eventually("it fails", async || {
        let row = acme.get("/api/snapshots/bad").await.json();
        (row["status"] == "failed").then_some(row)
    })
    .await;
    assert_eq!(failed["error"], "step 0 (run) failed (exit 1): no\nThe command was `err no;exit 1`.");
    let refused = acme.post("/api/sandboxes", json!({"snapshot": "bad"})).await.is(400).error();
    assert!(refused.contains("is not ready (status: failed)"), "{refused}");
    let good =
        acme.post("/api/snapshots", json!({"name": "bad", "image": image(&[run("out yes")])})).await.is(201);
    assert_eq!(good.json()["version"], 1);
}

#[tokio::test]
async fn a_name_that_is_deleted_does_not_end_what_somebody_waits_for() {
    let server = Server::start().await;
    let acme = &server.acme;
    let slow = image(&[run("sleep 400;out x")]);
    let waiting = tokio::spawn({
        let (acme, slow) = (acme.clone(), slow.clone());
        async move { acme.post("/api/sandboxes", json!({"image": slow})).await }
    });
    eventually("it is built", async || (!scripts(&server.node).is_empty()).then_some(())).await;
    acme.post("/api/snapshots?async=1", json!({"name": "n", "image": slow})).await.is(202);
    acme.delete("/api/snapshots/n").await.is(204);
    waiting.await.unwrap().is(201);
    let images = acme.get("/api/images").await.json();
    assert_eq!((images[0]["status"].as_str(), images[0].get("name")), (Some("ready"), None), "{images}");
}

#[tokio::test]
async fn a_name_that_is_given_stays_whatever_becomes_of_the_others() {
    let server = Server::start().await;
    let rounds = (0..4).map(async |who| {
        for round in 0..10 {
            let path = format!("/api/snapshots/n{who}-{round}");
            let body = json!({"name": format!("n{who}-{round}"), "image": image(&[])});
            server.acme.post("/api/snapshots", body).await.is(201);
            server.acme.get(&path).await.is(200);
            server.acme.delete(&path).await.is(204);
        }
    });
    futures_util::future::join_all(rounds).await;
}

#[tokio::test]
async fn one_organisation_does_not_keep_another_from_building() {
    let server = Server::start().await;
    for number in 0..5 {
        let body = json!({"name": format!("n{number}"), "image": image(&[run(&format!("hold;{number}"))])});
        server.acme.post("/api/snapshots?async=1", body).await.is(202);
    }
    server.rival.post("/api/sandboxes", json!({"image": image(&[run("out x")])})).await.is(201);
    eventually("four of one and one of the other", async || (scripts(&server.node).len() == 5).then_some(()))
        .await;
}

#[tokio::test]
async fn after_a_restart_named_builds_go_on_and_others_are_forgotten() {
    let server = Server::start().await;
    let acme = &server.acme;
    acme.post("/api/snapshots?async=1", json!({"name": "n", "image": image(&[run("out 1"), run("hold")])}))
        .await
        .is(202);
    let unnamed = tokio::spawn({
        let acme = acme.clone();
        async move { acme.post("/api/sandboxes", json!({"image": image(&[run("hold"), run("out 2")])})).await }
    });
    eventually("both are at it", async || {
        (scripts(&server.node).iter().filter(|script| *script == "hold").count() == 2).then_some(())
    })
    .await;
    let key = acme.key.clone();
    let (node, dir) = server.stop().await;
    unnamed.await.unwrap().is(503).error();
    assert!(node.state().sandboxes.is_empty(), "a server that ends in order removes what it built in");

    let server = Server::start_with(node, dir, |_| {}).await;
    let acme = crate::harness::Api { key, ..server.acme.clone() };
    eventually("it is built again", async || {
        (scripts(&server.node).iter().filter(|script| *script == "hold").count() == 3).then_some(())
    })
    .await;
    assert_eq!(
        scripts(&server.node).iter().filter(|script| *script == "out 1").count(),
        1,
        "from the last good layer"
    );
    let images = acme.get("/api/images").await.json();
    assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
    assert_eq!(images[0]["name"], "n");
}

#[tokio::test]
async fn a_server_that_dies_leaves_a_stray_that_the_reconciler_removes() {
    let node = SimNode::new();
    node.plant("sb-0000000b");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(SimNode::new(), dir, |_| {}).await;
    let (_, dir) = server.stop().await;
    let server = Server::start_with(node, dir, |_| {}).await;
    assert!(!server.node.has("sb-0000000b"));
}

#[tokio::test]
async fn what_a_build_took_before_the_server_died_goes_when_it_starts_again() {
    let server = Server::start().await;
    let body = json!({"image": image(&[run("out x")])});
    let made = server.acme.post("/api/sandboxes", body.clone()).await.is(201).json();
    server.acme.delete(&format!("/api/sandboxes/{}", made["sandboxID"].as_str().unwrap())).await.is(204);
    assert_eq!(server.node.state().checkpoints.len(), 2, "a layer and the image");
    let (node, dir) = server.stop().await;
    // As it stands between the capture of the image's checkpoint and the row that says whose it is.
    let store = SqliteConnectOptions::new().filename(dir.path().join("control.sqlite"));
    let store = SqlitePool::connect_with(store).await.unwrap();
    store.execute("UPDATE images SET status = 'building', checkpoint_id = NULL, layer = NULL").await.unwrap();
    store.close().await;
    let server = Server::start_with(node, dir, |_| {}).await;
    assert_eq!(server.node.state().checkpoints.len(), 1, "the layer, which is good for the next build");
    let (log, _) = built(&server.acme, &body).await;
    assert!(log.iter().any(|line| line.1 == "cache_hit"), "{log:?}");
}

#[tokio::test]
async fn published_snapshots_are_found_by_those_without_their_own() {
    let server = Server::start().await;
    let (acme, rival) = (&server.acme, &server.rival);
    acme.post("/api/snapshots", json!({"name": "p", "image": image(&[run("out acme")])})).await.is(201);
    rival.post("/api/sandboxes", json!({"snapshot": "p"})).await.is(400);
    rival.post("/api/snapshots/p/publish", json!({})).await.is(404);
    let published = acme.post("/api/snapshots/p/publish", json!({})).await.is(200).json();
    assert_eq!(published, json!({"name": "p", "public": true}));
    let made = rival.post("/api/sandboxes", json!({"snapshot": "p"})).await.is(201).json();
    assert_eq!(made["templateID"], "p");
    assert_eq!(rival.get("/api/snapshots").await.json(), json!([]));
    rival.get("/api/snapshots/p").await.is(404);
    rival.post("/api/sandboxes", json!({"image": "snapshot:p"})).await.is(201);
    // Their own counts.
    rival.post("/api/snapshots", json!({"name": "p", "image": image(&[run("out rival")])})).await.is(201);
    let own = rival.post("/api/sandboxes", json!({"snapshot": "p"})).await.is(201).json();
    assert_ne!(own["fromCheckpointId"], made["fromCheckpointId"]);
    rival.delete("/api/snapshots/p").await.is(204);
    acme.post("/api/snapshots/p/unpublish", json!({})).await.is(200);
    rival.post("/api/sandboxes", json!({"snapshot": "p"})).await.is(400);
}

#[tokio::test]
async fn patches_of_a_snapshot_run_in_its_sandboxes() {
    let server = Server::start().await;
    let acme = &server.acme;
    let made = acme
        .post("/api/snapshots", json!({"name": "s", "image": image(&[run("out x")])}))
        .await
        .is(201)
        .json();
    let patch = acme.post("/api/snapshots/s/patches", json!({"script": "echo 1"})).await.is(201).json();
    assert_eq!(patch["patch"]["checkpointId"], made["checkpointId"]);
    let by_id = format!("/api/images/{}/patches", made["id"].as_str().unwrap());
    assert_eq!(acme.get(&by_id).await.is(200).json().as_array().unwrap().len(), 1);
    let sandbox = acme.post("/api/sandboxes", json!({"snapshot": "s"})).await.is(201).json();
    let runs =
        acme.get(&format!("/api/sandboxes/{}/patches", sandbox["sandboxID"].as_str().unwrap())).await.json();
    assert_eq!(runs.as_array().unwrap().len(), 1);
    server.rival.get("/api/snapshots/s/patches").await.is(404);
    acme.delete(&format!("/api/snapshots/s/patches/{}", patch["patch"]["id"].as_str().unwrap()))
        .await
        .is(204);
    assert_eq!(acme.get("/api/snapshots/s/patches").await.json(), json!([]));
}

#[tokio::test]
async fn patches_of_a_snapshot_are_those_of_either_isolation() {
    let node = SimNode::new();
    node.state().offers_machines = true;
    let server = Server::start_with(node, tempfile::tempdir().unwrap(), |_| {}).await;
    let acme = &server.acme;
    let patch = async |path: &str, script: &str| {
        let made = acme.post(path, json!({"script": script})).await.is(201).json();
        made["patch"]["id"].as_str().unwrap().to_owned()
    };
    let runs = async |isolation: &str| {
        let body = json!({"snapshot": "s", "isolation": isolation});
        let made = acme.post("/api/sandboxes", body).await.is(201).json();
        let checkpoint = made["fromCheckpointId"].as_str().unwrap().parse().unwrap();
        server.node.state().checkpoints[&checkpoint].patches.len()
    };
    let body = json!({"name": "s", "image": image(&[run("out x")]), "isolation": "vm"});
    acme.post("/api/snapshots", body).await.is(201);
    let before = patch("/api/snapshots/s/patches", "echo before").await;
    assert_eq!(runs("container").await, 1, "those there are when it is built");
    patch("/api/snapshots/s/patches", "echo after").await;
    assert_eq!((runs("vm").await, runs("container").await), (2, 2));
    let images = acme.get("/api/images").await.json();
    let images = images.as_array().unwrap();
    let other = images.iter().find(|image| image["isolation"] == "container").unwrap();
    let path = format!("/api/images/{}/patches", other["id"].as_str().unwrap());
    let copies = acme.get(&path).await.is(200).json();
    assert_eq!((&copies[0]["script"], &copies[1]["sequence"]), (&json!("echo before"), &json!(2)));
    // By either of its ids, a patch is deleted in both.
    acme.delete(&format!("/api/snapshots/s/patches/{before}")).await.is(204);
    assert_eq!((runs("vm").await, runs("container").await), (1, 1));
    let copy = format!("{path}/{}", copies[1]["id"].as_str().unwrap());
    acme.delete(&copy).await.is(204);
    acme.delete(&copy).await.is(404);
    assert_eq!(acme.get("/api/snapshots/s/patches").await.json(), json!([]));
}

#[tokio::test]
async fn templates_are_base_and_the_snapshots() {
    let server = Server::start().await;
    let acme = &server.acme;
    let base = json!({"templateID": "base", "name": "base", "tag": "latest", "status": "ready"});
    assert_eq!(acme.get("/api/templates").await.is(200).json(), json!([base]));
    let made = acme
        .post("/api/templates", json!({"name": "node", "dockerfile": "# mine\nFROM node:22\n"}))
        .await
        .is(201)
        .json();
    assert_eq!(made, json!({"templateID": "node", "name": "node", "tag": "1", "status": "ready"}));
    assert_eq!(acme.get("/api/templates/node").await.is(200).json(), made);
    assert_eq!(acme.get("/api/templates/base").await.is(200).json(), base);
    let sandbox = acme.create(json!({"templateID": "node"})).await;
    assert_eq!(sandbox["templateID"], "node");
    let refused = acme
        .post("/api/templates", json!({"name": "x", "dockerfile": "FROM a\nRUN y"}))
        .await
        .is(400)
        .error();
    assert!(refused.contains("RUN is not run here") && refused.contains("warren build"), "{refused}");
    acme.post("/api/templates", json!({"name": "base", "dockerfile": "FROM a"})).await.is(400);
    acme.delete("/api/templates/base").await.is(400);
    acme.delete("/api/templates/node").await.is(204);
    let error = acme.get("/api/templates/node").await.is(404).error();
    assert_eq!(error, "template not found: node");
}

#[tokio::test]
async fn an_archive_becomes_an_image() {
    let server = Server::start().await;
    let post = |query: &str, body: &'static str| {
        server.acme.request(Method::POST, &format!("/api/images/archive{query}")).body(body)
    };
    let made = send(post("?name=mine", "archive one")).await.is(201).json();
    assert_eq!((&made["name"], &made["status"]), (&json!("mine"), &json!("ready")));
    assert_eq!(made["workdir"], "/srv/app");
    server.acme.post("/api/sandboxes", json!({"snapshot": "mine"})).await.is(201);
    send(post("?name=mine", "archive two")).await.is(409).error();
    let streamed = post("?name=mine&newVersion=1", "archive two").header(header::ACCEPT, "text/event-stream");
    let (name, made) = events(&send(streamed).await.is(200)).pop().unwrap();
    assert_eq!((name.as_str(), &made["version"]), ("result", &json!(2)));
    let error = send(post("?name=other", "bad")).await.is(400).error();
    assert_eq!(error, "this is no archive of an image");
    server.acme.get("/api/snapshots/other").await.is(404);
    let unnamed = send(post("", "archive three")).await.is(201).json();
    assert_eq!(unnamed.get("name"), None::<&Value>);
}

#[tokio::test]
async fn a_sandbox_of_a_snapshot_may_have_a_larger_disk_and_no_smaller_one() {
    let server = Server::start().await;
    let acme = &server.acme;
    acme.post("/api/snapshots", json!({"name": "small", "image": image(&[run("out x")])})).await.is(201);
    let disk_of = |id: &Value| {
        let id = id.as_str().unwrap().parse().unwrap();
        server.node.state().sandboxes[&id].spec.size.disk_mb
    };
    let large =
        acme.post("/api/sandboxes", json!({"snapshot": "small", "diskMB": 40960})).await.is(201).json();
    assert_eq!((large["diskMB"].as_u64(), disk_of(&large["sandboxID"])), (Some(40960), 40960));
    for disk in [0, 20480] {
        let same =
            acme.post("/api/sandboxes", json!({"snapshot": "small", "diskMB": disk})).await.is(201).json();
        assert_eq!(same["diskMB"], 20480, "{disk}");
    }
    let checkpoint = acme
        .post(
            &format!("/api/sandboxes/{}/checkpoints", large["sandboxID"].as_str().unwrap()),
            json!({"name": "large"}),
        )
        .await
        .is(201)
        .json();
    let checkpoint = format!("checkpoint:{}", checkpoint["id"].as_str().unwrap());
    let body = json!({"image": {"base": checkpoint, "steps": []}, "diskMB": 30720});
    eventually("the checkpoint is ready", async || {
        let answer = acme.post("/api/snapshots", json!({"name": "large", "image": body["image"]})).await;
        (answer.status == 201).then_some(())
    })
    .await;
    for body in [body, json!({"snapshot": "large", "diskMB": 30720})] {
        // Also of one that asks for a stream: it is known before there is anything to be streamed.
        let says = stream(acme, "/api/sandboxes", &body).await.is(400).error();
        assert!(says.contains("has a disk of 40960, which cannot become smaller"), "{says}");
    }
    for (disk, says) in [(20479, "at least 20480"), (262_145, "cannot exceed")] {
        let body = json!({"snapshot": "small", "diskMB": disk});
        assert!(acme.post("/api/sandboxes", body).await.is(400).error().contains(says));
    }
}

#[tokio::test]
async fn what_is_done_to_images_and_snapshots_is_recorded() {
    let server = Server::start().await;
    let acme = &server.acme;
    let records = async || {
        let all = acme.get("/api/audit?kind=image,snapshot&limit=1000").await.is(200).json();
        let all = all.as_array().unwrap().clone();
        let word = |record: &Value, field: &str| record["detail"][field].as_str().unwrap_or("-").to_owned();
        all.iter()
            .map(|record| {
                let actor = record["actor"].as_str().unwrap();
                assert!(actor.starts_with("key:"), "{record}");
                let kind = record["kind"].as_str().unwrap();
                format!("{kind} {} {}", word(record, "action"), word(record, "outcome"))
            })
            .collect::<Vec<_>>()
    };
    let made = acme
        .post("/api/snapshots", json!({"name": "kept", "image": image(&[run("out x")])}))
        .await
        .is(201)
        .json();
    acme.post("/api/snapshots/kept/publish", json!({})).await.is(200);
    acme.post("/api/snapshots/kept/unpublish", json!({})).await.is(200);
    let failed = json!({"name": "bad", "image": image(&[run("exit 3")])});
    acme.post("/api/snapshots", failed).await.error();
    acme.delete("/api/snapshots/bad").await.is(204);
    acme.delete(&format!("/api/images/{}", made["id"].as_str().unwrap())).await.is(204);
    // The end of something says no more than how it ended; the commands that failed are somebody else's.
    let expected = [
        ("image build begun", 2),
        ("image delete begun", 1),
        ("image - done", 2),
        ("image - refused", 1),
        ("snapshot create begun", 2),
        ("snapshot delete begun", 1),
        ("snapshot - done", 3),
        ("snapshot publish done", 1),
        ("snapshot unpublish done", 1),
    ];
    eventually("all of it is recorded", async || {
        let found = records().await;
        let times = |record: &str| found.iter().filter(|found| *found == record).count();
        expected.iter().all(|(record, wanted)| times(record) == *wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_build_that_failed_is_tried_again_under_its_name() {
    let server = Server::start().await;
    let acme = &server.acme;
    let manifest = image(&[run("out x"), run("exit 3")]);
    for new_version in [false, false, true] {
        let body = json!({"name": "flaky", "image": manifest, "newVersion": new_version});
        let says = acme.post("/api/snapshots", body).await.is(400).error();
        assert_eq!(says, "step 1 (run) failed (exit 3): `exit 3` wrote nothing");
        let now = acme.get("/api/snapshots/flaky").await.is(200).json();
        assert_eq!((&now["version"], &now["status"]), (&json!(1), &json!("failed")));
    }
    let other = json!({"name": "flaky", "image": image(&[run("out y")])});
    assert_eq!(acme.post("/api/snapshots", other).await.is(201).json()["version"], 1);
}

#[tokio::test]
async fn a_build_that_is_cancelled_while_its_image_is_kept_leaves_no_image() {
    let server = Server::start().await;
    let acme = &server.acme;
    server.node.state().hold_checkpoints = true;
    let body = json!({"name": "late", "image": image(&[run("out x")])});
    acme.post("/api/snapshots?async=1", body).await.is(202);
    let layer = eventually("the layer is taken", async || {
        server.node.state().checkpoints.keys().next().map(ToString::to_string)
    })
    .await;
    let held = server.node.hold_creates();
    server.node.finish(&layer, None);
    eventually("the image is to be kept", async || (server.node.state().copies_asked > 0).then_some(()))
        .await;
    acme.delete("/api/snapshots/late").await.is(204);
    nothing_is_left(&server, 0).await;
    drop(held);
    eventually("what was made of it is removed, and the layer is kept", async || {
        let state = server.node.state();
        let left: Vec<String> = state.checkpoints.keys().map(ToString::to_string).collect();
        (state.copies == 1 && left == [layer.clone()]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn snapshots_called_like_routes_of_images_are_images_all_the_same() {
    let server = Server::start().await;
    let acme = &server.acme;
    for name in ["usage", "archive"] {
        let body = json!({"name": name, "image": image(&[run("out x")])});
        let made = acme.post("/api/snapshots", body).await.is(201).json();
        let id = &made["id"];
        assert_eq!(acme.get(&format!("/api/snapshots/{name}")).await.is(200).json()["id"], *id);
        assert_eq!(acme.get(&format!("/api/images/{name}@1")).await.is(200).json()["id"], *id);
        acme.post(&format!("/api/images/{name}/patches"), json!({"script": "true"})).await.is(201);
        assert_eq!(
            acme.get(&format!("/api/images/{name}/patches")).await.is(200).json().as_array().unwrap().len(),
            1
        );
        if name == "archive" {
            assert_eq!(acme.get("/api/images/archive").await.is(200).json()["id"], *id);
            server.rival.get("/api/images/archive").await.is(404);
        }
        let path = format!("/api/images/{name}");
        server.rival.delete(&path).await.is(404);
        acme.delete(&path).await.is(204);
        acme.delete(&path).await.is(404);
    }
    assert!(acme.get("/api/images/usage").await.is(200).json()["usedBytes"].is_number());
    acme.get("/api/images/archive").await.is(404);
}
