//! Secret stores and secrets: the routes, what is kept on disk, and what running sandboxes get to have.

use http::Method;
use serde_json::{Value, json};
use warren_node_api::SecretUse;

use crate::harness::{Answer, Api, Server, eventually, send};

pub(crate) async fn store(api: &Api, name: &str, list: &[&str]) -> String {
    let made = api.post("/api/secret-stores", json!({"name": name, "egressAllowlist": list})).await.is(201);
    made.json()["id"].as_str().unwrap().to_owned()
}

pub(crate) async fn set(api: &Api, store: &str, name: &str, value: &str) -> Answer {
    api.put(&format!("/api/secret-stores/{store}/secrets/{name}"), json!({"value": value})).await.is(200)
}

async fn entries(api: &Api, store: &str) -> Value {
    api.get(&format!("/api/secret-stores/{store}/secrets")).await.is(200).json()
}

pub(crate) fn values(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn stores_are_made_listed_changed_and_deleted() {
    let server = Server::start().await;
    let api = &server.acme;
    assert_eq!(api.get("/api/secret-stores").await.is(200).json(), json!([]));
    let made =
        api.post("/api/secret-stores", json!({"name": "b", "egressAllowlist": ["API.example.com."]})).await;
    let made = made.is(201).json();
    assert_eq!(made["egressAllowlist"], json!(["api.example.com"]));
    assert!(made["orgId"].is_string() && made["createdAt"].is_string() && made["updatedAt"].is_string());
    let plain = api.post("/api/secret-stores", json!({"name": "a"})).await.is(201).json();
    assert_eq!(plain["egressAllowlist"], json!([]), "never null");
    assert_eq!(api.get("/api/secret-stores").await.json(), json!([plain, made]), "by name");
    let path = format!("/api/secret-stores/{}", made["id"].as_str().unwrap());
    assert_eq!(api.get(&path).await.is(200).json(), made);

    let again = api.post("/api/secret-stores", json!({"name": "b"})).await.is(409).error();
    assert_eq!(again, "a store with that name already exists");
    api.put(&path, json!({"name": "a"})).await.is(409);
    let renamed = api.put(&path, json!({"name": "c"})).await.is(200).json();
    assert_eq!((&renamed["name"], &renamed["egressAllowlist"]), (&json!("c"), &json!(["api.example.com"])));
    let cleared = api.put(&path, json!({"name": "", "egressAllowlist": []})).await.is(200).json();
    assert_eq!((&cleared["name"], &cleared["egressAllowlist"]), (&json!("c"), &json!([])));

    for bad in [
        json!({}),
        json!({"name": ""}),
        json!({"name": " "}),
        json!({"name": "a\nb"}),
        json!({"name": "x".repeat(129)}),
        json!({"name": 5}),
        json!({"name": "x", "egressAllowlist": [""]}),
        json!({"name": "x", "egressAllowlist": ["http://a.com"]}),
        json!({"name": "x", "egressAllowlist": "a.com"}),
        json!({"name": "x", "egressAllowlist": vec!["a.com"; 101]}),
    ] {
        api.post("/api/secret-stores", bad).await.is(400).error();
    }
    assert_eq!(api.get("/api/secret-stores").await.json().as_array().unwrap().len(), 2);
    api.delete(&path).await.is(204);
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let gone = send(api.request(method, &path).json(&json!({"name": "z"}))).await.is(404);
        assert_eq!(gone.error(), "secret store not found");
    }
}

