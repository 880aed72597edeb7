//! What forks inherit of stores, tokens and policies.

use serde_json::{Value, json};

use crate::harness::{Api, Server};
use crate::secrets::{set, store, values};

async fn checkpoint(api: &Api, sandbox: &str, name: &str) -> String {
    let made =
        api.post(&format!("/api/sandboxes/{sandbox}/checkpoints"), json!({"name": name})).await.is(201);
    made.json()["id"].as_str().unwrap().to_owned()
}

async fn fork(api: &Api, checkpoint: &str, body: Value) -> String {
    let made = api.post(&format!("/api/sandboxes/from-checkpoint/{checkpoint}"), body).await.is(201);
    made.json()["sandboxID"].as_str().unwrap().to_owned()
}

async fn create(api: &Api, body: Value) -> String {
    api.create(body).await["sandboxID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_fork_resolves_its_stores_anew() {
    let server = Server::start().await;
    let api = &server.acme;
    let base = store(api, "base", &["base.com"]).await;
    let upper = store(api, "upper", &[]).await;
    set(api, &base, "A", "base-a").await;
    set(api, &base, "B", "base-b").await;
    let parent = create(api, json!({"secretStore": "base", "envs": {"PLAIN": "1"}})).await;
    let taken = checkpoint(api, &parent, "one").await;
    // Between checkpoint and fork: a value changes, a name comes, another store has one of the names.
    set(api, &base, "A", "rotated-a").await;
    set(api, &base, "C", "base-c").await;
    set(api, &upper, "B", "upper-b").await;

    let plain = fork(api, &taken, json!({})).await;
    assert_eq!(
        server.node.values_of(&plain),
        values(&[("A", "rotated-a"), ("B", "base-b"), ("C", "base-c")])
    );
    let layered = fork(api, &taken, json!({"secretStore": "upper", "envs": {"C": "mine"}})).await;
    assert_eq!(server.node.values_of(&layered), values(&[("A", "rotated-a"), ("B", "upper-b")]));
    let envs = server.node.envs_of(&layered);
    assert_eq!((envs["PLAIN"].as_str(), envs["C"].as_str()), ("1", "mine"));
    let parents = server.node.secrets_of(&parent);
    for (name, token, _, _) in server.node.secrets_of(&layered) {
        assert_eq!(envs[&name], token);
        assert!(parents.iter().all(|(_, parents, _, _)| *parents != token), "tokens are new");
    }
    let shown = api.get(&format!("/api/sandboxes/{layered}/allowed-hosts")).await.json();
    assert_eq!((&shown["secretStore"], &shown["baseSecretStore"]), (&json!("upper"), &json!("base")));
    assert_eq!(shown["egressAllowlist"], json!(["base.com"]));

    // A fork of that fork has both, by itself; a deleted one is passed over.
    let second = checkpoint(api, &layered, "two").await;
    let grandchild = fork(api, &second, json!({})).await;
    assert_eq!(server.node.values_of(&grandchild), values(&[("A", "rotated-a"), ("B", "upper-b")]));
    api.delete(&format!("/api/secret-stores/{base}")).await.is(204);
    let orphan = fork(api, &second, json!({})).await;
    assert_eq!(server.node.values_of(&orphan), values(&[("B", "upper-b")]));
    assert!(!server.node.envs_of(&orphan).contains_key("A"), "no token of the parent is left");
    assert_eq!(
        server.node.policy_of(&orphan),
        json!({"mode": "allowlist", "allow": [{"host": "base.com"}]}),
        "what was refused before stays refused"
    );
    let missing =
        api.post(&format!("/api/sandboxes/from-checkpoint/{second}"), json!({"secretStore": "base"})).await;
    assert_eq!(missing.is(400).error(), "secret store not found: base");
}

#[tokio::test]
async fn policies_are_inherited_and_united() {
    let server = Server::start().await;
    let api = &server.acme;
    let parent = create(api, json!({"egressAllowlist": ["a.com"]})).await;
    let taken = checkpoint(api, &parent, "one").await;
    // What is changed on the parent later is not of the checkpoint.
    api.put(&format!("/api/sandboxes/{parent}/egress"), json!({"mode": "open"})).await.is(200);
    let listed = |hosts: &[&str]| {
        let allow: Vec<_> = hosts.iter().map(|host| json!({"host": host})).collect();
        json!({"mode": "allowlist", "allow": allow})
    };
    for (body, policy) in [
        (json!({}), listed(&["a.com"])),
        (json!({"egressAllowlist": ["b.com"]}), listed(&["a.com", "b.com"])),
        (json!({"egress": {"mode": "none"}}), json!({"mode": "none"})),
        (json!({"egress": {"mode": "open"}}), json!({"mode": "open"})),
        (json!({"egress": {"mode": "allowlist"}, "egressAllowlist": ["c.com"]}), listed(&["c.com"])),
    ] {
        let id = fork(api, &taken, body.clone()).await;
        assert_eq!(server.node.policy_of(&id), policy, "{body}");
        let proxied = server.node.envs_of(&id).contains_key("HTTPS_PROXY");
        assert_eq!(proxied, policy["mode"] == "allowlist", "{body}");
    }
    let closed = create(api, json!({"networkEnabled": false})).await;
    let taken = checkpoint(api, &closed, "one").await;
    let id = fork(api, &taken, json!({})).await;
    assert_eq!(server.node.policy_of(&id), json!({"mode": "none"}));
    let path = format!("/api/sandboxes/from-checkpoint/{taken}");
    api.post(&path, json!({"egressAllowlist": ["a.com"]})).await.is(400).error();
    let id = fork(api, &taken, json!({"egress": {"mode": "open"}})).await;
    assert_eq!(server.node.policy_of(&id), json!({"mode": "open"}));
}

#[tokio::test]
async fn a_fork_of_somebody_elses_checkpoint_has_nothing_of_theirs() {
    let server = Server::start().await;
    let id = store(&server.acme, "s", &["a.com"]).await;
    set(&server.acme, &id, "KEY", "one").await;
    let parent = create(&server.acme, json!({"secretStore": "s"})).await;
    let taken = checkpoint(&server.acme, &parent, "one").await;
    server.acme.post(&format!("/api/sandboxes/checkpoints/{taken}/publish"), json!({})).await.is(200);
    let theirs = fork(&server.rival, &taken, json!({})).await;
    assert_eq!(server.node.values_of(&theirs), []);
    let envs = server.node.envs_of(&theirs);
    assert!(envs.is_empty(), "{envs:?}");
    assert_eq!(server.node.policy_of(&theirs), json!({"mode": "open"}));
    let own = store(&server.rival, "s", &[]).await;
    set(&server.rival, &own, "KEY", "theirs").await;
    let theirs = fork(&server.rival, &taken, json!({"secretStore": "s"})).await;
    assert_eq!(server.node.values_of(&theirs), values(&[("KEY", "theirs")]));
    set(&server.acme, &id, "KEY", "two").await;
    assert_eq!(server.node.values_of(&theirs), values(&[("KEY", "theirs")]));
}

#[tokio::test]
async fn layers_are_bounded() {
    let server = Server::start().await;
    let api = &server.acme;
    let mut current = create(api, json!({})).await;
    for number in 0..5 {
        store(api, &format!("s{number}"), &[]).await;
        let taken = checkpoint(api, &current, "one").await;
        let path = format!("/api/sandboxes/from-checkpoint/{taken}");
        let made = api.post(&path, json!({"secretStore": format!("s{number}")})).await;
        if number == 4 {
            made.is(400).error();
            // One of those it has is none more.
            fork(api, &taken, json!({"secretStore": "s0"})).await;
        } else {
            current = made.is(201).json()["sandboxID"].as_str().unwrap().to_owned();
        }
    }
}
