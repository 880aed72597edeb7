//! Every route of the document, with every kind of credential that must not open it. A new route is covered by being
//! documented, and an undocumented one cannot be reached by accident: routes are made from their documentation.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Api, Server, send};
use crate::secrets::{set, store};

/// A secret store that nobody has.
const STORE: &str = "01234567-89ab-4def-8123-456789abcdee";
const CHECKPOINT: &str = "01234567-89ab-4def-8123-456789abcdef";

struct Route {
    method: Method,
    path: String,
    secured: bool,
    takes_token: bool,
}

async fn routes(api: &Api) -> Vec<Route> {
    let document = api.get("/openapi.json").await.is(200).json();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        // `HEAD` goes the way of `GET`, and its refusals have no words to look at.
        for (method, operation) in methods
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "parameters" | "head"))
        {
            let security: Vec<&Value> = operation["security"].as_array().into_iter().flatten().collect();
            let takes_token = security.iter().any(|scheme| scheme.get("sandbox_token").is_some());
            let route = |path: String| Route {
                method: method.to_uppercase().parse().unwrap(),
                path,
                secured: !security.is_empty(),
                takes_token,
            };
            if takes_token {
                routes.push(route(path.strip_prefix("/api").unwrap().to_owned()));
            }
            routes.push(route(path.clone()));
        }
    }
    assert!(routes.len() > 40, "the document lists the routes");
    routes
}

/// `id` is of a sandbox, or of a secret store on the routes of those.
async fn call(api: &Api, route: &Route, id: &str, credential: Option<(&str, &str)>) -> Answer {
    let path = route.path.replace("{id}", id).replace("{sid}", "0123abcd");
    let path = path.replace("{store}", id).replace("{name}", "KEY");
    let path =
        path.replace("{snapshot}", "theirs").replace("{image}", "theirs").replace("{template}", "theirs");
    let path = path.replace("{cid}", CHECKPOINT).replace("{pid}", CHECKPOINT).replace("{port}", "3000");
    let mut request =
        Api { key: None, ..api.clone() }.request(route.method.clone(), &format!("{path}?path=/x"));
    if let Some((header, value)) = credential {
        request = request.header(header, value);
    }
    if route.method != Method::GET {
        request = request.json(&match &route.path {
            path if path.ends_with("/tags") => json!({"a": "b"}),
            // It takes no fields that nobody knows.
            path if path.ends_with("/egress") => json!({"mode": "open"}),
            _ => json!({
                "cmd": "out x", "from": "/x", "to": "/y", "path": "/x", "mode": "0644", "cols": 1, "rows": 1,
                "timeout": 1, "name": "stolen", "value": "stolen", "mode": "open", "port": 3000
            }),
        });
    }
    send(request).await
}