#[tokio::test]
async fn secrets_go_in_and_never_come_out() {
    let server = Server::start().await;
    let api = &server.acme;
    let id = store(api, "s", &[]).await;
    assert_eq!(entries(api, &id).await, json!([]));
    let path = format!("/api/secret-stores/{id}/secrets");
    let body =
        json!({"value": "hunter2-value", "allowedHosts": ["api.example.com"], "places": ["header", "query"]});
    let answer = api.put(&format!("{path}/KEY"), body).await.is(200).json();
    assert_eq!(
        answer,
        json!({"name": "KEY", "status": "set", "refreshed": "0"}),
        "strings only, and no value"
    );
    let listed = entries(api, &id).await;
    assert_eq!(
        (&listed[0]["name"], &listed[0]["allowedHosts"], &listed[0]["places"], &listed[0]["storeId"]),
        (&json!("KEY"), &json!(["api.example.com"]), &json!(["header", "query"]), &json!(id))
    );
    assert!(!listed.to_string().contains("hunter2"));
    // A new value alone leaves the restrictions as they are; an empty list ends one.
    set(api, &id, "KEY", "hunter3-value").await;
    let kept = entries(api, &id).await;
    assert_eq!((&kept[0]["id"], &kept[0]["allowedHosts"]), (&listed[0]["id"], &json!(["api.example.com"])));
    api.put(&format!("{path}/KEY"), json!({"value": "x", "allowedHosts": []})).await.is(200);
    assert_eq!(entries(api, &id).await[0]["allowedHosts"], json!([]));
    set(api, &id, "PLAIN", "x").await;
    assert_eq!(entries(api, &id).await[1]["places"], json!(["header"]));

    for (name, bad) in [
        ("KEY", json!({})),
        ("KEY", json!({"value": ""})),
        ("KEY", json!({"value": null})),
        ("KEY", json!({"value": "a\0b"})),
        ("KEY", json!({"value": "x".repeat(64 * 1024 + 1)})),
        ("KEY", json!({"value": "x", "allowedHosts": [""]})),
        ("KEY", json!({"value": "x", "allowedHosts": ["a b"]})),
        ("KEY", json!({"value": "x", "places": []})),
        ("KEY", json!({"value": "x", "places": ["cookie"]})),
        ("2K", json!({"value": "x"})),
        ("A-B", json!({"value": "x"})),
        ("A%2FB", json!({"value": "x"})),
        ("A%3D", json!({"value": "x"})),
    ] {
        api.put(&format!("{path}/{name}"), bad).await.is(400).error();
    }
    let echoed = api.put(&format!("{path}/KEY"), json!({"value": 987_654_321})).await.is(400);
    assert!(!echoed.text.contains("987654321"), "{echoed:?}");
    let empty = api.put(&format!("{path}/KEY"), json!({"value": "x", "allowedHosts": [" "]})).await.error();
    assert_eq!(empty, "allowedHosts entries cannot be empty");

    api.delete(&format!("{path}/KEY")).await.is(204);
    api.delete(&format!("{path}/KEY")).await.is(404);
    api.get(&format!("{path}/KEY/uses")).await.is(404);

    // Nothing of it is on the disk in clear.
    let (_, dir) = server.stop().await;
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap().path();
        let bytes = match std::fs::read(&file) {
            // The files beside a database go when its last connection is closed, which nobody waits for.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.unwrap(),
        };
        assert!(!bytes.windows(7).any(|window| window == b"hunter2" || window == b"hunter3"));
    }
}

#[tokio::test]
async fn sizes_are_bounded() {
    let server = Server::start().await;
    let api = &server.acme;
    let id = store(api, "s", &[]).await;
    for number in 0..100 {
        set(api, &id, &format!("K{number}"), "x").await;
    }
    let path = format!("/api/secret-stores/{id}/secrets");
    api.put(&format!("{path}/ONE_MORE"), json!({"value": "x"})).await.is(400).error();
    set(api, &id, "K99", "another value of one that is there").await;
    let big = store(api, "big", &[]).await;
    for number in 0..4 {
        set(api, &big, &format!("K{number}"), &"x".repeat(64 * 1024)).await;
    }
    let path = format!("/api/secret-stores/{big}/secrets");
    api.put(&format!("{path}/K4"), json!({"value": "x".repeat(64 * 1024)})).await.is(400).error();
    for number in 2..100 {
        store(api, &format!("s{number}"), &[]).await;
    }
    api.post("/api/secret-stores", json!({"name": "one more"})).await.is(400).error();
}

