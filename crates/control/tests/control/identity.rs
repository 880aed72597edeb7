//! Tokens that stand for a key for a while.

use http::Method;
use serde_json::json;

use crate::harness::{Answer, Api, Server, send};
use warren_control::keys;

async fn with(api: &Api, method: Method, path: &str, header: &str, value: &str) -> Answer {
    let request = Api { key: None, ..api.clone() }.request(method, path).header(header, value);
    send(request).await
}

#[tokio::test]
async fn a_token_stands_for_its_key_until_that_is_revoked() {
    let server = Server::start().await;
    let acme = &server.acme;
    let made = send(acme.request(Method::POST, "/api/auth/token")).await.is(200);
    assert_eq!(made.headers["cache-control"], "no-store");
    let made = made.json();
    assert_eq!(made["expires_in"], 600);
    let token = made["token"].as_str().unwrap();
    assert_eq!(token.matches('.').count(), 2);
    let (bearer, id) = (format!("Bearer {token}"), acme.sandbox().await);
    let whoami = acme.get("/api/whoami").await.is(200).json();
    for (header, value) in [("authorization", bearer.as_str()), ("x-api-key", token)] {
        let get = async |path: String| with(acme, Method::GET, &path, header, value).await;
        assert_eq!(get("/api/whoami".to_owned()).await.is(200).json(), whoami);
        get(format!("/api/sandboxes/{id}")).await.is(200);
        get(format!("/api/sandboxes/{id}/exec")).await.is(200);
        get(format!("/api/sandboxes/{id}/tools")).await.is(200);
        let theirs = server.rival.sandbox().await;
        get(format!("/api/sandboxes/{theirs}")).await.is(404);
        let refused = with(acme, Method::POST, "/api/auth/token", header, value).await.is(403).error();
        assert!(refused.contains("does not make another"), "{refused}");
    }
    // What opens a whole organisation is taken from no URL that could be kept.
    for name in ["token", "api_key"] {
        for path in ["exec", "tools"] {
            server.anonymous().get(&format!("/api/sandboxes/{id}/{path}?{name}={token}")).await.is(401);
        }
    }
    let sandbox = acme.create(json!({})).await;
    let of_sandbox = sandbox["token"].as_str().unwrap();
    with(acme, Method::POST, "/api/auth/token", "x-api-key", of_sandbox).await.is(403);

    let keys = keys::open(server.dir.path()).await.unwrap();
    keys.revoke(whoami["user_id"].as_str().unwrap()).await.unwrap();
    with(acme, Method::GET, "/api/whoami", "authorization", &bearer).await.is(401);
    with(acme, Method::GET, &format!("/api/sandboxes/{id}/exec"), "x-api-key", token).await.is(401);
}
