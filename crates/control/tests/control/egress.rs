//! What sandboxes may reach: at create, while they run, and as it is shown.

use serde_json::json;
use warren_node_api::Blocked;

use crate::harness::Server;
use crate::secrets::{set, store};

async fn made(server: &Server, body: serde_json::Value) -> String {
    server.acme.create(body).await["sandboxID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn policies_at_create() {
    let server = Server::start().await;
    store(&server.acme, "open", &[]).await;
    store(&server.acme, "listed", &["a.com"]).await;
    for (body, policy) in [
        (json!({}), json!({"mode": "open"})),
        (json!({"networkEnabled": false}), json!({"mode": "none"})),
        (json!({"egressAllowlist": ["b.com"]}), json!({"mode": "allowlist", "allow": [{"host": "b.com"}]})),
        (json!({"egress": {"mode": "allowlist"}}), json!({"mode": "allowlist"})),
        (json!({"secretStore": "open"}), json!({"mode": "open"})),
        (json!({"secretStore": "listed"}), json!({"mode": "allowlist", "allow": [{"host": "a.com"}]})),
        (json!({"secretStore": "listed", "networkEnabled": false}), json!({"mode": "none"})),
        (
            json!({"secretStore": "listed", "egressAllowlist": ["b.com", "a.com"],
                "egress": {"mode": "allowlist", "allow": [{"host": "c.com", "ports": [22], "methods": ["GET"], "paths": ["/x"]}]}}),
            json!({"mode": "allowlist", "allow": [{"host": "c.com", "ports": [22], "methods": ["GET"], "paths": ["/x"]},
                {"host": "b.com"}, {"host": "a.com"}]}),
        ),
    ] {
        let id = made(&server, body.clone()).await;
        assert_eq!(server.node.policy_of(&id), policy, "{body}");
        let listed = policy["mode"] == "allowlist";
        assert_eq!(server.node.envs_of(&id).contains_key("HTTP_PROXY"), listed, "{body}");
        let shown = server.acme.get(&format!("/api/sandboxes/{id}/egress")).await.is(200).json();
        assert_eq!((&shown["effective"], &shown["sandboxID"]), (&policy, &json!(id)));
    }
    let before = server.node.state().creates;
    for bad in [
        json!({"networkEnabled": false, "egressAllowlist": ["a.com"]}),
        json!({"egress": {"mode": "none"}, "egressAllowlist": ["a.com"]}),
        json!({"egress": {"mode": "everything"}}),
        json!({"egress": {"mode": "open", "extra": 1}}),
        json!({"egress": {"mode": "allowlist", "allow": [{"host": "a b"}]}}),
        json!({"egress": {"mode": "allowlist", "allow": [{"host": "a.com", "ports": [0]}]}}),
        json!({"egress": "none"}),
        json!({"egressAllowlist": ["https://a.com"]}),
        json!({"egressAllowlist": "a.com"}),
        json!({"secretStore": 7}),
        json!({"secretAllowedHosts": []}),
    ] {
        server.acme.post("/api/sandboxes", bad).await.is(400).error();
    }
    assert_eq!(server.node.state().creates, before);
}

#[tokio::test]
async fn a_policy_can_be_changed_while_a_sandbox_runs() {
    let server = Server::start().await;
    let api = &server.acme;
    let store_id = store(api, "s", &["a.com"]).await;
    let id = made(&server, json!({"secretStore": "s", "egressAllowlist": ["b.com"]})).await;
    let path = format!("/api/sandboxes/{id}/egress");
    let rules = json!({"mode": "allowlist", "allow": [{"host": "c.com", "ports": [443]}]});
    let shown = api.put(&path, rules.clone()).await.is(200).json();
    assert_eq!(shown["policy"], rules);
    assert_eq!(shown["effective"]["allow"], json!([{"host": "c.com", "ports": [443]}, {"host": "a.com"}]));
    assert_eq!(server.node.policy_of(&id), shown["effective"]);
    assert_eq!(api.get(&path).await.json(), shown);

    // The list of its store, at once.
    api.put(&format!("/api/secret-stores/{store_id}"), json!({"egressAllowlist": ["d.com"]})).await.is(200);
    assert_eq!(
        server.node.policy_of(&id)["allow"],
        json!([{"host": "c.com", "ports": [443]}, {"host": "d.com"}])
    );
    api.put(&path, json!({"mode": "none"})).await.is(200);
    assert_eq!(server.node.policy_of(&id), json!({"mode": "none"}));
    api.put(&path, json!({"mode": "open"})).await.is(200);
    assert_eq!(server.node.policy_of(&id)["allow"], json!([{"host": "d.com"}]), "the store still counts");

    for bad in [
        json!({}),
        json!({"allow": [{"host": "a.com"}]}),
        json!({"mode": "open", "allow": [{"host": "a.com"}]}),
        json!({"mode": "allowlist", "allow": [{"host": "*.*.com"}]}),
        json!({"mode": "allowlist", "allow": [{"host": "a.com", "methods": ["get"]}]}),
        json!({"mode": "allowlist", "allow": vec![json!({"host": "a.com"}); 201]}),
    ] {
        api.put(&path, bad).await.is(400).error();
    }
    assert_eq!(server.node.policy_of(&id)["allow"], json!([{"host": "d.com"}]));
    // What is not in force is not said to be.
    server.node.state().egress.deaf = true;
    api.put(&path, json!({"mode": "none"})).await.is(503);
    assert_eq!(api.get(&path).await.json()["policy"], json!({"mode": "open"}));
    server.node.state().egress.deaf = false;
    api.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    api.put(&path, json!({"mode": "open"})).await.is(410);
}

#[tokio::test]
async fn a_store_that_is_deleted_leaves_its_restriction() {
    let server = Server::start().await;
    let api = &server.acme;
    let listed = store(api, "listed", &["a.com"]).await;
    set(api, &listed, "KEY", "one").await;
    let id = made(&server, json!({"secretStore": "listed"})).await;
    api.delete(&format!("/api/secret-stores/{listed}")).await.is(204);
    assert_eq!(server.node.policy_of(&id), json!({"mode": "allowlist", "allow": [{"host": "a.com"}]}));
    assert_eq!(server.node.values_of(&id), []);
    let shown = api.get(&format!("/api/sandboxes/{id}/allowed-hosts")).await.is(200).json();
    assert_eq!((shown.get("secretStore"), &shown["egressAllowlist"]), (None, &json!(["a.com"])));
    // Its owner may open it.
    api.put(&format!("/api/sandboxes/{id}/egress"), json!({"mode": "open"})).await.is(200);
    assert_eq!(server.node.policy_of(&id), json!({"mode": "open"}));
}

#[tokio::test]
async fn allowed_hosts_say_what_is_in_force_and_what_was_refused() {
    let server = Server::start().await;
    let api = &server.acme;
    let plain = made(&server, json!({})).await;
    assert_eq!(
        api.get(&format!("/api/sandboxes/{plain}/allowed-hosts")).await.is(200).json(),
        json!({"sandboxID": plain, "egressAllowlist": [], "perSecretAllowedHosts": {}, "policy": {"mode": "open"}, "blocked": []})
    );
    let store_id = store(api, "s", &["a.com", "*.b.com"]).await;
    set(api, &store_id, "FREE", "x").await;
    let path = format!("/api/secret-stores/{store_id}/secrets");
    api.put(&format!("{path}/BOUND"), json!({"value": "x", "allowedHosts": ["*.b.com"]})).await.is(200);
    let narrowed = json!({"BOUND": ["x.b.com", "c.com"], "FREE": ["a.com"]});
    let id = made(
        &server,
        json!({"secretStore": "s", "egressAllowlist": ["c.com"], "secretAllowedHosts": narrowed}),
    )
    .await;
    let secrets = server.node.secrets_of(&id);
    assert_eq!(
        (&secrets[0].3[..], &secrets[1].3[..]),
        (&["x.b.com".to_owned()][..], &["a.com".to_owned()][..])
    );
    server.node.state().egress.blocked = vec![Blocked {
        host: "evil.com\u{1b}[2J".into(),
        port: 443,
        reason: "it is not on the list".into(),
        count: 3,
        at_ms: 1_700_000_000_000,
    }];
    let shown = api.get(&format!("/api/sandboxes/{id}/allowed-hosts")).await.is(200).json();
    assert_eq!(shown["secretStore"], "s");
    assert_eq!(shown["egressAllowlist"], json!(["c.com", "a.com", "*.b.com"]));
    assert_eq!(shown["perSecretAllowedHosts"], json!({"BOUND": ["x.b.com"], "FREE": ["a.com"]}));
    assert_eq!(
        shown["blocked"],
        json!([{"host": "evil.com[2J", "port": 443, "reason": "it is not on the list", "count": 3, "at": "2023-11-14T22:13:20Z"}])
    );
    // A node that cannot say is no reason to say nothing.
    server.node.state().egress.deaf = true;
    let shown = api.get(&format!("/api/sandboxes/{id}/allowed-hosts")).await.is(200).json();
    assert_eq!((&shown["blocked"], &shown["secretStore"]), (&json!([]), &json!("s")));
    server.node.state().egress.deaf = false;

    // A secret whose hosts have nothing in common with those of the sandbox goes nowhere.
    api.put(&format!("{path}/BOUND"), json!({"value": "x", "allowedHosts": ["z.com"]})).await.is(200);
    assert_eq!(server.node.values_of(&id), crate::secrets::values(&[("FREE", "x")]));
}