#[tokio::test]
async fn a_sandbox_has_tokens_and_its_node_the_values() {
    let server = Server::start().await;
    let api = &server.acme;
    let id = store(api, "s", &[]).await;
    set(api, &id, "KEY", "one").await;
    let hosts = json!({"value": "two", "allowedHosts": ["a.com"], "places": ["body"]});
    api.put(&format!("/api/secret-stores/{id}/secrets/OTHER"), hosts).await.is(200);
    set(api, &id, "TAKEN", "three").await;
    let box_id = api
        .create(json!({"secretStore": "s", "envs": {"TAKEN": "mine", "HTTPS_PROXY": "http://mine"}}))
        .await;
    let box_id = box_id["sandboxID"].as_str().unwrap();

    let envs = server.node.envs_of(box_id);
    let secrets = server.node.secrets_of(box_id);
    assert_eq!(server.node.values_of(box_id), values(&[("KEY", "one"), ("OTHER", "two")]));
    assert_eq!(secrets[1].3, ["a.com"]);
    for (name, token, _, _) in &secrets {
        assert!(token.strip_prefix("osb_sealed_").is_some_and(|digits| digits.len() == 32), "{token}");
        assert_eq!(envs[name], *token);
    }
    assert_eq!((envs["TAKEN"].as_str(), envs["HTTPS_PROXY"].as_str()), ("mine", "http://mine"));
    assert_eq!(envs["http_proxy"], "http://169.254.169.253:3128");
    assert_eq!(envs["NO_PROXY"], "localhost,127.0.0.1,::1,169.254.169.254");
    assert_eq!(envs["NODE_EXTRA_CA_CERTS"], "/usr/local/share/ca-certificates/opensandbox-proxy.crt");
    for name in ["SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] {
        assert_eq!(envs[name], "/etc/ssl/certs/ca-certificates.crt");
    }
    {
        let node = server.node.state();
        assert!(node.sandboxes[&box_id.parse().unwrap()].spec.sealed);
    }
    assert_eq!(server.node.policy_of(box_id), json!({"mode": "open"}));

    let before = server.node.state().creates;
    let unknown = api.post("/api/sandboxes", json!({"secretStore": "nope"})).await.is(400).error();
    assert_eq!(unknown, "secret store not found: nope");
    server.rival.post("/api/sandboxes", json!({"secretStore": "s"})).await.is(400).error();
    api.post("/api/sandboxes", json!({"secretAllowedHosts": {"KEY": ["a.com"]}})).await.is(400).error();
    api.post("/api/sandboxes", json!({"secretStore": "s", "secretAllowedHosts": {"NO": ["a.com"]}}))
        .await
        .is(400);
    assert_eq!(server.node.state().creates, before, "nothing was made");
}

#[tokio::test]
async fn a_create_that_asks_for_nothing_costs_nothing() {
    let server = Server::start().await;
    let id = store(&server.acme, "s", &["a.com"]).await;
    set(&server.acme, &id, "KEY", "one").await;
    let box_id = server.acme.sandbox().await;
    let node = server.node.state();
    assert_eq!((node.egress.secret_calls, node.egress.policy_calls), (0, 0));
    let spec = &node.sandboxes[&box_id.parse().unwrap()].spec;
    assert!(spec.envs.is_empty() && !spec.sealed);
}