#[tokio::test]
async fn no_route_opens_to_a_missing_wrong_or_foreign_credential() {
    let server = Server::start().await;
    let theirs = server.rival.sandbox().await;
    let theirs_before = server.rival.get(&format!("/api/sandboxes/{theirs}")).await.text;
    let mine = server.acme.create(json!({})).await;
    let token = mine["token"].as_str().unwrap();
    let key = server.acme.key.clone().unwrap();
    let bearer = format!("Bearer {token}");

    let their_store = store(&server.rival, "theirs", &[]).await;
    set(&server.rival, &their_store, "KEY", "theirs").await;
    let their_secrets = format!("/api/secret-stores/{their_store}/secrets");
    let secrets_before = server.rival.get(&their_secrets).await.is(200).text;

    let snapshot = json!({"name": "theirs", "image": "base"});
    server.rival.post("/api/snapshots", snapshot).await.is(201);
    let snapshots_before = server.rival.get("/api/snapshots").await.is(200).text;

    let mut open = Vec::new();
    for route in routes(&server.acme).await {
        let named = format!("{} {}", route.method, route.path);
        if !route.secured {
            open.push(named);
            continue;
        }
        let nothing = call(&server.acme, &route, &theirs, None).await;
        assert_eq!(nothing.status, 401, "{named}: no credential");
        assert_eq!(nothing.error(), "missing API key");
        let unknown = format!("osb_{}", "0".repeat(64));
        let nearly = key[..67].to_owned();
        let forged = format!("{}x", &token[..token.len() - 1]);
        for wrong in [unknown.as_str(), nearly.as_str(), forged.as_str(), "", "osb_", "x", ".."] {
            let refused = call(&server.acme, &route, &theirs, Some(("x-api-key", wrong))).await;
            assert_eq!(refused.status, 401, "{named}: {wrong:?}");
            assert!(wrong.is_empty() || refused.error() == "invalid API key", "{named}: {}", refused.error());
        }
        if route.path.contains("{id}") {
            let foreign = call(&server.acme, &route, &theirs, Some(("x-api-key", &key))).await;
            assert_eq!(foreign.status, 404, "{named}: a key of another organisation");
            assert_eq!(foreign.error(), "sandbox not found", "{named}");
            let unknown = call(&server.acme, &route, "sb-00000000", Some(("x-api-key", &key))).await;
            assert_eq!(unknown.text, foreign.text, "{named}: foreign and unknown look the same");
        }
        if route.path.contains("{store}") {
            let foreign = call(&server.acme, &route, &their_store, Some(("x-api-key", &key))).await;
            assert_eq!(foreign.status, 404, "{named}: a key of another organisation");
            assert_eq!(foreign.error(), "secret store not found", "{named}");
            let unknown = call(&server.acme, &route, STORE, Some(("x-api-key", &key))).await;
            assert_eq!(unknown.text, foreign.text, "{named}: foreign and unknown look the same");
        }
        for (parameter, says) in [
            ("{snapshot}", "snapshot not found"),
            ("{image}", "image not found"),
            ("{template}", "template not found: theirs"),
        ] {
            if route.path.contains(parameter) {
                let foreign = call(&server.acme, &route, &theirs, Some(("x-api-key", &key))).await;
                assert_eq!((foreign.status.as_u16(), foreign.error().as_str()), (404, says), "{named}");
            }
        }
        for credential in [("x-api-key", token), ("authorization", bearer.as_str())] {
            let foreign = call(&server.acme, &route, &theirs, Some(credential)).await;
            assert_eq!(foreign.status, 403, "{named}: the token of another sandbox in {}", credential.0);
            let own = call(&server.acme, &route, mine["sandboxID"].as_str().unwrap(), Some(credential)).await;
            assert_eq!(own.status == 403, !route.takes_token, "{named}: its own token, {own:?}");
        }
    }
    open.sort();
    let signed = ["GET /api/sandboxes/{id}/files/download", "PUT /api/sandboxes/{id}/files/upload"];
    let login = ["POST /auth/cli/device", "POST /auth/cli/device/exchange"];
    assert_eq!(
        open,
        [signed[0], "GET /health", "GET /healthz", "GET /readyz", login[0], login[1], signed[1]]
    );
    assert_eq!(
        server.rival.get(&format!("/api/sandboxes/{theirs}")).await.text,
        theirs_before,
        "nothing was changed"
    );
    assert_eq!(server.rival.get(&their_secrets).await.text, secrets_before, "nothing was changed");
    assert_eq!(server.rival.get("/api/snapshots").await.text, snapshots_before, "nothing was changed");
}

#[tokio::test]
async fn query_credentials_open_what_they_are_for() {
    let server = Server::start().await;
    let mine = server.acme.create(json!({})).await;
    let (id, token) = (mine["sandboxID"].as_str().unwrap(), mine["token"].as_str().unwrap());
    let key = server.acme.key.as_ref().unwrap();
    let anonymous = server.anonymous();
    for query in [format!("token={token}"), format!("api_key={token}")] {
        anonymous.get(&format!("/api/sandboxes/{id}/exec?{query}")).await.is(200);
        anonymous.get(&format!("/sandboxes/{id}/exec?{query}")).await.is(200);
        anonymous.get(&format!("/api/sandboxes/{id}?{query}")).await.is(401);
    }
    for query in [format!("token={key}"), format!("api_key={key}")] {
        anonymous.get(&format!("/api/sandboxes/{id}/exec?{query}")).await.is(401);
        anonymous.get(&format!("/api/sandboxes?{query}")).await.is(401);
    }
}

#[tokio::test]
async fn a_stopped_sandbox_answers_410_to_key_and_token() {
    let server = Server::start().await;
    let mine = server.acme.create(json!({})).await;
    let (id, token) = (mine["sandboxID"].as_str().unwrap(), mine["token"].as_str().unwrap());
    server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    let key = server.acme.key.clone().unwrap();
    for route in routes(&server.acme).await.iter().filter(|route| route.takes_token) {
        for credential in [key.as_str(), token] {
            let gone = call(&server.acme, route, id, Some(("x-api-key", credential))).await;
            assert_eq!(gone.status, 410, "{} {}", route.method, route.path);
            assert_eq!(gone.error(), format!("sandbox {id} has been stopped"));
        }
    }
}