#[tokio::test]
async fn what_secrets_were_is_known_after_a_restart_and_a_rotation_of_keys() {
    let server = Server::start().await;
    let api = &server.acme;
    let id = store(api, "s", &[]).await;
    set(api, &id, "KEY", "nobody had this one").await;
    set(api, &id, "KEY", "v0").await;
    set(api, &id, "GOES", "removed").await;
    let sandbox = api.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    let secrets = server.node.secrets_of(&sandbox);
    let token = |index: usize, value: &str| (secrets[index].1.clone(), value.to_owned());
    for version in 1..=5 {
        set(api, &id, "KEY", &format!("v{version}")).await;
    }
    let of_key = ["v4", "v3", "v2", "v1"].map(|value| token(1, value));
    assert_eq!(server.node.former_of(&sandbox), of_key, "so many of a secret");
    api.delete(&format!("/api/secret-stores/{id}/secrets/GOES")).await.is(204);
    let of_both = [&[token(0, "removed")][..], &of_key].concat();
    assert_eq!(server.node.former_of(&sandbox), of_both);

    let (node, dir) = server.stop().await;
    warren_control::secrets::rotate_key(dir.path(), None).await.unwrap();
    node.state().egress.former.clear();
    let server = Server::start_with(node, dir, |_| ()).await;
    let told = async || (server.node.former_of(&sandbox) == of_both).then_some(());
    eventually("the node is told what the secrets were", told).await;
    assert_eq!(server.node.values_of(&sandbox), values(&[("KEY", "v5")]));
    // With the store all of it was.
    server.acme.delete(&format!("/api/secret-stores/{id}")).await.is(204);
    assert_eq!(server.node.values_of(&sandbox), []);
    let mut all = server.node.former_of(&sandbox);
    all.sort();
    let mut expected = [&of_both[..4], &[token(1, "v5")]].concat();
    expected.sort();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn changes_reach_running_sandboxes_before_the_answer() {
    let server = Server::start().await;
    let api = &server.acme;
    let id = store(api, "s", &[]).await;
    set(api, &id, "KEY", "one").await;
    set(api, &id, "GOES", "x").await;
    let first = api.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    let second = api.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    api.post(&format!("/api/sandboxes/{second}/hibernate"), json!({})).await.is(200);
    let stopped = api.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    api.delete(&format!("/api/sandboxes/{stopped}")).await.is(204);
    let tokens = server.node.secrets_of(&first);
    assert_ne!(tokens[1].1, server.node.secrets_of(&second)[1].1, "each sandbox has its own tokens");

    let answer = set(api, &id, "KEY", "rotated").await.json();
    assert_eq!(answer["refreshed"], "2");
    for sandbox in [&first, &second] {
        assert_eq!(server.node.values_of(sandbox), values(&[("GOES", "x"), ("KEY", "rotated")]));
    }
    assert_eq!(server.node.secrets_of(&first)[1].1, tokens[1].1, "the token stays");

    // A new name is for new sandboxes.
    set(api, &id, "NEW", "y").await;
    assert_eq!(server.node.values_of(&first).len(), 2);
    // Hosts of a secret.
    let narrowed = json!({"value": "rotated", "allowedHosts": ["a.com"]});
    api.put(&format!("/api/secret-stores/{id}/secrets/KEY"), narrowed).await.is(200);
    assert_eq!(server.node.secrets_of(&first)[1].3, ["a.com"]);
    // One that is deleted is gone, for good.
    api.delete(&format!("/api/secret-stores/{id}/secrets/GOES")).await.is(204);
    assert_eq!(server.node.values_of(&first), values(&[("KEY", "rotated")]));
    set(api, &id, "GOES", "again").await;
    assert_eq!(server.node.values_of(&first), values(&[("KEY", "rotated")]), "a dead token stays dead");
    // With the store everything goes.
    api.delete(&format!("/api/secret-stores/{id}")).await.is(204);
    for sandbox in [&first, &second] {
        assert_eq!(server.node.values_of(sandbox), []);
    }
    assert!(!server.node.has(&stopped));
}

#[tokio::test]
async fn a_node_that_cannot_be_told_is_told_later() {
    let server = Server::start().await;
    let api = &server.acme;
    let id = store(api, "s", &["a.com"]).await;
    set(api, &id, "KEY", "one").await;
    let box_id = api.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    server.node.state().egress.deaf = true;
    let answer = set(api, &id, "KEY", "two").await.json();
    assert_eq!((&answer["refreshed"], &answer["pending"]), (&json!("0"), &json!("1")));
    api.put(&format!("/api/secret-stores/{id}"), json!({"egressAllowlist": ["b.com"]})).await.is(200);
    assert_eq!(server.node.values_of(&box_id), values(&[("KEY", "one")]));
    api.post("/api/sandboxes", json!({"secretStore": "s"})).await.is(503);
    server.node.state().egress.deaf = false;
    eventually("the node is told", async || {
        let told = server.node.values_of(&box_id) == values(&[("KEY", "two")])
            && server.node.policy_of(&box_id)["allow"] == json!([{"host": "b.com"}]);
        told.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_that_starts_tells_its_node_everything() {
    let server = Server::start().await;
    let id = store(&server.acme, "s", &["a.com"]).await;
    set(&server.acme, &id, "KEY", "one").await;
    let box_id =
        server.acme.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    let tokens = server.node.secrets_of(&box_id);
    let (node, dir) = server.stop().await;
    // Its node has started anew as well: secrets are not written down there.
    node.state().egress.grants.clear();
    node.state().sandboxes.get_mut(&box_id.parse().unwrap()).unwrap().spec.egress = Default::default();
    let server = Server::start_with(node, dir, |_| {}).await;
    assert_eq!(server.node.secrets_of(&box_id), tokens);
    assert_eq!(server.node.policy_of(&box_id)["allow"], json!([{"host": "a.com"}]));
}

#[tokio::test]
async fn a_server_does_not_start_without_the_key_of_its_secrets() {
    let server = Server::start().await;
    let id = store(&server.acme, "s", &[]).await;
    set(&server.acme, &id, "KEY", "one").await;
    let (node, dir) = server.stop().await;
    let start = async |file: Option<&str>| {
        let mut config = warren_control::Config::new(dir.path());
        config.secrets_key_file = file.map(|name| dir.path().join(name));
        let (stop, tasks) = Default::default();
        let started = warren_control::Control::start(config, node.client(), stop, tasks).await;
        started.map(drop).map_err(|error| {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        })
    };
    let key = dir.path().join("secrets.key");
    let kept = dir.path().join("kept");
    std::fs::rename(&key, &kept).unwrap();
    let error = start(None).await.unwrap_err();
    assert!(error.contains("is not there; put it back"), "{error}");
    assert!(!key.exists(), "no new key is made over secrets that it does not open");
    std::fs::write(&key, "11".repeat(32)).unwrap();
    let error = start(None).await.unwrap_err();
    assert!(error.contains("put the old key file back"), "{error}");
    start(Some("kept")).await.unwrap();
    start(Some("absent")).await.unwrap_err();
}

#[tokio::test]
async fn uses_are_counted_once_and_shown_newest_first() {
    let server = Server::start().await;
    let api = &server.acme;
    let id = store(api, "s", &[]).await;
    set(api, &id, "KEY", "one").await;
    let box_id = api.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    let path = format!("/api/secret-stores/{id}/secrets/KEY/uses");
    assert_eq!(api.get(&path).await.is(200).json(), json!([]));
    let one = |name: &str, host: &str, count, minute: u64| SecretUse {
        sandbox: box_id.parse().unwrap(),
        name: name.into(),
        host: host.into(),
        count,
        at_ms: 1_700_000_000_000 + minute * 60_000,
    };
    // The first batch comes twice, as after a server that ended before it could acknowledge it.
    let now = u64::try_from(jiff_now_ms()).unwrap();
    let recent = |name: &str, host: &str, count, back: u64| SecretUse {
        at_ms: now - back,
        ..one(name, host, count, 0)
    };
    let first = vec![
        recent("KEY", "a.com", 3, 600_000),
        recent("KEY", "b\u{1b}[2J", 1, 1000),
        recent("NONE", "a.com", 1, 0),
    ];
    let second = vec![recent("KEY", "b.com", 2, 100_000)];
    {
        let mut node = server.node.state();
        node.egress.uses = [first.clone(), first, second].into();
    }
    let shown = eventually("the uses are shown", async || {
        let shown = api.get(&path).await.is(200).json();
        (shown.as_array().unwrap().len() == 2).then_some(shown)
    })
    .await;
    assert_eq!((&shown[0]["host"], &shown[0]["count"]), (&json!("b.com"), &json!(2)));
    assert_eq!((&shown[1]["host"], &shown[1]["count"]), (&json!("a.com"), &json!(3)));
    assert_eq!(shown[0]["sandboxID"], json!(box_id));
    assert!(shown[0]["at"].is_string());
    server.rival.get(&path).await.is(404);
}

fn jiff_now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

#[tokio::test]
async fn a_store_of_another_organisation_is_unknown() {
    let server = Server::start().await;
    let id = store(&server.rival, "s", &[]).await;
    set(&server.rival, &id, "KEY", "one").await;
    for (method, rest) in [
        (Method::GET, ""),
        (Method::PUT, ""),
        (Method::DELETE, ""),
        (Method::GET, "/secrets"),
        (Method::PUT, "/secrets/KEY"),
        (Method::DELETE, "/secrets/KEY"),
        (Method::GET, "/secrets/KEY/uses"),
    ] {
        for store in [id.as_str(), "01234567-89ab-4def-8123-456789abcdef", "nonsense", "%00"] {
            let request = server.acme.request(method.clone(), &format!("/api/secret-stores/{store}{rest}"));
            let answer = send(request.json(&json!({"name": "mine", "value": "mine"}))).await.is(404);
            assert_eq!(answer.error(), "secret store not found", "{method} {rest}");
        }
    }
    assert_eq!(server.acme.get("/api/secret-stores").await.json(), json!([]));
    let box_id =
        server.rival.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
    assert_eq!(server.node.values_of(&box_id), values(&[("KEY", "one")]));
}

#[tokio::test]
async fn deleting_a_sandbox_takes_its_store_along_where_that_is_asked_for() {
    let server = Server::start().await;
    let api = &server.acme;
    for (query, left) in [("", 1), ("?deleteSecretStore=false", 1), ("?deleteSecretStore=true", 0)] {
        let id = store(api, "s", &[]).await;
        let box_id = api.create(json!({"secretStore": "s"})).await["sandboxID"].as_str().unwrap().to_owned();
        api.delete(&format!("/api/sandboxes/{box_id}{query}")).await.is(204);
        assert_eq!(api.get("/api/secret-stores").await.json().as_array().unwrap().len(), left, "{query}");
        if left == 1 {
            api.delete(&format!("/api/secret-stores/{id}")).await.is(204);
        }
    }
}
